//! A message that kills every worker that reads it.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use taskflow_core::command::digest;
use taskflow_core::{Command, envelope};
use taskflow_stores::clock;
use taskflow_stores::postgres::suspects;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use taskflow_tests::commands::{HASH, command, command_of, id, subject_in_slot};
use taskflow_tests::promise::{self, Accepted, Stream};
use taskflow_tests::{Process, Result, Site, letters, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

/// One crash until it is suspected, one together with its neighbours, three alone; some more for crashes that come before
/// the broker has counted, of workers that follow each other on a busy machine.
const CRASHES_MAX: usize = 8;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a message that kills its readers is found, its neighbours apply", async |site| {
            poison(site, "the pill", Signal::SIGABRT).await
        }),
        with_site("a message that kills is found while some type is paused, too", async |site| {
            let pause = ["pause", "--type", "user.record_logout", "--reason", "a test"];
            let paused = cluster(&site)?.run(&pause, &[]).await?;
            ensure!(paused.status.success(), "{}", String::from_utf8_lossy(&paused.stderr));
            poison(site, "the pill", Signal::SIGABRT).await
        }),
        with_site(
            "a message that exhausts its readers' memory is found, its neighbours apply",
            async |site| poison(site, "kill:the pill", Signal::SIGKILL).await,
        ),
        with_site("a message that hangs its readers is found, its neighbours apply", async |site| {
            poison(site, "hang:the pill", Signal::SIGABRT).await
        }),
        with_site("a message of which its readers panic is found, its neighbours apply", panics),
        with_site(
            "a command that waits and then kills its readers is found, its neighbours apply",
            waits_and_kills,
        ),
        with_site("who is tried alone whenever a message kills is not condemned with it", beside),
        with_site("who is tried by holders that only lose their leases is not condemned", acquitted),
    ]
}

/// Such a worker ends after fifteen seconds.
const HUNG: (&str, &str) = ("TASKFLOW_WORKER__STUCK_AFTER_MS", "3000");

/// Messages that every reader of the deadly one has in hand before it.
const AHEAD: usize = 3;

/// Sends them; returns what was accepted.
async fn go_ahead(site: &Site) -> Result<Accepted> {
    let mut accepted = Accepted::default();
    for _ in 0..AHEAD {
        let subject = subject_in_slot(0);
        let command = envelope::read(command("task.create", subject, json!({ "title": "version 1" })))?;
        site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
        accepted.subjects.insert(subject, vec![command.id]);
    }
    Ok(accepted)
}

/// All who were with it were applied, and none of them has become a letter.
async fn only_one_is_dead(site: &Site) -> Result {
    wait::until("the dead letters are drained", async || {
        let letters = site.count("SELECT count(*) FROM dead_letters").await?;
        Ok(letters > 0 && site.link.depth(DEAD_LETTERS).await?.ready == 0)
    })
    .await?;
    let letters = site.count("SELECT count(*) FROM dead_letters").await?;
    ensure!(letters == 1, "{letters} letters: neighbours were condemned with it");
    Ok(())
}

/// Sends it; returns what counts it when it is dead.
async fn pill(site: &Site, slot: u8) -> Result<String> {
    let value = command("task.create", subject_in_slot(slot), json!({ "title": "the pill" }));
    swallow(site, &envelope::read(value)?).await
}

async fn swallow(site: &Site, pill: &Command) -> Result<String> {
    site.publisher.publish(Message::command(pill, clock::now(), None)).await?;
    Ok(format!(
        "SELECT count(*) FROM receipts WHERE id = '{}' AND outcome = 'dead' AND code = 'poison'",
        pill.id
    ))
}

/// The process lives and its task ends: nobody is needed to start a worker again.
async fn panics(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let ahead = go_ahead(&site).await?;
    let stream = Stream::start(&site, 12, 20);
    let pill = envelope::read(command("task.create", subject_in_slot(0), json!({ "title": "the pill" })))?;
    let dead = swallow(&site, &pill).await?;
    let since = clock::now();
    let mut worker = cluster.spawn("worker", &[("TASKFLOW_CRASH_ON", "panic:the pill")])?;
    wait::until("the message is dead", async || {
        ensure!(worker.is_running(), "the worker has ended:\n{}", worker.log());
        Ok(site.count(&dead).await? > 0)
    })
    .await?;
    let mut accepted = stream.end().await?.and(ahead);
    accepted.others = 1;
    promise::check(&site, &accepted).await?;
    forgotten(&site, &worker, since).await?;
    only_one_is_dead(&site).await?;
    worker.stop().await?;

    // Sent again, to one that can read it: it is known, and no other command under a known id.
    let worker = cluster.worker()?;
    swallow(&site, &pill).await?;
    let after = command("task.create", subject_in_slot(0), json!({ "title": "after it" }));
    letters::publish(&site, &after).await?;
    site.until_told(&[after]).await?;
    only_one_is_dead(&site).await.context("it is taken for another command")?;
    ensure!(site.count(&dead).await? == 1, "its receipt has changed");
    worker.stop().await
}

/// Nobody is suspected any more of those whom this worker has tried. Those who died may have left suspicions of what they
/// had just acknowledged, and so may it, if it lost a lease in that moment; they harm nobody.
async fn forgotten(site: &Site, worker: &Process, since: DateTime<Utc>) -> Result {
    let charged = site.count("SELECT count(*) FROM suspects WHERE tries > 1").await?;
    ensure!(charged <= 1, "{charged} were tried alone again and again");
    wait::until("what was tried is forgotten", async || {
        if worker.log().contains("The lease is gone") {
            return Ok(true);
        }
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM suspects WHERE last_tried_at > $1")
            .bind(since)
            .fetch_one(&site.postgres)
            .await?;
        Ok(left == 0)
    })
    .await
}

async fn poison(site: Arc<Site>, way: &str, by: Signal) -> Result {
    let cluster = cluster(&site)?;
    let ahead = go_ahead(&site).await?;
    let stream = Stream::start(&site, 12, 20);
    let dead = pill(&site, 0).await?;
    let deadly = ("TASKFLOW_CRASH_ON", way);
    let mut crashes = 0;
    let (mut worker, since) = loop {
        let since = clock::now();
        // One thread, as on a small machine: while it hangs, no task of the process can see that.
        let env = [deadly, ("TASKFLOW_THREADS", "1"), HUNG];
        let mut worker = cluster.spawn("worker", if way.starts_with("hang:") { &env } else { &env[..1] })?;
        wait::until("it dies, or the message does", async || {
            Ok(!worker.is_running() || site.count(&dead).await? > 0)
        })
        .await?;
        if worker.is_running() {
            break (worker, since);
        }
        let status = worker.ended().await?;
        crashes += 1;
        ensure!(status.signal() == Some(by as i32), "it ended with {status}:\n{}", worker.log());
        ensure!(crashes <= CRASHES_MAX, "{crashes} workers have died of one message");
    };
    ensure!(crashes >= 3, "it was given up after {crashes} crashes");
    let mut accepted = stream.end().await?.and(ahead);
    accepted.others = 1;
    // All others apply, none of them was charged, and nobody else dies.
    tokio::select! {
        kept = promise::check(&site, &accepted) => kept?,
        status = worker.end() => bail!("the message is dead, and a worker died all the same: {}", status?),
    }
    forgotten(&site, &worker, since).await?;
    only_one_is_dead(&site).await?;
    worker.stop().await
}

/// A command that can't come to its end (its task's row is locked) while, in another partition, a message kills one worker
/// after the other. Both are tried alone at every start.
async fn beside(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    // A worker begins with the first partition: the pill's is the last.
    let task = subject_in_slot(0);
    let send = async |value: Value| -> Result<Uuid> {
        let command = envelope::read(value)?;
        site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
        Ok(command.id)
    };
    let made = send(command("task.create", task, json!({ "title": "a bystander" }))).await?;
    let applied =
        |id: Uuid| format!("SELECT count(*) FROM receipts WHERE id = '{id}' AND outcome = 'applied'");
    wait::until("its task is made", async || Ok(site.count(&applied(made)).await? == 1)).await?;
    worker.stop().await?;
    let bystander = send(command("task.update", task, json!({ "title": "still a bystander" }))).await?;
    let dead = pill(&site, 3).await?;
    let mut lock = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::query("SET LOCAL idle_in_transaction_session_timeout = 0").execute(&mut *lock).await?;
    sqlx::query("SELECT 1 FROM tasks WHERE id = $1 FOR UPDATE").bind(task).execute(&mut *lock).await?;
    let mut crashes = 0;
    let worker = loop {
        let mut worker = cluster.spawn("worker", &[("TASKFLOW_CRASH_ON", "the pill")])?;
        wait::until("it dies, or the message does", async || {
            Ok(!worker.is_running() || site.count(&dead).await? > 0)
        })
        .await?;
        if worker.is_running() {
            break worker;
        }
        crashes += 1;
        ensure!(crashes <= CRASHES_MAX, "{crashes} workers have died of one message");
    };
    lock.rollback().await?;
    wait::until("the bystander is applied", async || Ok(site.count(&applied(bystander)).await? == 1)).await?;
    wait::until("the one letter is kept", async || {
        Ok(site.count("SELECT count(*) FROM dead_letters").await? == 1)
    })
    .await?;
    worker.stop().await
}

async fn acquitted(site: Arc<Site>) -> Result {
    let (postgres, partition) = (&site.postgres, "00");
    let [alone, together] = [b"alone", b"among"].map(|body| digest(body));
    suspects::note_together(postgres, &[alone], partition, 1).await?;
    for epoch in 2..12 {
        let known = suspects::note_together(postgres, &[alone, together], partition, epoch).await?;
        ensure!(known == HashMap::from([(alone, 0)]), "epoch {epoch}: {} are tried alone", known.len());
        let tries = suspects::note_try(postgres, alone, partition, epoch).await?;
        ensure!(tries == 1, "epoch {epoch}: try {tries}");
        suspects::acquit(postgres, partition, epoch).await?;
        // A later holder's are not this one's to take back.
        suspects::acquit(postgres, partition, epoch - 1).await?;
    }
    suspects::note_try(postgres, alone, partition, 12).await?;
    let tries = suspects::note_try(postgres, alone, partition, 13).await?;
    ensure!(tries == 2, "who dies is charged: {tries}");
    Ok(())
}

/// A line of parked commands whose second one kills whoever reads it when it is due, and a scheduled one that does; each
/// with neighbours that are due with it.
async fn waits_and_kills(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let patient = ("TASKFLOW_WORKER__PATIENCE__UNKNOWN_USER_MS", "120000");
    let worker = cluster.spawn("worker", &[patient])?;
    let ada = id();
    let send = async |value: Value| -> Result<Uuid> {
        let command = envelope::read(value)?;
        site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
        Ok(command.id)
    };
    let soon = (clock::now() + TimeDelta::seconds(12)).to_rfc3339_opts(SecondsFormat::Millis, true);
    let (line, mut neighbours) = (subject_in_slot(0), Vec::new());
    neighbours.push(send(command_of(ada, "task.create", line, json!({ "title": "one" }))).await?);
    let first_pill = send(command("task.update", line, json!({ "title": "the pill" }))).await?;
    neighbours
        .push(send(command("task.update", line, json!({ "title": "two", "expectedversion": 1 }))).await?);
    let scheduled = async |title: &str| -> Result<Uuid> {
        let mut value = command("task.create", subject_in_slot(4), json!({ "title": title }));
        value["notbefore"] = json!(soon);
        send(value).await
    };
    neighbours.push(scheduled("a neighbour").await?);
    let second_pill = scheduled("the pill again").await?;
    neighbours.push(scheduled("another neighbour").await?);
    wait::until("all wait", async || Ok(site.count("SELECT count(*) FROM waiting_commands").await? == 6))
        .await?;
    worker.stop().await?;
    // Now the user comes: the line is due, and so are, in a moment, the scheduled ones.
    let register = json!({ "email": "ada@example.org", "passwordhash": HASH });
    send(command_of(ada, "user.register", ada, register)).await?;
    let dead = format!(
        "SELECT count(*) FROM receipts WHERE id IN ('{first_pill}', '{second_pill}') AND outcome = 'dead' AND code = 'poison'"
    );
    let mut crashes = 0;
    let worker = loop {
        let mut worker = cluster.spawn("worker", &[patient, ("TASKFLOW_CRASH_ON", "the pill")])?;
        wait::until("it dies, or the commands do", async || {
            Ok(!worker.is_running() || site.count(&dead).await? == 2)
        })
        .await?;
        if worker.is_running() {
            break worker;
        }
        let status = worker.ended().await?;
        crashes += 1;
        ensure!(status.signal() == Some(6), "it ended with {status}:\n{}", worker.log());
        // For each of the two: two deaths until they are careful, three alone.
        ensure!(crashes <= 2 * 5, "{crashes} workers have died of two commands");
    };
    ensure!(crashes >= 2 + 3, "they were given up after {crashes} crashes");
    for id in neighbours {
        let applied = format!("SELECT count(*) FROM receipts WHERE id = '{id}' AND outcome = 'applied'");
        wait::until("the neighbour is applied", async || Ok(site.count(&applied).await? == 1)).await?;
    }
    wait::until("nobody is suspected, nobody waits", async || {
        let suspects = site.count("SELECT count(*) FROM suspects").await?;
        Ok(suspects + site.count("SELECT count(*) FROM waiting_commands").await? == 0)
    })
    .await?;
    wait::until("their letters are kept", async || {
        Ok(site.count("SELECT count(*) FROM dead_letters WHERE reason = 'poison'").await? == 2)
    })
    .await?;
    worker.stop().await
}
