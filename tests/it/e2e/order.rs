//! Order under a stream of dependent updates, while workers come and go.

use std::sync::Arc;

use libtest_mimic::Trial;
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, sharing, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("dependent updates apply in order", in_order),
        with_site("order holds while workers come and go", coming_and_going),
    ]
}

async fn in_order(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let accepted = Stream::start(&site, 16, 60).end().await?;
    promise::check(&site, &accepted).await?;
    worker.stop().await
}

async fn coming_and_going(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let first = cluster.worker()?;
    let stream = Stream::start(&site, 16, 40);
    applied(&site, 100).await?;
    let second = sharing(&site, &cluster, &[]).await?;
    first.stop().await?;
    let now = site.count("SELECT count(*) FROM receipts").await?;
    applied(&site, now + 200).await?;
    let third = cluster.worker()?;
    second.kill().await?;
    let now = site.count("SELECT count(*) FROM receipts").await?;
    applied(&site, now + 200).await?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    third.stop().await
}

async fn applied(site: &Site, count: i64) -> Result {
    wait::until("more commands are applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? >= count)
    })
    .await
}
