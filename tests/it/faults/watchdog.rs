//! Alive, healthy and consuming nothing: the one thing that must not be.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::envelope;
use taskflow_stores::clock;
use taskflow_stores::rabbit::consume::PREFETCH;
use taskflow_stores::rabbit::publish::Message;
use taskflow_tests::commands::{command, subject_in_slot};
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Client, Result, Site, wait};

use crate::{cluster, with_site};

/// The watchdog need not be as patient as in production.
const IMPATIENT: (&str, &str) = ("TASKFLOW_WORKER__STUCK_AFTER_MS", "2000");
/// Where the third consumer has to hear within it, though the broker may be busy.
const LESS_IMPATIENT: (&str, &str) = ("TASKFLOW_WORKER__STUCK_AFTER_MS", "5000");

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a consumer that hears nothing is made anew", deaf),
        with_site("a worker that stays deaf is red, tries everything, and ends", hopeless),
        with_site("a pipeline that panics begins again", async |site| panics(site, "collected:3").await),
        with_site("a sink that panics begins again", async |site| panics(site, "sink:3").await),
        with_site("what operators pause stands still, also for new workers, until they resume it", pauses),
    ]
}

async fn deaf(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // The first two consumers of partition 00 are deaf: connected, healthy, consuming nothing. Two, since a lease that a
    // busy machine loses ends one of them without a repair.
    let worker = cluster.spawn("worker", &[LESS_IMPATIENT, ("TASKFLOW_DEAF_AT", "00:2")])?;
    let stream = Stream::start(&site, 12, 20);
    wait::until("the watchdog repairs it", async || Ok(worker.log().contains("the watchdog repairs")))
        .await?;
    let partition_00 = "SELECT count(*) FROM batches WHERE partition = '00'";
    wait::until("partition 00 works", async || Ok(site.count(partition_00).await? > 0)).await?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    worker.stop().await
}

/// Channel, connection, exit: each step is counted, and readiness is red all the while.
async fn hopeless(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // More than a consumer holds: what it holds and does not hear is not ready any more, and no sign.
    let commands = usize::from(PREFETCH) + 50;
    for _ in 0..commands {
        let command = envelope::read(command("task.create", subject_in_slot(0), json!({ "title": "x" })))?;
        site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
    }
    let listen = taskflow_tests::free_address()?;
    let env = [IMPATIENT, ("TASKFLOW_DEAF_AT", "00:1000"), ("TASKFLOW_METRICS__LISTEN", listen.as_str())];
    let mut worker = cluster.spawn("worker", &env)?;
    let client = Client::new(&format!("http://{listen}"))?;
    wait::until("readiness is red", async || {
        let Ok(answer) = client.get("/readyz").await else { return Ok(false) };
        Ok(answer.status() == 503 && answer.text().await?.contains("partition 00"))
    })
    .await?;
    for sign in [
        "taskflow_partition_stuck{partition=\"00\"} 1",
        "taskflow_watchdog_steps_total{step=\"channel\"} 1",
        "taskflow_watchdog_steps_total{step=\"connection\"} 1",
    ] {
        wait::until(sign, async || {
            let text = client.get("/metrics").await?.text().await?;
            Ok(text.lines().any(|line| line == sign))
        })
        .await?;
    }
    let ended = worker.ended().await?;
    ensure!(!ended.success(), "a supervisor would take this for a wish: {ended}");
    ensure!(worker.log().contains("could not mend"), "it does not say why it ends");
    // Its successor hears.
    let worker = cluster.worker()?;
    wait::until("all are applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts WHERE outcome = 'applied'").await? == commands as i64)
    })
    .await?;
    worker.stop().await
}

async fn panics(site: Arc<Site>, at: &'static str) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster
        .spawn("worker", &[("TASKFLOW_CRASH_AT", &format!("panic:{at}")), ("TASKFLOW_LOG_FORMAT", "json")])?;
    let stream = Stream::start(&site, 12, 20);
    wait::until("it has panicked", async || Ok(worker.log().contains("a test wants"))).await?;
    // Who collects the log reads an event a line, also then.
    let log = worker.log();
    let other = log.lines().find(|line| serde_json::from_str::<Value>(line).is_err());
    ensure!(other.is_none(), "no event: {other:?}");
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    worker.stop().await
}

async fn pauses(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let run = async |args: &[&str]| -> Result<String> {
        let output = cluster.run(args, &[]).await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "{args:?}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
        Ok(text)
    };
    run(&["pause", "--type", "task.update", "--reason", "a bad release upstream"]).await?;
    wait::until("the worker knows", async || Ok(worker.log().contains("Paused by an operator"))).await?;
    let task = subject_in_slot(0);
    let values = [
        command("task.create", task, json!({ "title": "one" })),
        command("task.update", task, json!({ "title": "two", "expectedversion": 1 })),
        command("task.delete", task, json!({ "expectedversion": 2 })),
    ];
    for value in &values {
        let command = envelope::read(value.clone())?;
        site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
    }
    let receipts = "SELECT count(*) FROM receipts";
    wait::until("what is before it is applied", async || Ok(site.count(receipts).await? == 1)).await?;
    // A new worker does not know better.
    worker.stop().await?;
    let worker = cluster.worker()?;
    wait::until("the partition is paused there too", async || {
        Ok(worker.log().contains("The partition is paused"))
    })
    .await?;
    ensure!(site.count(receipts).await? == 1, "a paused command was applied");
    let list = run(&["pauses"]).await?;
    ensure!(list.contains("task.update") && list.contains("a bad release upstream"), "{list}");
    run(&["resume", "--type", "task.update"]).await?;
    wait::until("all are applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts WHERE outcome = 'applied'").await? == 3)
    })
    .await?;
    // Everything: a partition lets go of its queue.
    run(&["pause", "--all", "--reason", "a move"]).await?;
    let mut consumers = 1;
    wait::until("nobody consumes", async || {
        consumers = site.link.depth("taskflow.commands.00").await?.consumers;
        Ok(consumers == 0)
    })
    .await?;
    run(&["resume", "--all"]).await?;
    wait::until("somebody consumes", async || {
        Ok(site.link.depth("taskflow.commands.00").await?.consumers == 1)
    })
    .await?;
    worker.stop().await
}
