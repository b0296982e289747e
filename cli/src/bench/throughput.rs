//! Draining a backlog that was published before: the floor, and TaskFlow's worker as a process of its own.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use taskflow_core::Command;
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::publish::{Message, Publisher};

use super::report::Figure;
use super::{Plan, floor, generate};
use crate::place::{self, Cpu, Place, Site};

/// Longest drain that is waited for.
const PATIENCE: Duration = Duration::from_secs(600);

/// The floor and TaskFlow in turn, on the same backlog.
pub(super) async fn drain(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let (mut floors, mut ours) = (Vec::new(), Vec::new());
    let mut publish_rates = Vec::new();
    for round in 1..=plan.rounds {
        tell(&format!("round {round}: the floor"));
        let site = place.site().await?;
        publish_rates.push(preload(&site, creates(plan.commands)).await?);
        let before = place.cpu();
        let own = place::process_cpu(std::process::id());
        let rate = floor::run(&site, plan.commands).await?;
        let own = place::process_cpu(std::process::id()) - own;
        floors.push(Run { rate, cpu: place.cpu().since(before), own, memory_mib: 0.0 });
        site.close().await;

        tell(&format!("round {round}: TaskFlow"));
        let site = place.site().await?;
        publish_rates.push(preload(&site, creates(plan.commands)).await?);
        ours.push(worker(place, &site, plan.commands).await?);
        site.close().await;
    }
    let (floor, our) = (median(&floors), median(&ours));
    let mut figures = vec![
        Figure::new("publish with confirms", middle(publish_rates), "commands/s", None),
        Figure::new("floor: the stores' work alone", floor.rate, "commands/s", None),
        Figure::new("TaskFlow, task.create", our.rate, "commands/s", Some(8_000.0)),
        Figure::new("TaskFlow / floor", our.rate / floor.rate, "ratio", Some(0.85)),
        Figure::at_most("worker's memory, at most", our.memory_mib, "MiB", 100.0),
    ];
    figures.extend(cpu_figures("floor", &floor, plan.commands));
    figures.extend(cpu_figures("TaskFlow", &our, plan.commands));
    Ok(figures)
}

/// What makes the trail provable and a restore whole, and what each of it costs, in turn on the same backlog.
pub(super) async fn costs(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let folder = std::env::temp_dir().join(format!("taskflow-bench-{}", std::process::id()));
    let journal = folder.display().to_string();
    let off = ("TASKFLOW_WORKER__AUDIT_CHAIN", "false");
    let on =
        [("TASKFLOW_BACKUP__DESTINATION", journal.as_str()), ("TASKFLOW_BACKUP__WORK_DIR", journal.as_str())];
    let ways: [(&str, &[(&str, &str)]); 3] =
        [("no chain, no journal", &[off]), ("the chain", &[]), ("the chain and the journal", &on)];
    let mut runs = ways.map(|_| Vec::new());
    for round in 0..plan.rounds {
        // Each way comes first, second and third as often: the machine changes meanwhile.
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            tell(&format!("round {}: {}", round + 1, ways[way].0));
            let site = place.site().await?;
            preload(&site, creates(plan.commands)).await?;
            runs[way].push(worker_with(place, &site, plan.commands, ways[way].1).await?);
            site.close().await;
        }
    }
    let [plain, chain, journal] = runs.map(|runs| median(&runs));
    let mut figures: Vec<Figure> = [plain, chain, journal]
        .iter()
        .zip(ways)
        .map(|(run, (name, _))| Figure::new(&format!("TaskFlow, {name}"), run.rate, "commands/s", None))
        .collect();
    figures.push(Figure::new("with the chain / without", chain.rate / plain.rate, "ratio", Some(0.95)));
    figures.push(Figure::new("with the journal / without", journal.rate / chain.rate, "ratio", None));
    figures.extend(cpu_figures("without the chain", &plain, plan.commands));
    figures.extend(cpu_figures("with the chain", &chain, plan.commands));
    figures.extend(cpu_figures("with the journal", &journal, plan.commands));
    let _ = std::fs::remove_dir_all(folder);
    Ok(figures)
}

/// Five kinds of commands on shared subjects.
pub(super) async fn mixed(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    tell("mixed commands");
    let site = place.site().await?;
    preload(&site, generate::mixed(plan.commands, clock::now())).await?;
    let run = worker(place, &site, plan.commands).await?;
    let applied: i64 = sqlx::query_scalar("SELECT count(*) FROM receipts WHERE outcome = 'applied'")
        .fetch_one(&site.stores.postgres)
        .await?;
    site.close().await;
    if applied != plan.commands as i64 {
        bail!("{applied} of {} mixed commands were applied", plan.commands);
    }
    let mut figures = vec![Figure::new("TaskFlow, mixed", run.rate, "commands/s", Some(5_000.0))];
    figures.extend(cpu_figures("mixed", &run, plan.commands));
    Ok(figures)
}

/// One drain.
#[derive(Debug, Clone, Copy)]
struct Run {
    rate: f64,
    cpu: Cpu,
    /// CPU seconds of the process that drained.
    own: f64,
    memory_mib: f64,
}

fn creates(count: usize) -> Vec<Command> {
    let now = clock::now();
    (0..count).map(|number| generate::create(number, now)).collect()
}

/// Publishes a backlog; returns the rate.
pub(super) async fn preload(site: &Site, commands: Vec<Command>) -> Result<f64> {
    let start = Instant::now();
    let count = commands.len();
    publish(&site.stores.publisher, &commands).await?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

async fn publish(publisher: &Publisher, commands: &[Command]) -> Result<()> {
    for group in commands.chunks(2_000) {
        let mut pending = Vec::with_capacity(group.len());
        for command in group {
            pending.push(publisher.send(Message::command(command, clock::now(), None)).await?);
        }
        for confirm in pending {
            confirm.confirmed().await?;
        }
    }
    Ok(())
}

/// Starts a worker and times it from its first commit until the last event is in the audit trail and the outbox empty.
async fn worker(place: &Place, site: &Site, commands: usize) -> Result<Run> {
    worker_with(place, site, commands, &[]).await
}

async fn worker_with(place: &Place, site: &Site, commands: usize, env: &[(&str, &str)]) -> Result<Run> {
    let before = place.cpu();
    let child = site.command(&["worker"]).envs(env.iter().copied()).spawn().context("start a worker")?;
    let pid = child.id().context("the worker ended at once")?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = applied(&site.stores.postgres).await?;
        if done >= commands as i64 && outbox_empty(&site.stores.postgres).await? {
            break;
        }
        if Instant::now() > deadline {
            bail!("{done} of {commands} commands were applied in {} s", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let run = Run {
        rate: commands as f64 / span_seconds(&site.stores.postgres).await?,
        cpu: place.cpu().since(before),
        own: place::process_cpu(pid),
        memory_mib: place::peak_memory_mib(pid),
    };
    place::stop(child).await?;
    Ok(run)
}

async fn applied(pool: &PgPool) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT coalesce(sum(commands), 0)::bigint FROM batches").fetch_one(pool).await?)
}

async fn outbox_empty(pool: &PgPool) -> Result<bool> {
    Ok(sqlx::query_scalar("SELECT NOT EXISTS (SELECT FROM outbox)").fetch_one(pool).await?)
}

/// From the first batch's beginning to the last store's following.
async fn span_seconds(pool: &PgPool) -> Result<f64> {
    let (from, to): (DateTime<Utc>, DateTime<Utc>) = sqlx::query_as(
        "SELECT min(applied_at), greatest(max(audited_at), max(cached_at), max(published_at)) FROM batches",
    )
    .fetch_one(pool)
    .await?;
    Ok((to - from).as_seconds_f64())
}

fn cpu_figures(who: &str, run: &Run, commands: usize) -> Vec<Figure> {
    let each = |name: &str, seconds: f64| {
        Figure::new(&format!("{who}: CPU of {name}"), seconds * 1_000.0 / commands as f64, "ms/command", None)
    };
    vec![
        each("postgres", run.cpu.postgres),
        each("mongodb", run.cpu.mongodb),
        each("rabbitmq", run.cpu.rabbitmq),
        each("redis", run.cpu.redis),
        each("the draining process", run.own),
    ]
}

fn median(runs: &[Run]) -> Run {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    sorted[sorted.len() / 2]
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
