//! How long a partition stands still when the workers that share the partitions come, leave, and die, and when the
//! number of partitions changes: the longest gap between two commits, under a steady load.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::report::Figure;
use super::{Plan, generate};
use crate::place::{self, Place, Site};

/// Commands a second: each partition of eight commits every few milliseconds.
const RATE: f64 = 1_000.0;
/// Before an event, to see what is usual.
const CALM: Duration = Duration::from_secs(2);
/// After an event: longer than a lease lasts.
const AFTER: Duration = Duration::from_secs(14);

/// Joining, leaving, killing a worker; more partitions, and fewer.
pub(super) async fn run(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    let load = Load::start(&site);
    let mut workers = vec![site.spawn("worker", None)?, site.spawn("worker", None)?];
    tell("sharing: until every partition commits");
    until_all_commit(&site).await?;
    sleep(CALM).await;
    let mut figures = Vec::new();
    let usual = gaps(&site.stores.postgres, clock::now() - chrono::TimeDelta::seconds(2)).await?;
    figures.extend(rows("nothing happens", &usual));
    for round in 1..=plan.rounds {
        tell(&format!("sharing, round {round}: a worker joins"));
        let since = clock::now();
        workers.push(site.spawn("worker", None)?);
        sleep(AFTER).await;
        figures.extend(rows("a worker joins", &gaps(&site.stores.postgres, since).await?));

        tell(&format!("sharing, round {round}: a worker leaves politely"));
        let since = clock::now();
        place::stop(workers.swap_remove(0)).await?;
        sleep(AFTER).await;
        figures.extend(rows("a worker leaves", &gaps(&site.stores.postgres, since).await?));

        tell(&format!("sharing, round {round}: a worker is killed"));
        let since = clock::now();
        kill(workers.swap_remove(0)).await?;
        sleep(AFTER).await;
        figures.extend(rows("a worker is killed", &gaps(&site.stores.postgres, since).await?));
        workers.push(site.spawn("worker", None)?);
        sleep(CALM).await;

        let now = site.layout.normal.partitions;
        for (what, number) in [("more partitions", now + now / 2), ("fewer partitions", now)] {
            tell(&format!("sharing, round {round}: {what}"));
            let since = clock::now();
            let set = site.command(&["partitions", "set", &number.to_string()]).status().await?;
            ensure!(set.success(), "partitions set {number}: {set}");
            sleep(CALM).await;
            figures.extend(rows(what, &gaps(&site.stores.postgres, since).await?));
        }
    }
    load.end().await?;
    for worker in workers {
        place::stop(worker).await?;
    }
    site.close().await;
    Ok(middle(figures))
}

async fn kill(mut worker: Child) -> Result<()> {
    worker.kill().await.context("kill a worker")
}

/// A steady stream of creations, over all partitions.
struct Load {
    task: JoinHandle<Result<()>>,
    enough: Arc<AtomicBool>,
}

impl Load {
    fn start(site: &Site) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        Self { task: tokio::spawn(send(site.stores.publisher.clone(), Arc::clone(&enough))), enough }
    }

    async fn end(self) -> Result<()> {
        self.enough.store(true, Ordering::SeqCst);
        self.task.await?
    }
}

async fn send(publisher: Publisher, enough: Arc<AtomicBool>) -> Result<()> {
    const AT_ONCE: usize = 10;
    let mut ticks = tokio::time::interval(Duration::from_secs_f64(AT_ONCE as f64 / RATE));
    let mut number = 0;
    while !enough.load(Ordering::SeqCst) {
        ticks.tick().await;
        let now = clock::now();
        let mut pending = Vec::with_capacity(AT_ONCE);
        for _ in 0..AT_ONCE {
            number += 1;
            let command = generate::create(number, now);
            pending.push(publisher.send(Message::command(&command, now, None)).await?);
        }
        for confirm in pending {
            confirm.confirmed().await?;
        }
    }
    Ok(())
}

async fn until_all_commit(site: &Site) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let wanted = i64::from(site.layout.normal.partitions);
    loop {
        let at_work: i64 = sqlx::query_scalar("SELECT count(*) FROM partition_heads WHERE batch > 0")
            .fetch_one(&site.stores.postgres)
            .await?;
        if at_work >= wanted {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{at_work} of {wanted} partitions commit");
        sleep(Duration::from_millis(100)).await;
    }
}

/// The longest time between two batches of each partition since then, in milliseconds. The last batch before counts as
/// the first; a partition that is new or has ended has the gap of those whose commands it took over.
async fn gaps(pool: &PgPool, since: DateTime<Utc>) -> Result<Vec<f64>> {
    let rows: Vec<(String, DateTime<Utc>)> = sqlx::query_as(
        "SELECT partition, applied_at FROM batches WHERE applied_at > $1 - interval '2 s' ORDER BY partition, number",
    )
    .bind(since)
    .fetch_all(pool)
    .await?;
    let mut longest: BTreeMap<String, f64> = BTreeMap::new();
    for pair in rows.windows(2) {
        let [(before, from), (partition, to)] = pair else { continue };
        if before == partition && *to > since {
            let gap = (*to - *from).as_seconds_f64() * 1_000.0;
            let entry = longest.entry(partition.clone()).or_default();
            *entry = entry.max(gap);
        }
    }
    ensure!(!longest.is_empty(), "no partition committed anything");
    Ok(longest.into_values().collect())
}

fn rows(what: &str, gaps: &[f64]) -> [Figure; 2] {
    let mut sorted = gaps.to_vec();
    sorted.sort_by(f64::total_cmp);
    let figure = |name: &str, value| {
        Figure::new(&format!("{what}: longest pause of a partition, {name}"), value, "ms", None)
    };
    [figure("p50", sorted[sorted.len() / 2]), figure("max", sorted.last().copied().unwrap_or_default())]
}

/// One row for what was measured in several rounds: the median of p50, the largest max.
fn middle(figures: Vec<Figure>) -> Vec<Figure> {
    let mut order: Vec<String> = Vec::new();
    let mut by_name: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for figure in figures {
        if !by_name.contains_key(&figure.name) {
            order.push(figure.name.clone());
        }
        by_name.entry(figure.name).or_default().push(figure.value);
    }
    let row = |name: String| {
        let mut values = by_name.remove(&name).unwrap_or_default();
        values.sort_by(f64::total_cmp);
        let most = values.last().copied().unwrap_or_default();
        let value = if name.ends_with("max") { most } else { values[values.len() / 2] };
        Figure::new(&name, value, "ms", None)
    };
    order.into_iter().map(row).collect()
}
