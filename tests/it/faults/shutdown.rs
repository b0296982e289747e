//! A polite stop under load.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::json;
use taskflow_tests::commands::{command, id, ndjson};
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("workers that are stopped under load lose nothing", workers),
        with_site("an API that is stopped under load answers what it has taken", api),
    ]
}

async fn workers(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let stream = Stream::start(&site, 12, 40);
    for _ in 0..3 {
        let before = site.count("SELECT count(*) FROM receipts").await?;
        let worker = cluster.worker()?;
        wait::until("it applies commands", async || {
            Ok(site.count("SELECT count(*) FROM receipts").await? >= before + 60)
        })
        .await?;
        worker.stop().await?;
        ensure!(site.count("SELECT count(*) FROM partition_leases").await? == 0, "it kept a lease");
        ensure!(
            site.count("SELECT count(*) FROM outbox").await? == 0,
            "it left before its events had arrived"
        );
    }
    let worker = cluster.worker()?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    worker.stop().await
}

async fn api(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let sender = tokio::spawn(async move {
        let mut accepted = 0;
        // Until the server is gone.
        loop {
            let commands: Vec<_> =
                (0..200).map(|_| command("task.create", id(), json!({ "title": "x" }))).collect();
            match admin.send("application/x-ndjson", ndjson(&commands)).await {
                Ok((202, answer)) => accepted += answer["accepted"].as_i64().unwrap_or(0),
                _ => return accepted,
            }
        }
    });
    wait::until("commands are applied", async || Ok(site.count("SELECT count(*) FROM tasks").await? > 500))
        .await?;
    api.stop().await?;
    let accepted = sender.await?;
    wait::until("everything that was accepted is applied", async || {
        Ok(site.count("SELECT count(*) FROM tasks").await? >= accepted)
    })
    .await?;
    worker.stop().await
}
