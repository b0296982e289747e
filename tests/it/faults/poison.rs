//! A message that kills every worker that reads it.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::json;
use taskflow_core::envelope;
use taskflow_stores::clock;
use taskflow_stores::rabbit::publish::Message;
use taskflow_tests::commands::{command, subject_in_slot};
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

/// Two crashes until it is suspected, three alone; one more for a crash that comes before the broker has counted.
const CRASHES_MAX: usize = 6;

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("a message that kills its readers is found, its neighbours apply", poison)]
}

async fn poison(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let stream = Stream::start(&site, 12, 20);
    let value = command("task.create", subject_in_slot(0), json!({ "title": "the pill" }));
    let pill = envelope::read(value)?;
    site.publisher.publish(Message::command(&pill, clock::now(), None)).await?;
    let deadly = ("TASKFLOW_CRASH_ON", "the pill");
    let dead = format!(
        "SELECT count(*) FROM receipts WHERE id = '{}' AND outcome = 'dead' AND code = 'poison'",
        pill.id
    );
    let mut crashes = 0;
    let worker = loop {
        let mut worker = cluster.spawn("worker", &[deadly])?;
        wait::until("it dies, or the message does", async || {
            Ok(!worker.is_running() || site.count(&dead).await? > 0)
        })
        .await?;
        if worker.is_running() {
            break worker;
        }
        let status = worker.ended().await?;
        crashes += 1;
        ensure!(status.signal() == Some(6), "it ended with {status}:\n{}", worker.log());
        ensure!(crashes <= CRASHES_MAX, "{crashes} workers have died of one message");
    };
    ensure!(crashes >= 3, "it was given up after {crashes} crashes");
    let mut accepted = stream.end().await?;
    accepted.others = 1;
    // All others apply, and none of them was charged.
    promise::check(&site, &accepted).await?;
    ensure!(site.count("SELECT count(*) FROM suspects").await? == 0, "somebody is still suspected");
    worker.stop().await
}
