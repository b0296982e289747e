//! A worker that dies (SIGKILL) at each boundary between the steps of a batch, in the middle of a stream. What it has
//! left can be sealed: the chains and the audit trail agree.

use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Result, Site};

use crate::e2e::audit;
use crate::{cluster, with_site};

/// The boundaries, and which pass of each ends the process: not the first, so that there is a middle.
const POINTS: [(&str, u32); 9] = [
    ("collected", 4),
    ("claimed", 5),
    ("loaded", 6),
    ("written", 4),
    ("committed", 5),
    ("kept", 4),
    ("acknowledged", 4),
    ("audited", 3),
    ("relayed", 7),
];

pub(crate) fn tests() -> Vec<Trial> {
    POINTS
        .into_iter()
        .map(|(point, pass)| {
            let name = format!("a worker that dies when it has {point} loses, doubles and reorders nothing");
            with_site(&name, async move |site| dies(site, point, pass).await)
        })
        .collect()
}

async fn dies(site: Arc<Site>, point: &str, pass: u32) -> Result {
    let cluster = cluster(&site)?;
    let stream = Stream::start(&site, 12, 30);
    // Twice, with a whole one after it: what one left behind must not trip the next.
    for round in 0..2 {
        let mut worker = cluster.crashing_worker(&format!("{point}:{}", pass + round))?;
        let status = worker.ended().await?;
        ensure!(status.signal() == Some(9), "it ended with {status}:\n{}", worker.log());
    }
    let worker = cluster.worker()?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    audit::is_whole(&site, worker).await
}
