//! What was restored is worked on only when the other stores agree with it; what MongoDB lacks is found however much has
//! come since.

use std::sync::Arc;

use anyhow::{Context, ensure};
use mongodb::bson::{DateTime, Document, doc};
use serde_json::json;
use taskflow_stores::clock;
use taskflow_stores::postgres::{leader, leases, restore_epochs};
use taskflow_tests::backups::{Backups, own};
use taskflow_tests::commands::{command, id};
use taskflow_tests::promise::Stream;
use taskflow_tests::{Client, Result, Site, wait};

use super::filled;
use crate::cluster;

const HOUR_MS: i64 = 3_600_000;

/// So many more commands, applied and told.
async fn more(site: &Site, commands: usize) -> Result {
    let cluster = cluster(site)?;
    let receipts = "SELECT count(*) FROM receipts";
    let all = site.count(receipts).await? + commands as i64;
    let told = site.events().await?.len() + commands;
    let worker = cluster.worker()?;
    Stream::start(site, 2, commands / 2).end().await?;
    wait::until("they are applied and told", async || {
        Ok(site.count(receipts).await? == all && site.events().await?.len() >= told)
    })
    .await?;
    worker.stop().await
}

/// Workers and schedulers on a restored Postgres wait, say for what, and go on by themselves.
pub(super) async fn nobody_works_before(site: Arc<Site>) -> Result {
    filled(&site, 4, 5).await?;
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let dump = backups.create("postgres").await?;
    more(&site, 10).await?;
    let live = own(&site);
    wait::until("nobody works", async || {
        Ok(site.count("SELECT count(*) FROM workers WHERE expires_at > clock_timestamp()").await? == 0)
    })
    .await?;
    let replaced = backups.ask(&["restore", &dump, "--over-live", "--replace", &live]).await?;
    let old = replaced[0]["old"].as_str().context("no old database")?.to_owned();
    let receipts = "SELECT count(*) FROM receipts";
    wait::until("our connections are new", async || Ok(site.count(receipts).await.unwrap_or(0) == 20))
        .await?;

    let mut waiting = Vec::new();
    for role in ["worker", "scheduler"] {
        let listen = taskflow_tests::free_address()?;
        let process = cluster.spawn(role, &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
        let client = Client::new(&format!("http://{listen}"))?;
        wait::until("it says what it waits for", async || {
            let Ok(answer) = client.get("/readyz").await else { return Ok(false) };
            let is_red = answer.status() == 503;
            Ok(is_red && answer.text().await?.contains("taskflow restore --agree"))
        })
        .await?;
        ensure!(process.log().contains("was restored (epoch"), "{}", process.log());
        waiting.push((process, client));
    }
    let at_work = "SELECT (SELECT count(*) FROM workers) + (SELECT count(*) FROM partition_leases)
                        + (SELECT count(*) FROM scheduler_leader WHERE expires_at > now())";
    ensure!(site.count(at_work).await? == 0, "somebody works");

    // Whoever worked before the restore, and does not ask, gets nothing either.
    let step = site.count("SELECT max(step) FROM partition_layout").await?;
    let somebody = clock::new_id();
    let take = async || -> Result<(bool, bool)> {
        let partition = leases::acquire(&site.postgres, "00", somebody, 1_000, step).await?.is_some();
        Ok((partition, leader::take(&site.postgres, somebody, "a test", 1_000).await?.is_some()))
    };
    ensure!(take().await? == (false, false), "a partition or the lead was taken");

    // They need not be stopped for it.
    let difference = backups.ask(&["restore", "--agree"]).await?;
    ensure!(difference["undone_commands"] == 10 && difference["undone_events"] == 10, "{difference}");
    for (process, client) in waiting {
        wait::until("it works", async || Ok(client.get("/readyz").await?.status() == 200)).await?;
        process.stop().await?;
    }
    ensure!(take().await? == (true, true), "nothing can be taken after it");
    site.sql(&format!("DROP DATABASE {old} WITH (FORCE)")).await
}

/// A worker that has begun before a restore finds nothing to take, and says why; so does the doctor.
pub(super) async fn who_is_there_already(site: Arc<Site>) -> Result {
    filled(&site, 4, 5).await?;
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let listen = taskflow_tests::free_address()?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    let client = Client::new(&format!("http://{listen}"))?;
    let ready = async || -> Result<(u16, String)> {
        let answer = client.get("/readyz").await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    };
    wait::until("it works", async || Ok(matches!(ready().await, Ok((200, _))))).await?;
    restore_epochs::begin(&site.postgres, "a test").await?;
    // What it has it may keep; a restore puts another database in this one's place, where it has nothing.
    wait::until("it says what it waits for", async || {
        let (status, said) = ready().await?;
        Ok(status == 503 && said.contains("taskflow restore --agree"))
    })
    .await?;
    ensure!(worker.log().contains("was restored (epoch"), "{}", worker.log());
    let doctor = backups.run(&["doctor"], &[]).await?;
    let said = taskflow_tests::backups::text(&doctor);
    ensure!(!doctor.status.success() && said.contains("taskflow restore --agree"), "{said}");

    site.sql("UPDATE restore_epochs SET ended_at = now()").await?;
    wait::until("it is well again", async || Ok(ready().await?.0 == 200)).await?;
    ensure!(worker.log().contains("brought to its end"), "{}", worker.log());
    worker.stop().await
}

/// A restored MongoDB that was worked on before anybody made the stores agree: what came after its backup is missing, and
/// what has come since hides it no more.
pub(super) async fn older_than_what_came_since(site: Arc<Site>) -> Result {
    filled(&site, 4, 10).await?;
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let trail = backups.create("mongodb").await?;
    let saved = site.count("SELECT count(*) FROM receipts").await?;
    more(&site, 10).await?;
    let into = format!("{}_older", own(&site));
    backups.ask(&["restore", &trail, "--into", &into]).await?;
    // All that is long ago.
    let lost = format!(
        "UPDATE receipts SET finished_at = finished_at - interval '1 hour'
         WHERE id NOT IN (SELECT id FROM receipts ORDER BY finished_at LIMIT {saved})"
    );
    site.sql(&lost).await?;
    let restored = site.mongo.client().database(&into);
    let notes = restored.collection::<Document>("taskflow_restore");
    let note = notes.find_one(doc! {}).await?.context("it does not know that it was restored")?;
    let from = note.get_datetime("from")?.timestamp_millis() - 2 * HOUR_MS;
    notes.update_one(doc! {}, doc! { "$set": { "from": DateTime::from_millis(from) } }).await?;

    let is_url = |(name, _): &&(String, String)| name.ends_with("MONGODB__URL");
    let url = site.env.iter().find(is_url).context("no address")?.1.replacen(&own(&site), &into, 1);
    let elsewhere = [("TASKFLOW_MONGODB__URL", url.as_str())];
    let worker = cluster.spawn("worker", &elsewhere)?;
    let (api, client) = cluster.api_with(&elsewhere).await?;
    client.admin().await?.apply(&command("task.create", id(), json!({ "title": "since" }))).await?;
    let events = restored.collection::<Document>("event_logs");
    let of_tasks = doc! { "type": { "$regex": "^task" } };
    wait::until("it is told", async || Ok(events.count_documents(of_tasks.clone()).await? == 41)).await?;
    api.stop().await?;
    worker.stop().await?;

    let output = backups.run(&["restore", "--agree", "--json"], &elsewhere).await?;
    ensure!(output.status.success(), "{}", taskflow_tests::backups::text(&output));
    let difference: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    ensure!(difference["missing_events"] == 10 && difference["undone_events"] == 0, "{difference}");
    ensure!(notes.count_documents(doc! {}).await? == 0, "it goes on to be a restored one");
    Ok(restored.drop().await?)
}
