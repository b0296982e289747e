//! Upkeep of a store gives way to the load of that store, not of Postgres alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_tests::{Cluster, Result, Site, wait};
use tokio::task::JoinSet;

use super::led;
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("maintenance of MongoDB gives way while MongoDB is busy", mongodb),
        with_site("maintenance of Redis gives way while Redis is busy", redis),
    ]
}

/// Clients that keep a store busy until they are told to stop.
struct Load {
    clients: JoinSet<Result>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start<F>(clients: usize, work: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result> + Send + 'static,
    {
        let (stop, work) = (Arc::new(AtomicBool::new(false)), Arc::new(work));
        let client = |_| {
            let (stop, work) = (Arc::clone(&stop), Arc::clone(&work));
            async move {
                while !stop.load(Ordering::Relaxed) {
                    work().await?;
                }
                Ok(())
            }
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    async fn stop(mut self) -> Result {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// A run that is asked for while a store is busy waits, says for what, has done nothing yet; later it ends.
async fn yields(cluster: &Cluster<'_>, site: &Site, job: &str, load: Load, why: &str, deed: &str) -> Result {
    let asked = cluster.run(&["jobs", "run", job, "--no-wait", "--json"], &[]).await?;
    let asked: Value = serde_json::from_slice(&asked.stdout)?;
    let is = |what: &str| format!("SELECT count(*) FROM job_runs WHERE id = {} AND {what}", asked["run"]);
    let waits = is(&format!(
        "state = 'running' AND (figures ->> 'yielded_s')::int > 0 AND log::text LIKE '%gives way: %{why}%'
         AND figures -> '{deed}' IS NULL AND figures -> 'load_unknown' IS NULL"
    ));
    wait::until("it gives way", async || Ok(site.count(&waits).await? == 1)).await?;
    load.stop().await?;
    let done = is(&format!("state = 'completed' AND figures -> '{deed}' IS NOT NULL"));
    wait::until("it goes on", async || Ok(site.count(&done).await? == 1)).await
}

async fn mongodb(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let scheduler = cluster.spawn("scheduler", &[("TASKFLOW_SCHEDULER__YIELD_MONGODB_CLIENTS", "5")])?;
    led(&site).await?;
    let ballast = site.mongo.collection::<Document>("ballast");
    let documents = (0..20_000).map(|number| doc! { "number": number, "text": "ballast" });
    ballast.insert_many(documents.collect::<Vec<_>>()).await?;
    // No index serves it: each call reads all of it.
    let load = Load::start(12, move || {
        let ballast = ballast.clone();
        async move {
            ballast.count_documents(doc! { "number": { "$mod": [7, 3] } }).await.map(drop).context("count")
        }
    });
    yields(&cluster, &site, "maintenance.mongodb", load, "operations work or wait in MongoDB", "validate")
        .await?;
    scheduler.stop().await
}

async fn redis(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let scheduler = cluster.spawn("scheduler", &[("TASKFLOW_SCHEDULER__YIELD_REDIS_CALLS", "5000")])?;
    led(&site).await?;
    let connection = redis::Client::open(site.redis_url.as_str())?.get_multiplexed_async_connection().await?;
    let load = Load::start(4, move || {
        let mut connection = connection.clone();
        async move {
            let mut pings = redis::pipe();
            for _ in 0..500 {
                pings.cmd("PING").ignore();
            }
            pings.query_async::<()>(&mut connection).await.context("ping")
        }
    });
    site.redis_set("a key", "kept").await?;
    yields(&cluster, &site, "maintenance.redis", load, "calls a second", "log_rewritten").await?;
    ensure!(site.cached("a key").await?.as_deref() == Some("kept"), "upkeep has removed a key");
    // Without a busy store it does not wait at all.
    let again = super::run(&cluster, &["maintenance.redis"]).await?;
    ensure!(again["state"] == "completed", "{again}");
    scheduler.stop().await
}
