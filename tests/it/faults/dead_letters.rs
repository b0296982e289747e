//! Workers that die in the middle of a dead letter's way: into Postgres, out again, into the audit trail. Nothing is
//! lost, nothing doubled.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_core::system_event::SYSTEM;
use taskflow_stores::clock;
use taskflow_stores::postgres::dead_letter_deeds::{self as deeds, By};
use taskflow_stores::postgres::dead_letter_intake;
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use taskflow_tests::commands::id;
use taskflow_tests::letters::{self, forbid_poison, poison, publish};
use taskflow_tests::{Result, Site, wait};
use uuid::Uuid;

use crate::e2e::audit;
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    let drained = ["drained", "stored"].map(|point| {
        let name = format!("a worker that dies when a dead letter is {point} stores it once");
        with_site(&name, async move |site| dies_while_draining(site, point).await)
    });
    let replayed = ["replaying", "republished", "system_linked", "system_audited"].map(|point| {
        let name = format!("a worker that dies when a replay is {point} applies its command once");
        with_site(&name, async move |site| dies_while_replaying(site, point).await)
    });
    let mut tests: Vec<Trial> = drained.into_iter().chain(replayed).collect();
    tests.push(with_site("a consumer of dead letters that hears nothing is made anew", deaf));
    tests.push(with_site("the same dead letters stored by two at once are stored once", twice));
    tests
}

const LETTERS: i64 = 12;

async fn poisons(site: &Site) -> Result<Vec<Value>> {
    forbid_poison(site).await?;
    let mut commands = Vec::new();
    for _ in 0..LETTERS {
        let command = poison(id());
        publish(site, &command).await?;
        commands.push(command);
    }
    Ok(commands)
}

/// What the broker has sent to a deaf consumer waits no more, by its own count: nothing tells of it.
async fn deaf(site: Arc<Site>) -> Result {
    poisons(&site).await?;
    let worker = cluster(&site)?.spawn("worker", &[("TASKFLOW_DEAF_AT", "dead-letters:1")])?;
    wait::until("the broker has sent the letters", async || {
        let settled = site.count("SELECT count(*) FROM receipts WHERE outcome = 'dead'").await? == LETTERS;
        Ok(settled && site.link.depth(DEAD_LETTERS).await?.ready == 0)
    })
    .await?;
    ensure!(site.count("SELECT count(*) FROM dead_letters").await? == 0, "the consumer is not deaf");
    letters_once(&site).await?;
    worker.stop().await
}

async fn letters_once(site: &Site) -> Result {
    letters::until(site, "kept", LETTERS).await?;
    wait::until("the queue is drained", async || Ok(site.link.depth(DEAD_LETTERS).await?.ready == 0)).await?;
    ensure!(site.count("SELECT count(*) FROM dead_letters").await? == LETTERS, "letters have doubled");
    let attempts = "SELECT coalesce(max(jsonb_array_length(attempts)), 0)::bigint FROM dead_letters";
    ensure!(site.count(attempts).await? == 1, "an attempt was counted twice");
    Ok(())
}

async fn dies_while_draining(site: Arc<Site>, point: &str) -> Result {
    let cluster = cluster(&site)?;
    let mut worker = cluster.crashing_worker(&format!("{point}:2"))?;
    poisons(&site).await?;
    // Letters may come all at once: one more makes a second batch.
    let ended = wait::until("it has died", async || {
        if worker.is_running() {
            letters::publish_to(
                &site,
                taskflow_stores::rabbit::topology::COMMANDS,
                "no slot",
                b"{}".to_vec(),
            )
            .await?;
        }
        Ok(!worker.is_running())
    });
    ended.await?;
    let status = worker.ended().await?;
    ensure!(status.signal() == Some(9), "it ended with {status}:\n{}", worker.log());
    let worker = cluster.worker()?;
    wait::until("the stray one is there", async || {
        Ok(site.count("SELECT count(*) FROM dead_letters WHERE reason = 'unroutable'").await? == 1)
    })
    .await?;
    wait::until("the queue is drained", async || Ok(site.link.depth(DEAD_LETTERS).await?.ready == 0)).await?;
    letters::until(&site, "kept", LETTERS + 1).await?;
    site.sql("DELETE FROM dead_letters WHERE reason = 'unroutable'").await?;
    letters_once(&site).await?;
    worker.stop().await
}

async fn dies_while_replaying(site: Arc<Site>, point: &str) -> Result {
    let cluster = cluster(&site)?;
    let first = cluster.worker()?;
    let commands = poisons(&site).await?;
    letters_once(&site).await?;
    first.stop().await?;
    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let ids: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM dead_letters").fetch_all(&site.postgres).await?;
    for id in ids {
        deeds::replay(&site.postgres, id, By { author: SYSTEM, why: None, at: clock::now() }).await?;
    }
    let mut worker = cluster.crashing_worker(&format!("{point}:1"))?;
    let status = worker.ended().await?;
    ensure!(status.signal() == Some(9), "it ended with {status}:\n{}", worker.log());
    let worker = cluster.worker()?;
    wait::until("all are applied", async || Ok(site.count("SELECT count(*) FROM tasks").await? == LETTERS))
        .await?;
    letters::until(&site, "replayed", LETTERS).await?;
    ensure!(site.count("SELECT count(*) FROM receipts").await? == LETTERS, "other receipts");
    ensure!(site.count("SELECT count(*) FROM tasks WHERE version <> 1").await? == 0, "applied twice");
    let collection = site.mongo.collection::<Document>("event_logs");
    wait::until("the audit trail is whole", async || {
        let told = collection.count_documents(doc! { "type": "system.dead_letter_replayed" }).await?;
        let created = collection.count_documents(doc! { "type": "task.created" }).await?;
        Ok(told == LETTERS as u64 && created == LETTERS as u64)
    })
    .await?;
    ensure!(commands.len() == LETTERS as usize, "commands");
    audit::is_whole(&site, worker).await
}

/// Two workers may hold the same letter: one whose connection broke, and the one after it.
async fn twice(site: Arc<Site>) -> Result {
    let deaths: Vec<_> = (0..50).map(death).collect();
    let store = async || {
        let mut tries = 0;
        loop {
            match dead_letter_intake::store(&site.postgres, &deaths).await {
                Err(error) if error.kind == taskflow_stores::Kind::Conflict && tries < 20 => tries += 1,
                done => return done,
            }
        }
    };
    let (one, two, three) = tokio::join!(store(), store(), store());
    let stored = [one?, two?, three?];
    ensure!(stored.iter().map(|s| s.new).sum::<u64>() == 50, "{stored:?}");
    ensure!(stored.iter().map(|s| s.copies).sum::<u64>() == 100, "{stored:?}");
    ensure!(site.count("SELECT count(*) FROM dead_letters").await? == 50, "letters have doubled");
    ensure!(site.count("SELECT sum(copies)::bigint FROM dead_letters").await? == 100, "copies");
    Ok(())
}

fn death(number: u32) -> taskflow_core::dead_letter::Death {
    taskflow_core::dead_letter::Death {
        letter: None,
        attempt: None,
        died_at: clock::now(),
        reason: "failing".into(),
        detail: format!("task {number} failed"),
        exchange: String::new(),
        queue: "taskflow.commands.00".into(),
        routing_key: "10".into(),
        returns: 0,
        accepted_at: None,
        headers: serde_json::Map::new(),
        body: number.to_string().into_bytes(),
    }
}
