//! A day's worth of lost connections, ended sessions and heartbeats, speeded up: nothing may grow with them.
//!
//! Every round cuts connections in one way or another and waits until a command goes all the way again. Meanwhile the
//! leases are renewed some dozen times a second instead of once. What is counted at rest, after the first rounds and
//! after the last: memory, tasks, threads and open files of the processes, and their connections.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use taskflow_servers::Kind;
use tokio::time::{Instant, sleep};

use crate::commands::{command, id};
use crate::dice::Dice;
use crate::harness::Harness;
use crate::{Client, Cluster, Process, Site, World, wait};

/// A lease of so many milliseconds is renewed eight times as often.
const LEASE_MS: &str = "200";
/// Connections to Postgres that a process may have, and what MongoDB's driver may have by itself.
const POOL: u64 = 6;
const MONGODB_POOL: u64 = 13;
/// Rounds before the first count: pools and buffers have found their size.
const WARM_UP: u64 = 6;
/// Looks at a resting installation, of which the least counts: what comes and goes is no growth.
const LOOKS: usize = 8;
const BETWEEN_LOOKS: Duration = Duration::from_millis(250);
/// The broker's own way to close connections starts a program, which takes a second: not every round.
const OPERATOR_EVERY: u64 = 16;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Resident memory, in MiB.
    pub memory_mib: u64,
    pub files: u64,
    pub threads: u64,
    pub tasks: u64,
}

/// What the processes hold.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    pub worker: Held,
    pub api: Held,
    /// Connections to each of the stores, in the order of [`Kind::ALL`].
    pub connections: [u64; 4],
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    pub rounds: u64,
    pub took: Duration,
    /// Connections that were cut on the way, and renewals of leases, about.
    pub cut: u64,
    pub renewals: u64,
    pub before: Count,
    pub after: Count,
}

impl Report {
    /// Each count with its name: at first, at last, and the most that it may be.
    fn rows(&self) -> Vec<(String, u64, u64, u64)> {
        let (before, after) = (self.before.connections, self.after.connections);
        // A pool may not have been as large at first as it may become: that is no growth without end.
        let pooled: u64 =
            before.iter().zip(&after).map(|(before, after)| after.saturating_sub(*before)).sum();
        let mut rows = Vec::new();
        for (name, before, after) in
            [("worker", self.before.worker, self.after.worker), ("api", self.before.api, self.after.api)]
        {
            // An allocator keeps what it once had: some MiB are its own business, more with each round are not.
            let memory = before.memory_mib + 16 + before.memory_mib / 4;
            rows.push((format!("{name}: memory (MiB)"), before.memory_mib, after.memory_mib, memory));
            rows.push((format!("{name}: open files"), before.files, after.files, before.files + 4 + pooled));
            rows.push((format!("{name}: threads"), before.threads, after.threads, before.threads + 4));
            rows.push((format!("{name}: tasks"), before.tasks, after.tasks, before.tasks + 8));
        }
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            let most = match kind {
                Kind::Postgres => 2 * POOL,
                Kind::MongoDb => 2 * MONGODB_POOL,
                // One each, or two: nothing is pooled.
                Kind::RabbitMq | Kind::Redis => before[place] + 1,
            };
            rows.push((format!("connections to {}", kind.as_str()), before[place], after[place], most));
        }
        rows
    }

    /// An error that names what has grown.
    pub fn must_not_grow(&self) -> Result<()> {
        let grown: Vec<String> = self
            .rows()
            .into_iter()
            .filter(|(_, _, after, most)| after > most)
            .map(|(name, before, after, most)| format!("{name}: {before}, then {after} (at most {most})"))
            .collect();
        ensure!(
            grown.is_empty(),
            "after {} rounds there is more than before: {}",
            self.rounds,
            grown.join("; ")
        );
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} rounds in {} s; about {} connections cut, {} renewals of leases\n",
            self.rounds,
            self.took.as_secs(),
            self.cut,
            self.renewals
        )?;
        writeln!(f, "| | after {WARM_UP} rounds | at the end |\n| --- | --- | --- |")?;
        self.rows()
            .into_iter()
            .try_for_each(|(name, before, after, _)| writeln!(f, "| {name} | {before} | {after} |"))
    }
}

/// Runs so many rounds, or for so long, whichever ends first.
pub async fn run(world: &World, program: &str, rounds: u64, most: Duration) -> Result<Report> {
    let site = Site::new(world).await?;
    let cluster = Cluster::new(&site, program)?;
    let mut harness = Harness::new(world, &site, &cluster, Dice::new(1))?;
    for kind in Kind::ALL {
        harness.lay_wire(kind).await?;
    }
    harness.env.push(("TASKFLOW_WORKER__LEASE_MS".into(), LEASE_MS.into()));
    harness.env.push(("TASKFLOW_POSTGRES__CONNECTIONS_MAX".into(), POOL.to_string()));
    let metrics = crate::free_address()?;
    harness.start_worker_with(&[("TASKFLOW_METRICS__LISTEN", &metrics)])?;
    harness.start_api().await?;
    let api = Client::new(&harness.base)?;
    let caller = api.admin().await?;
    let worker = Client::new(&format!("http://{metrics}"))?;
    let ran = rounds_of(&mut harness, &caller, [&worker, &api], rounds, most).await;
    let report = ran.with_context(|| cluster.log_tails(15))?;
    for worker in std::mem::take(&mut harness.workers) {
        worker.stop().await?;
    }
    if let Some(api) = harness.api.take() {
        api.stop().await?;
    }
    Ok(report)
}

async fn rounds_of(
    h: &mut Harness<'_>,
    caller: &Client,
    clients: [&Client; 2],
    rounds: u64,
    most: Duration,
) -> Result<Report> {
    let mut before = None;
    let (mut begin, mut cut, mut done) = (Instant::now(), 0, 0);
    for round in 0..WARM_UP + rounds {
        if round == WARM_UP {
            before = Some(count(h, clients).await?);
            begin = Instant::now();
        }
        if before.is_some() && begin.elapsed() > most {
            break;
        }
        let seen = h.wires.iter().map(|(_, wire)| wire.made()).sum::<u64>();
        break_once(h, round).await?;
        wait::until("a command goes all the way", async || all_the_way(caller).await).await?;
        if before.is_some() {
            cut += h.wires.iter().map(|(_, wire)| wire.made()).sum::<u64>() - seen;
            done += 1;
        }
    }
    let took = begin.elapsed();
    let before = before.context("no rounds")?;
    let after = count(h, clients).await?;
    let every_ms: u64 = LEASE_MS.parse::<u64>()? / 8;
    let renewals = took.as_millis() as u64 / every_ms;
    Ok(Report { rounds: done, took, cut, renewals, before, after })
}

/// Cuts the wires to some stores, ends Postgres's sessions, or closes the broker's connections.
async fn break_once(h: &mut Harness<'_>, round: u64) -> Result<()> {
    match round % 4 {
        0 => h.wires.iter().for_each(|(_, wire)| wire.cut()),
        1 => h.wire(Kind::RabbitMq)?.cut(),
        2 => {
            let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                       WHERE datname = current_database() AND pid <> pg_backend_pid() \
                       AND application_name <> 'taskflow test'";
            h.site.sql(end).await?;
        }
        _ if round % OPERATOR_EVERY == 3 => {
            let vhost = h.vhost().to_owned();
            h.rabbitmqctl(&["close_all_connections", "--vhost", &vhost, "maintenance"]).await?;
        }
        _ => {
            h.wire(Kind::Redis)?.cut();
            h.wire(Kind::MongoDb)?.cut();
        }
    }
    Ok(())
}

/// One command over HTTP to its receipt.
async fn all_the_way(caller: &Client) -> Result<bool> {
    let value = command("task.create", id(), json!({ "title": "growth" }));
    let request = caller.post("/v1/commands").header("prefer", "wait=5").json(&value);
    Ok(request.send().await?.status() == 200)
}

/// What is held at rest: the least of several looks.
async fn count(h: &Harness<'_>, clients: [&Client; 2]) -> Result<Count> {
    wait::until(
        "everything is relayed",
        async || Ok(h.site.count("SELECT count(*) FROM outbox").await? == 0),
    )
    .await?;
    let mut least: Option<Count> = None;
    for _ in 0..LOOKS {
        sleep(BETWEEN_LOOKS).await;
        let now = look(h, clients).await?;
        least = Some(least.map_or(now, |least| least.min(now)));
    }
    least.context("no look")
}

async fn look(h: &Harness<'_>, [worker, api]: [&Client; 2]) -> Result<Count> {
    let processes = (h.workers.first().context("no worker")?, h.api.as_ref().context("no API")?);
    Ok(Count {
        worker: held(processes.0, worker).await?,
        api: held(processes.1, api).await?,
        // The wires were laid in that order.
        connections: std::array::from_fn(|kind| h.wires[kind].1.open()),
    })
}

async fn held(process: &Process, client: &Client) -> Result<Held> {
    let folder = std::path::PathBuf::from(format!("/proc/{}", process.pid()?));
    let status = std::fs::read_to_string(folder.join("status"))?;
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let word = line.and_then(|line| line.split_whitespace().next());
        word.and_then(|word| word.parse::<u64>().ok()).with_context(|| format!("no {name}"))
    };
    let metrics = client.get("/metrics").await?.text().await?;
    let tasks = metrics.lines().find_map(|line| line.strip_prefix("taskflow_tasks "));
    Ok(Held {
        memory_mib: value("VmRSS:")? / 1024,
        files: std::fs::read_dir(folder.join("fd"))?.count() as u64,
        threads: value("Threads:")?,
        tasks: tasks.context("no taskflow_tasks")?.trim().parse::<f64>()? as u64,
    })
}

impl Held {
    fn min(self, other: Self) -> Self {
        Self {
            memory_mib: self.memory_mib.min(other.memory_mib),
            files: self.files.min(other.files),
            threads: self.threads.min(other.threads),
            tasks: self.tasks.min(other.tasks),
        }
    }
}

impl Count {
    fn min(self, other: Self) -> Self {
        Self {
            worker: self.worker.min(other.worker),
            api: self.api.min(other.api),
            connections: std::array::from_fn(|kind| self.connections[kind].min(other.connections[kind])),
        }
    }
}
