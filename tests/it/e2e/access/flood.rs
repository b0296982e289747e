//! One noisy source does not keep the others out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{USER, id, ndjson};
use taskflow_tests::{Result, Site, World, wait};

use super::new_key;
use crate::{cluster, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_world("access: a source that sends without end leaves the broker's way open to others", flood)]
}

fn create(source: &str) -> Value {
    json!({
        "specversion": "1.0", "id": id(), "source": source, "type": "task.create", "subject": id(),
        "actorid": USER, "data": { "title": "one of many" },
    })
}

/// The broker stands still, so that nothing on the way arrives: what a source has taken by then is its share.
async fn flood(world: &World) -> Result {
    let site = Site::new(world).await?;
    let cluster = cluster(&site)?;
    // Long enough for the test to look around meanwhile.
    let (_api, client) = cluster.api_with(&[("TASKFLOW_AMQP__CONFIRM_TIMEOUT_MS", "60000")]).await?;
    let admin = client.admin().await?;
    let (_, noisy) = new_key(&admin, &["commands:write"], Some("/noisy")).await?;
    let (_, quiet) = new_key(&admin, &["commands:write"], Some("/quiet")).await?;
    let on_the_way = async || -> Result<f64> {
        let metrics = client.get("/metrics").await?.text().await?;
        let line = metrics.lines().find_map(|line| line.strip_prefix("taskflow_publish_in_flight "));
        Ok(line.and_then(|count| count.parse().ok()).unwrap_or_default())
    };
    world.servers.lock().await.rabbitmq.pause();
    let stopped = Arc::new(AtomicUsize::new(0));
    let mut floods = Vec::new();
    for _ in 0..12 {
        let (noisy, stopped) = (noisy.clone(), Arc::clone(&stopped));
        let body = ndjson(&(0..1_000).map(|_| create("/noisy")).collect::<Vec<_>>());
        floods.push(tokio::spawn(async move {
            let _ = noisy.send("application/x-ndjson", body).await;
            stopped.fetch_add(1, Ordering::SeqCst);
        }));
    }
    // One source alone has half of 8,192.
    wait::until("the noisy source has its share", async || Ok(on_the_way().await? >= 4_096.0)).await?;
    let one = tokio::spawn({
        let quiet = quiet.clone();
        async move { quiet.send("application/json", create("/quiet").to_string()).await }
    });
    wait::until("the quiet source's command is on its way", async || Ok(on_the_way().await? >= 4_097.0))
        .await?;
    ensure!(on_the_way().await? <= 4_097.0, "the noisy source has more than its share");
    ensure!(stopped.load(Ordering::SeqCst) == 0, "a flood has ended before the broker went on");
    world.servers.lock().await.rabbitmq.resume();
    let (status, answer) = tokio::time::timeout(Duration::from_secs(60), one).await???;
    ensure!(status == 202, "{status} {answer}");
    for flood in floods {
        tokio::time::timeout(Duration::from_secs(60), flood).await??;
    }
    Ok(())
}
