//! Sealing and verifying while commands come, and schedulers that die half-way.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use mongodb::bson::doc;
use taskflow_tests::promise::Stream;
use taskflow_tests::{Result, Site, wait};

use super::{Sealed, commands, ok, run};
use crate::with_site;

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("audit: what is sealed and verified while commands come is whole", busy),
        with_site("audit: the trail is sealed while MongoDB is away, and the copies come later", away),
        with_site("audit: a scheduler that dies with a seal half made leaves a sequence without gaps", dies),
    ]
}

async fn busy(site: Arc<Site>) -> Result {
    let sealed = Sealed::without_events(&site, None).await?;
    let workers = [sealed.cluster.worker()?, sealed.cluster.worker()?];
    let stream = Stream::start(&site, 12, 40);
    let mut before = 0;
    for _ in 0..3 {
        let more = async || Ok(sealed.events().count_documents(doc! {}).await? > before);
        wait::until("more has happened", more).await?;
        // A batch is proved when MongoDB has all of it.
        wait::until("something is proved", async || {
            sealed.seal().await?;
            Ok(sealed.is_whole().await?["proved"].as_u64() > Some(0))
        })
        .await?;
        before = sealed.events().count_documents(doc! {}).await?;
    }
    stream.end().await?;
    let waits = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM system_events)";
    wait::until("nothing is on its way", async || Ok(site.count(waits).await? == 0)).await?;
    for worker in workers {
        worker.stop().await?;
    }
    sealed.seal().await?;
    let report = sealed.is_whole().await?;
    let events = sealed.events().count_documents(doc! {}).await?;
    ensure!(report["proved"] == events && report["pending"] == 0, "{events} events: {report}");
    sealed.stop().await
}

async fn dies(site: Arc<Site>) -> Result {
    let mut sealed = Sealed::start(&site, &commands()).await?;
    sealed.apply(&commands()[..2]).await?;
    // The seal is in Postgres, and nowhere else yet.
    let crashing = [("TASKFLOW_CRASH_AT", "half_done:1"), ("TASKFLOW_SCHEDULER__LEASE_MS", "2000")];
    let crashing = sealed.cluster.spawn("scheduler", &crashing)?;
    std::mem::replace(&mut sealed.scheduler, crashing).stop().await?;
    ok(&sealed.cluster, &["jobs", "run", "audit.seal", "--no-wait"]).await?;
    let status = sealed.scheduler.ended().await?;
    ensure!(!status.success(), "it did not die: {status}");
    ensure!(site.count("SELECT count(*) FROM audit_seals").await? == 2, "there are not two seals");
    let copies = site.mongo.collection::<mongodb::bson::Document>("audit_seals");
    ensure!(copies.count_documents(doc! {}).await? == 1, "the second seal was copied");
    sealed.scheduler = sealed.cluster.spawn("scheduler", &[])?;
    let unfinished =
        "SELECT count(*) FROM job_runs WHERE job = 'audit.seal' AND state IN ('waiting', 'running')";
    wait::until("the broken run is ended", async || Ok(site.count(unfinished).await? == 0)).await?;
    let again = run(&sealed.cluster, "audit.seal").await?;
    ensure!(again["figures"]["made"] == false && again["figures"]["copied"] == 2, "{again}");
    sealed.is_whole().await?;
    // A crash in the middle of a line: what was written of it is no seal, and the next one is.
    let file = std::fs::read_dir(sealed.cluster.folder().join("taskflow-audit/seals"))?.next();
    let file = file.ok_or_else(|| anyhow::anyhow!("no file"))??.path();
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, &text[..text.len() - 20])?;
    let mended = run(&sealed.cluster, "audit.seal").await?;
    ensure!(mended["figures"]["copied"] == 1, "{mended}");
    sealed.is_whole().await?;
    sealed.stop().await
}

async fn away(site: Arc<Site>) -> Result {
    let mut sealed = Sealed::start(&site, &commands()).await?;
    sealed.apply(&commands()[..2]).await?;
    // Nobody listens there.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let url = format!("mongodb://{nowhere}/taskflow");
    let cut_off = sealed.cluster.spawn("scheduler", &[("TASKFLOW_MONGODB__URL", url.as_str())])?;
    std::mem::replace(&mut sealed.scheduler, cut_off).stop().await?;
    let failed = run(&sealed.cluster, "audit.seal").await?;
    let why = failed["detail"].as_str().unwrap_or_default();
    ensure!(failed["state"] == "failed" && why.starts_with("mongodb"), "{failed}");
    ensure!(site.count("SELECT count(*) FROM audit_seals").await? == 2, "the trail was not sealed");
    let back = sealed.cluster.spawn("scheduler", &[])?;
    std::mem::replace(&mut sealed.scheduler, back).stop().await?;
    let done = run(&sealed.cluster, "audit.seal").await?;
    ensure!(done["figures"]["copied"] == 1, "{done}");
    sealed.is_whole().await?;
    sealed.stop().await
}
