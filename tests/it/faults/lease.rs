//! A worker that is stopped (SIGSTOP) for longer than its lease and then goes on: another one has its partitions by
//! then, and what it holds must not last.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("a worker that sleeps longer than its lease can commit nothing", sleeper)]
}

async fn sleeper(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let sleeper = cluster.worker()?;
    let stream = Stream::start(&site, 12, 40);
    applied(&site, 60).await?;
    let held = "SELECT count(*) FROM partition_leases WHERE expires_at > now()";
    sleeper.signal(Signal::SIGSTOP)?;
    wait::until("its leases have run out", async || Ok(site.count(held).await? == 0)).await?;
    // The broker ends its connection by and by; the successor waits for that, and its first batch for the old one's.
    let successor = cluster.worker()?;
    let epochs = "SELECT min(epoch) FROM partition_heads";
    wait::until("another has them", async || Ok(site.count(epochs).await? >= 2)).await?;
    sleeper.signal(Signal::SIGCONT)?;
    let now = site.count("SELECT count(*) FROM receipts").await?;
    applied(&site, now + 100).await?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    ensure!(!sleeper.log().contains("panicked"), "{}", sleeper.log());
    sleeper.stop().await?;
    successor.stop().await
}

async fn applied(site: &Site, count: i64) -> Result {
    wait::until("more commands are applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? >= count)
    })
    .await
}
