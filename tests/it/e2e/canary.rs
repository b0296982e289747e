//! Canaries: they go through every partition, tell what is wrong, and stay few.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_core::canary;
use taskflow_tests::cluster::Process;
use taskflow_tests::{Client, Cluster, Result, Site, wait};

use crate::{cluster, with_site};

const ON: (&str, &str) = ("TASKFLOW_CANARY__EVERY_MS", "200");
const IMPATIENT: (&str, &str) = ("TASKFLOW_CANARY__STUCK_AFTER_MS", "3000");
/// More than the longest time between two looks at one that is on its way.
const LOOKED_AT_AGAIN: Duration = Duration::from_secs(3);
/// As many as a test's site has.
const PARTITIONS: [&str; 5] = ["00", "01", "02", "03", "low.00"];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("canaries go through every partition and stay few", everywhere),
        with_site("canaries tell of what is stuck, doubled and reordered", wrong),
        with_site("canaries are off by default", off),
    ]
}

/// A scheduler whose metrics can be asked for.
fn scheduler(cluster: &Cluster<'_>, env: &[(&str, &str)]) -> Result<(Process, Client)> {
    let address = taskflow_tests::free_address()?;
    let env = [env, &[("TASKFLOW_METRICS__LISTEN", address.as_str())]].concat();
    Ok((cluster.spawn("scheduler", &env)?, Client::new(&format!("http://{address}"))?))
}

/// A metric of a scheduler; `None` if it has no such series yet.
async fn metric(client: &Client, series: &str) -> Result<Option<f64>> {
    let text = client.get("/metrics").await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    Ok(value.map(str::parse).transpose()?)
}

async fn commands(client: &Client, partition: &str, result: &str) -> Result<f64> {
    let series = format!("taskflow_canary_commands_total{{partition=\"{partition}\",result=\"{result}\"}}");
    Ok(metric(client, &series).await?.unwrap_or(0.0))
}

async fn commands_of_all(client: &Client, result: &str) -> Result<f64> {
    let mut sum = 0.0;
    for partition in PARTITIONS {
        sum += commands(client, partition, result).await?;
    }
    Ok(sum)
}

async fn everywhere(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    // Two of them: each canary is watched by one.
    let (first, metrics) = scheduler(&cluster, &[ON])?;
    let applied = "SELECT count(*) FROM receipts WHERE outcome = 'applied' AND type = 'task.update'";
    wait::until("canaries are applied", async || Ok(site.count(applied).await? > 0)).await?;
    let (second, others) = scheduler(&cluster, &[ON])?;
    for partition in PARTITIONS {
        wait::until("each partition has applied some", async || {
            Ok(commands(&metrics, partition, "applied").await? >= 4.0)
        })
        .await?;
        let last = format!("taskflow_canary_last_success_timestamp_seconds{{partition=\"{partition}\"}}");
        ensure!(metric(&metrics, &last).await? > Some(1e9), "no success in {partition}");
        let trips = format!("taskflow_canary_round_trip_seconds_count{{partition=\"{partition}\"}}");
        ensure!(metric(&metrics, &trips).await? >= Some(4.0), "no round trips in {partition}");
    }
    for result in ["lost", "doubled", "reordered", "stuck"] {
        ensure!(commands_of_all(&metrics, result).await? == 0.0, "{result} is not 0");
    }
    ensure!(commands_of_all(&others, "sent").await? == 0.0, "two schedulers send");
    // One task a partition, however many commands, and easy to know.
    let tasks =
        site.count(&format!("SELECT count(*) FROM tasks WHERE creator_id = '{}'", canary::USER)).await?;
    ensure!(tasks == PARTITIONS.len() as i64, "{tasks} tasks");
    let rows = site.count("SELECT count(*) FROM canaries").await?;
    ensure!(rows == PARTITIONS.len() as i64, "{rows} rows");
    // Whoever is left goes on with what the other one has begun.
    first.kill().await?;
    wait::until("the other scheduler has taken over", async || {
        Ok(commands_of_all(&others, "applied").await? >= 10.0)
    })
    .await?;
    for result in ["lost", "doubled", "reordered"] {
        ensure!(commands_of_all(&others, result).await? == 0.0, "{result} is not 0");
    }
    // Nothing is due where an operator has paused the partition, and an alert about its age is silent.
    let last = "taskflow_canary_last_success_timestamp_seconds{partition=\"02\"}";
    let operate = async |args: &[&str]| -> Result {
        let done = cluster.run(args, &[]).await?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    };
    operate(&["pause", "--partition", "02", "--reason", "a test"]).await?;
    wait::until("none is due", async || Ok(metric(&others, last).await?.is_some_and(f64::is_nan))).await?;
    operate(&["resume", "--partition", "02"]).await?;
    wait::until("one is due again", async || Ok(metric(&others, last).await? > Some(1e9))).await?;
    second.stop().await?;
    worker.stop().await
}

async fn wrong(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (scheduler, metrics) = scheduler(&cluster, &[ON, IMPATIENT])?;
    wait::until("canaries are applied", async || Ok(commands_of_all(&metrics, "applied").await? > 9.0))
        .await?;
    // Nobody works any more.
    worker.stop().await?;
    let noted = "SELECT count(*) FROM canaries WHERE stuck";
    wait::until("each partition's canaries are stuck, and noted to be", async || {
        Ok(site.count(noted).await? == PARTITIONS.len() as i64)
    })
    .await?;
    for partition in PARTITIONS {
        ensure!(commands(&metrics, partition, "stuck").await? >= 1.0, "{partition} does not count its own");
    }
    // Some may have been late before, on a busy machine. Those that are stuck now are counted, and stay the same.
    let (since, stuck) = (Instant::now(), commands_of_all(&metrics, "stuck").await?);
    wait::until("they were looked at again", async || Ok(since.elapsed() > LOOKED_AT_AGAIN)).await?;
    let again = commands_of_all(&metrics, "stuck").await? - stuck;
    ensure!(again == 0.0, "canaries are stuck more than once: {again} more");
    let worker = cluster.worker()?;
    let before = commands_of_all(&metrics, "applied").await?;
    wait::until("they go on", async || Ok(commands_of_all(&metrics, "applied").await? > before + 10.0))
        .await?;
    ensure!(commands_of_all(&metrics, "lost").await? == 0.0, "late is not lost");
    // Somebody changes a canary's task behind our back, as a command that is applied twice would.
    let change =
        format!("UPDATE tasks SET version = version + 1 WHERE id = '{}'", canary::subject(false, 2, 0));
    wait::until("it is noticed", async || {
        site.sql(&change).await?;
        let wrong =
            commands(&metrics, "02", "doubled").await? + commands(&metrics, "02", "reordered").await?;
        Ok(wrong >= 1.0)
    })
    .await?;
    // It goes on from what is there.
    let before = commands(&metrics, "02", "applied").await?;
    wait::until("partition 02 is well again", async || {
        Ok(commands(&metrics, "02", "applied").await? > before + 4.0)
    })
    .await?;
    // A deleted one is replaced.
    site.sql(&format!("UPDATE tasks SET deleted_at = now() WHERE id = '{}'", canary::subject(false, 1, 0)))
        .await?;
    let next = format!("SELECT count(*) FROM tasks WHERE id = '{}'", canary::subject(false, 1, 1));
    wait::until("its successor is there", async || Ok(site.count(&next).await? == 1)).await?;
    scheduler.stop().await?;
    worker.stop().await
}

async fn off(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (scheduler, metrics) = scheduler(&cluster, &[])?;
    wait::until("it answers", async || Ok(metrics.get("/healthz").await?.status() == 200)).await?;
    let text = metrics.get("/metrics").await?.text().await?;
    ensure!(!text.contains("taskflow_canary_commands_total{"), "{text}");
    let user = format!("SELECT count(*) FROM users WHERE id = '{}'", canary::USER);
    ensure!(site.count(&user).await? == 0, "there is a canaries' user");
    scheduler.stop().await.context("the scheduler")
}
