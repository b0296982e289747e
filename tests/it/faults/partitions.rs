//! The number of partitions changes while everything runs, and whoever changes it dies.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use lapin::options::QueueBindOptions;
use lapin::types::FieldTable;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::envelope;
use taskflow_core::partition::Phase;
use taskflow_stores::clock;
use taskflow_stores::rabbit::consume::{self, Subscription};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::{self, COMMANDS, SLOTS};
use taskflow_tests::commands::{HASH, command, command_of, id, subject_in_slot};
use taskflow_tests::promise::{self, Accepted, Stream};
use taskflow_tests::{Cluster, Result, Site, wait};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{cluster, with_site};

/// The boundaries between the steps of a change.
const CHANGE_POINTS: [&str; 9] = [
    "change_begun",
    "change_bound",
    "change_unbound",
    "change_drained",
    "change_fenced",
    "change_moved",
    "change_switched",
    "change_deleted",
    "change_cleared",
];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("the number of partitions changes up and down under load", up_and_down),
        with_site("a change of the partitions goes on whichever worker dies at which step", workers_die),
        with_site("a change of the partitions goes on wherever its command dies", commands_die),
        with_site("commands that wait move to the new partitions of their subjects", waiting_moves),
        with_site("a change of the partitions that can't go on says why", says_why),
        with_site("a queue is looked into, and what is in it stays in its order", looked_into),
        with_site("the deployment's number of partitions counts, not the settings'", database_wins),
    ]
}

/// Runs `taskflow partitions …`; its code and what it printed.
async fn partitions(cluster: &Cluster<'_>, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let words = [&["partitions", "--json"], words].concat();
    let output = cluster.run(&words, &[]).await?;
    let printed = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    let printed = String::from_utf8_lossy(printed);
    let value = serde_json::from_str(&printed).with_context(|| printed.into_owned())?;
    Ok((output.status.code(), value))
}

async fn set(cluster: &Cluster<'_>, words: &[&str]) -> Result {
    let (code, printed) = partitions(cluster, &[&["set"], words].concat()).await?;
    ensure!(code == Some(0) && printed["phase"] == "settled", "{code:?} {printed}");
    Ok(())
}

/// Streams to both exchanges: that of our own intake, and the one for other systems, which can't be told to stop.
fn streams(site: &Site, least: usize, pause_ms: u64) -> [Stream; 2] {
    let pause = Duration::from_millis(pause_ms);
    [SLOTS, COMMANDS].map(|exchange| Stream::start_over(site, exchange, 6, least, pause))
}

async fn end(streams: [Stream; 2]) -> Result<Accepted> {
    let [ours, theirs] = streams;
    Ok(ours.end().await?.and(theirs.end().await?))
}

async fn receipts(site: &Site) -> Result<i64> {
    site.count("SELECT count(*) FROM receipts").await
}

async fn more_receipts(site: &Site) -> Result {
    let before = receipts(site).await?;
    wait::until("more commands are applied", async || Ok(receipts(site).await? >= before + 50)).await
}

/// Nothing is left of the queues of former numbers.
async fn no_old_queue(site: &Site) -> Result {
    let there = site.partitions().await?;
    for index in 0..8 {
        for alternate in [false, true] {
            for low in [false, true] {
                let partition = taskflow_core::partition::Partition { low, index, alternate };
                let found = site.link.find(&partition.queue()).await?.is_some();
                ensure!(found == there.contains(&partition), "{}: {found}", partition.queue());
            }
        }
    }
    Ok(())
}

async fn up_and_down(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let workers = [cluster.worker()?, cluster.worker()?];
    let streams = streams(&site, 30, 10);
    more_receipts(&site).await?;
    for words in [["6", "--low", "3"], ["3", "--low", "3"], ["4", "--low", "1"]] {
        set(&cluster, &words).await?;
        no_old_queue(&site).await?;
        more_receipts(&site).await?;
    }
    let (code, shown) = partitions(&cluster, &["show"]).await?;
    ensure!(code == Some(0) && shown["partitions"] == 4 && shown["lowpartitions"] == 1, "{shown}");
    ensure!(shown["queues"].as_array().is_some_and(|queues| queues.len() == 5), "{shown}");
    // What is set already is done.
    set(&cluster, &["4"]).await?;
    let accepted = end(streams).await?;
    promise::check(&site, &accepted).await?;
    ensure!(site.count("SELECT count(*) FROM dead_letters").await? == 0, "something was not routed");
    for worker in workers {
        worker.stop().await?;
    }
    Ok(())
}

/// One change, and at every boundary of its steps the only worker dies; the next one goes on with it.
async fn workers_die(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // Slow: what came back from dying workers is applied one by one.
    let streams = streams(&site, 20, 200);
    let mut worker = cluster.crashing_worker(&format!("{}:1", CHANGE_POINTS[0]))?;
    more_receipts(&site).await?;
    // The command itself dies as soon as it has asked.
    let mut asked = cluster.command(&["partitions", "set", "6"], &[("TASKFLOW_CRASH_AT", "change_asked:1")]);
    ensure!(asked.status().await?.signal() == Some(9), "the command lives");
    for point in CHANGE_POINTS.iter().skip(1).map(Some).chain([None]) {
        let status = worker.ended().await?;
        ensure!(status.signal() == Some(9), "it ended with {status}:\n{}", worker.log());
        worker = match point {
            Some(point) => cluster.crashing_worker(&format!("{point}:1"))?,
            None => cluster.worker()?,
        };
    }
    wait::until("the change is at its end", async || Ok(site.course().await?.is_settled())).await?;
    no_old_queue(&site).await?;
    more_receipts(&site).await?;
    promise::check(&site, &end(streams).await?).await?;
    worker.stop().await
}

/// One change, and at every boundary of its steps the command dies; no worker is there to help.
async fn commands_die(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    for point in ["change_asked"].iter().chain(&CHANGE_POINTS) {
        let at = format!("{point}:1");
        let output =
            cluster.run(&["partitions", "set", "7", "--low", "2"], &[("TASKFLOW_CRASH_AT", &at)]).await?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.signal() == Some(9), "{point}: it ended with {}: {told}", output.status);
        // Half done is never silent.
        let (_, shown) = partitions(&cluster, &["show"]).await?;
        ensure!(shown["phase"] != "settled", "after {point}: {shown}");
        let (code, refused) = partitions(&cluster, &["set", "5"]).await?;
        ensure!(code == Some(1) && refused["error"].is_string(), "after {point}: {code:?} {refused}");
        if *point == "change_switched" {
            late(&site).await?;
        }
    }
    set(&cluster, &["7", "--low", "2"]).await?;
    no_old_queue(&site).await?;
    let streams = streams(&site, 5, 0);
    let worker = cluster.worker()?;
    let mut accepted = end(streams).await?;
    accepted.others = 1;
    promise::check(&site, &accepted).await?;
    worker.stop().await
}

/// A message comes to an old queue when new ones are consumed already. It is for a task that is not there, so it changes
/// nothing.
async fn late(site: &Site) -> Result {
    let old = site.course().await?.leaving()[0].queue();
    let channel = site.link.channel().await?;
    let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(old.as_str().into(), SLOTS.into(), "00".into(), options, arguments).await?;
    publish(site, command("task.update", subject_in_slot(0), json!({ "title": "late" }))).await?;
    wait::until("it has come", async || Ok(site.link.depth(&old).await?.ready == 1)).await
}

async fn publish(site: &Site, value: Value) -> Result<Uuid> {
    let command = envelope::read(value)?;
    site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
    Ok(command.id)
}

async fn waiting_moves(site: Arc<Site>) -> Result {
    const SCHEDULED: i64 = 12_000;
    let cluster = cluster(&site)?;
    // Patient: the test decides when the user comes.
    let patient = [("TASKFLOW_WORKER__PATIENCE__UNKNOWN_USER_MS", "120000")];
    let worker = cluster.spawn("worker", &patient)?;
    let ada = id();
    let mut lines = Vec::new();
    for _ in 0..12 {
        let task = id();
        let mut line =
            vec![publish(&site, command_of(ada, "task.create", task, json!({ "title": "1" }))).await?];
        for version in 1..4 {
            let data = json!({ "title": format!("more {version}"), "expectedversion": version });
            line.push(publish(&site, command("task.update", task, data)).await?);
        }
        lines.push(line);
    }
    wait::until("they are parked", async || {
        Ok(site.count("SELECT count(*) FROM waiting_commands").await? == 48)
    })
    .await?;
    // More than one page of those that wait for their time, as if they had been sent.
    site.sql(&format!(
        "INSERT INTO waiting_commands (id, partition, subject, state, attempts, since, due_at, accepted_at, fingerprint, body)
         SELECT gen_random_uuid(), 'low.00', gen_random_uuid(), 'scheduled', 0, now(), now() + interval '1 day', now(),
                decode(repeat('00', 16), 'hex'), 'x' FROM generate_series(1, {SCHEDULED})"
    ))
    .await?;
    set(&cluster, &["11", "--low", "12"]).await?;
    let misplaced = "SELECT count(*) FROM waiting_commands WHERE partition <> CASE state WHEN 'scheduled'
        THEN 'low.' || lpad((get_byte(uuid_send(subject), 15) % 12)::text, 2, '0')
        ELSE lpad((get_byte(uuid_send(subject), 15) % 11)::text, 2, '0') END";
    ensure!(site.count(misplaced).await? == 0, "some wait in the wrong partition");
    ensure!(site.count("SELECT count(*) FROM waiting_commands").await? == 48 + SCHEDULED, "some are gone");
    publish(
        &site,
        command_of(ada, "user.register", ada, json!({ "email": "a@example.org", "passwordhash": HASH })),
    )
    .await?;
    for line in lines {
        for (index, id) in line.iter().enumerate() {
            let applied = format!(
                "SELECT count(*) FROM receipts WHERE id = '{id}' AND outcome = 'applied' AND version = {}",
                index + 1
            );
            wait::until("the line is applied in order", async || Ok(site.count(&applied).await? == 1))
                .await?;
        }
    }
    worker.stop().await
}

async fn says_why(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let paused = cluster.run(&["pause", "--partition", "03", "--reason", "a test"], &[]).await?;
    ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    wait::until("it is paused", async || Ok(worker.log().contains("The partition is paused"))).await?;
    let subject = subject_in_slot(3);
    let waits = publish(&site, command("task.create", subject, json!({ "title": "waits" }))).await?;
    let (code, told) = partitions(&cluster, &["set", "3", "--wait", "1"]).await?;
    ensure!(code == Some(1) && told["phase"] != "settled", "{code:?} {told}");
    wait::until("it drains", async || Ok(site.course().await?.phase == Phase::Draining)).await?;
    // Asked for again, it is watched.
    let (code, told) = partitions(&cluster, &["set", "3", "--wait", "1"]).await?;
    let reasons = told["waits"].as_str().unwrap_or_default();
    ensure!(code == Some(1) && told["phase"] == "draining", "{code:?} {told}");
    ensure!(reasons.contains("1 messages") && reasons.contains("partition:03"), "{told}");
    for (words, expected) in [(["set", "0"], 2), (["set", "257"], 2), (["set", "many"], 2)] {
        let output = cluster.run(&[&["partitions"], words.as_slice()].concat(), &[]).await?;
        ensure!(output.status.code() == Some(expected), "{words:?}: {}", output.status);
    }
    let away = [("TASKFLOW_POSTGRES__URL", "postgres://127.0.0.1:1/none")];
    let output = cluster.run(&["partitions", "show"], &away).await?;
    ensure!(output.status.code() == Some(69), "Postgres is away: {}", output.status);
    // It goes on by itself, and the pause ends with its partition.
    let resumed = cluster.run(&["resume", "--partition", "03"], &[]).await?;
    ensure!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    wait::until("the change is at its end", async || Ok(site.course().await?.is_settled())).await?;
    let applied = format!("SELECT count(*) FROM receipts WHERE id = '{waits}' AND outcome = 'applied'");
    ensure!(site.count(&applied).await? == 1, "it was passed over");
    // A pause of a partition that vanishes ends with it.
    let paused = cluster.run(&["pause", "--partition", "02", "--reason", "a test"], &[]).await?;
    ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
    set(&cluster, &["2"]).await?;
    ensure!(site.count("SELECT count(*) FROM pauses").await? == 0, "a partition that is not there is paused");
    worker.stop().await
}

async fn database_wins(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_AMQP__PARTITIONS", "9")])?;
    wait::until("it holds the partitions", async || {
        Ok(site.count("SELECT count(*) FROM partition_leases").await? == 5)
    })
    .await?;
    let log = worker.log();
    ensure!(log.matches("only for a fresh deployment").count() == 1, "it does not say so once:\n{log}");
    ensure!(site.link.find("taskflow.commands.08").await?.is_none(), "the settings' queues were declared");
    worker.stop().await
}

async fn looked_into(site: Arc<Site>) -> Result {
    /// More than a consumer holds: only then does what one gives back go behind what another has given back.
    const MESSAGES: usize = 700;
    let partition = site.course().await?.to.in_slot(false, 1);
    let prefetch = consume::prefetch(1);
    let is_empty = async || topology::is_empty(&site.link, partition, prefetch).await;
    ensure!(is_empty().await?, "something is in a new queue");
    let mut confirms = Vec::new();
    let mut sent = Vec::new();
    for _ in 0..MESSAGES {
        let create = command("task.create", subject_in_slot(1), json!({ "title": "stays" }));
        let create = envelope::read(create)?;
        confirms.push(site.publisher.send(Message::command(&create, clock::now(), None)).await?);
        sent.push(create.id);
    }
    for confirm in confirms {
        confirm.confirmed().await?;
    }
    let open = async || -> Result<Subscription> {
        let opened = Subscription::open(&site.link, partition, prefetch, &CancellationToken::new()).await?;
        opened.subscription().context("no subscription")
    };
    for _ in 0..3 {
        // Somebody has as many as it can hold, and gives them back.
        let mut holder = open().await?;
        for _ in 0..prefetch {
            holder.next().await?;
        }
        holder.release().await;
        ensure!(!is_empty().await?, "the queue is said to be empty");
    }
    let mut last = open().await?;
    for (place, id) in sent.iter().enumerate() {
        let delivery = last.next().await?;
        let body: Value = serde_json::from_slice(delivery.body())?;
        ensure!(body["id"] == id.to_string(), "{body} stands at {place}");
        delivery.ack_through().await?;
        if place == MESSAGES - 100 {
            // Somebody holds all that is left: nothing is ready, and it is not empty.
            wait::until("nothing is ready", async || {
                Ok(site.link.depth(&partition.queue()).await?.ready == 0)
            })
            .await?;
            ensure!(!is_empty().await?, "the queue is said to be empty while somebody holds what is in it");
        }
    }
    last.release().await;
    Ok(())
}
