//! A worker that is stopped (SIGSTOP) for longer than its lease and then goes on: another one has its partitions by
//! then, and what it holds must not last.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use taskflow_tests::harness::heads;
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Client, Result, Site, World, wait};

use crate::{cluster, sharing, with_site, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a worker that sleeps longer than its lease can commit nothing", sleeper),
        with_site("a worker that sleeps before it writes is fenced", async |site| {
            mid_batch(site, "loaded").await
        }),
        with_site("a worker that sleeps before it commits is fenced", async |site| {
            mid_batch(site, "written").await
        }),
        with_world("partitions change hands though MongoDB is away", handed_over),
    ]
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

/// Asleep in the middle of a batch, where only the fence in Postgres can tell that the lease is gone.
async fn mid_batch(site: Arc<Site>, point: &str) -> Result {
    let cluster = cluster(&site)?;
    let asleep = format!("stop:{point}:20");
    let listen = taskflow_tests::free_address()?;
    let env = [("TASKFLOW_CRASH_AT", asleep.as_str()), ("TASKFLOW_METRICS__LISTEN", listen.as_str())];
    let sleeper = cluster.spawn("worker", &env)?;
    let stream = Stream::start(&site, 12, 40);
    let status = format!("/proc/{}/status", sleeper.pid()?);
    wait::until("it sleeps", async || Ok(std::fs::read_to_string(&status)?.contains("State:\tT"))).await?;
    let held = "SELECT count(*) FROM partition_leases WHERE expires_at > now()";
    wait::until("its leases have run out", async || Ok(site.count(held).await? == 0)).await?;
    let successor = cluster.worker()?;
    // Also the one whose head or rows the sleeper has locked: Postgres ends what is silent for half a lease.
    all_go_on(&site).await?;
    sleeper.signal(Signal::SIGCONT)?;
    let client = Client::new(&format!("http://{listen}"))?;
    wait::until("its batch was refused or broken off", async || {
        let text = client.get("/metrics").await?.text().await?;
        let fenced = text.lines().find_map(|line| line.strip_prefix("taskflow_fenced_batches_total "));
        // Postgres ends a transaction that sleeps for longer than it bears; there is nothing left to refuse then.
        let of_postgres =
            |line: &str| line.contains("gives its messages back") && line.contains("error=postgres");
        let ended = sleeper.log().lines().any(of_postgres);
        Ok(ended || fenced.is_some_and(|fenced| fenced != "0"))
    })
    .await?;
    let now = site.count("SELECT count(*) FROM receipts").await?;
    applied(&site, now + 100).await?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    sleeper.stop().await?;
    successor.stop().await
}

/// Waits until every partition has applied a batch from now on.
async fn all_go_on(site: &Site) -> Result {
    let before = heads(site).await?;
    wait::until("all partitions go on", async || {
        // One that has had no batch yet is not among them.
        let begun =
            |name: &str| before.iter().find(|(known, _)| known == name).map_or(0, |(_, batch)| *batch);
        Ok(heads(site).await?.iter().all(|(name, batch)| begun(name) < *batch))
    })
    .await
}

/// The sinks of what is handed over can't finish; nobody waits for them.
async fn handed_over(world: &World) -> Result {
    let site = Site::new(world).await?;
    let cluster = cluster(&site)?;
    let patient = [("TASKFLOW_WORKER__DRAIN_MS", "600000")];
    let first = cluster.spawn("worker", &patient)?;
    let stream = Stream::start(&site, 12, 40);
    applied(&site, 60).await?;
    world.servers.lock().await.mongodb.pause();
    let handed = async {
        let second = sharing(&site, &cluster, &patient).await?;
        all_go_on(&site).await?;
        Ok::<_, anyhow::Error>(second)
    };
    let handed = handed.await;
    // Whatever came of it: others use these servers too.
    world.servers.lock().await.mongodb.resume();
    let second = handed?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    first.stop().await?;
    second.stop().await
}

async fn applied(site: &Site, count: i64) -> Result {
    wait::until("more commands are applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? >= count)
    })
    .await
}
