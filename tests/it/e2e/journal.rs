//! The journal of commands where it can't be written: commands go on, and what it lacks is counted.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::json;
use taskflow_tests::backups::Backups;
use taskflow_tests::promise::{self, Accepted, Stream};
use taskflow_tests::{Client, Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("commands go on without a journal, and what it lacks is counted", without)]
}

async fn without(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let file = cluster.folder().join("no-folder");
    std::fs::write(&file, "a file")?;
    let inside = file.join("work").display().to_string();
    let work = cluster.folder().join("work").display().to_string();

    // The worker's machine has no place for the journal at all.
    let nowhere = Backups::new(&cluster).with("WORK_DIR", &inside);
    let accepted = applied(&site, &nowhere, Journal::Lacks).await?;
    ensure!(cluster.log_tails(100).contains("There is no journal of commands"), "nothing is said of it");
    // There is one, and it is full.
    let full = Backups::new(&cluster).with("WORK_DIR", &work).with("JOURNAL_SPOOL_MAX_BYTES", "1");
    let accepted = accepted.and(applied(&site, &full, Journal::Lacks).await?);
    // All is well again: the journal has what came since, and nothing else.
    let backups = Backups::new(&cluster).with("WORK_DIR", &work);
    let more = applied(&site, &backups, Journal::Has).await?;
    let kept = more.commands();
    promise::check(&site, &accepted.and(more)).await?;
    let replayed = backups.ask(&["restore", "--replay", "2020-01-01T00:00:00Z"]).await?;
    ensure!(replayed == json!({ "published": kept, "refused": 0 }), "{replayed}, and {kept} were kept");
    Ok(())
}

/// What becomes of a worker's commands.
enum Journal {
    Has,
    Lacks,
}

/// A stream of commands, applied by a worker with these settings, which counts what it leaves out of the journal.
async fn applied(site: &Site, backups: &Backups<'_>, journal: Journal) -> Result<Accepted> {
    let listen = taskflow_tests::free_address()?;
    let env = [backups.env().as_slice(), &[("TASKFLOW_METRICS__LISTEN", listen.as_str())]].concat();
    let receipts = async || site.count("SELECT count(*) FROM receipts").await;
    let before = receipts().await?;
    let worker = backups.cluster.spawn("worker", &env)?;
    let accepted = Stream::start(site, 4, 10).end().await?;
    let all = before + accepted.commands() as i64;
    wait::until("the stream is applied", async || Ok(receipts().await? == all)).await?;
    let metrics = Client::new(&format!("http://{listen}"))?;
    let expected = if let Journal::Lacks = journal { accepted.commands() } else { 0 };
    // A batch goes to the journal after its commit.
    wait::until("what the journal lacks is counted", async || {
        let text = metrics.get("/metrics").await?.text().await?;
        let value = text.lines().find_map(|line| line.strip_prefix("taskflow_journal_dropped_total "));
        let dropped: usize = value.unwrap_or("0").parse()?;
        ensure!(dropped <= expected, "{dropped} are counted, and {expected} were left out");
        Ok(dropped == expected)
    })
    .await?;
    worker.stop().await?;
    Ok(accepted)
}
