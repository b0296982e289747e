//! Where the benchmark and the demonstration run: four servers of their own, and for each phase a database, a virtual
//! host and a key prefix of its own. Nothing else on the machine is touched.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sqlx::Connection;
use taskflow_core::partition::Layout;
use taskflow_servers::{Options, Ports, Server, Servers};
use taskflow_stores::{declare, mongo, postgres};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::connect::{self, Stores};
use crate::settings::{Environment, Settings};

pub(crate) struct Place {
    pub servers: Servers,
    next: usize,
    /// Virtual hosts, which are made in advance.
    corners: usize,
    data: PathBuf,
    base: Settings,
}

/// One phase's own corner of the servers.
pub(crate) struct Site {
    pub settings: Settings,
    pub stores: Stores,
    pub layout: Layout,
    stop: CancellationToken,
}

/// CPU seconds that a server or a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub postgres: f64,
    pub rabbitmq: f64,
    pub mongodb: f64,
    pub redis: f64,
}

impl Place {
    /// Starts the servers with their data in a folder, which is emptied first, and room for so many corners. Dropped
    /// half-way, what has started is stopped.
    pub(crate) async fn open(
        data: &Path,
        base: &Settings,
        corners: usize,
        progress: impl Fn(&str),
    ) -> Result<Self> {
        taskflow_servers::discard(data).await?;
        let options = Options {
            data_dir: data.to_owned(),
            ports: Ports::free()?,
            vhosts: (0..corners).map(|number| format!("bench{number}")).collect(),
            preload: None,
        };
        let servers = Servers::start_with(&options, progress).await?;
        Ok(Self { servers, next: 0, corners, data: data.to_owned(), base: base.clone() })
    }

    pub(crate) async fn close(mut self) {
        self.servers.stop().await;
        let _ = std::fs::remove_dir_all(&self.data);
    }

    /// Stops the servers and keeps what they have written, for whoever wants to know why.
    pub(crate) async fn keep(mut self) -> PathBuf {
        self.servers.stop().await;
        self.data
    }

    /// A fresh corner: migrated, declared, empty but for the sample users.
    pub(crate) async fn site(&mut self) -> Result<Site> {
        let number = self.next;
        self.next += 1;
        if number >= self.corners {
            bail!("more rounds than virtual hosts were made ({})", self.corners);
        }
        let name = format!("bench{number}");
        let mut settings = self.base.clone();
        let with_name = |url: &str| {
            url.rsplit_once('/').map_or_else(|| url.to_owned(), |(head, _)| format!("{head}/{name}"))
        };
        settings.postgres.url = with_name(self.servers.postgres.url());
        settings.amqp.url = with_name(self.servers.rabbitmq.url());
        settings.mongodb.url = with_name(self.servers.mongodb.url());
        self.servers.redis.url().clone_into(&mut settings.redis.url);
        settings.redis.key_prefix = format!("{name}:");
        settings.environment = Environment::Development;
        let mut admin = postgres::connect_alone(&self.servers.postgres.url().parse()?).await?;
        sqlx::query(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await?;
        admin.close().await?;
        let stop = CancellationToken::new();
        let stores = connect::stores(&settings, "taskflow load", &stop).await?;
        postgres::migrate::up(&stores.postgres, None).await?;
        mongo::migrate::up(&stores.mongo, None).await?;
        crate::commands::seed::insert(&stores.postgres).await?;
        let course = declare::declare(&stores.postgres, &stores.publish, &stores.rabbit).await?;
        Ok(Site { settings, stores, layout: course.to, stop })
    }

    /// What the servers have used so far.
    pub(crate) fn cpu(&self) -> Cpu {
        let of = |server: &Server| server.pid().map_or(0.0, server_cpu);
        Cpu {
            postgres: of(&self.servers.postgres),
            rabbitmq: of(&self.servers.rabbitmq),
            mongodb: of(&self.servers.mongodb),
            redis: of(&self.servers.redis),
        }
    }
}

impl Cpu {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            postgres: self.postgres - before.postgres,
            rabbitmq: self.rabbitmq - before.rabbitmq,
            mongodb: self.mongodb - before.mongodb,
            redis: self.redis - before.redis,
        }
    }
}

impl Site {
    /// Starts a role of this very program as a process of its own.
    pub(crate) fn spawn(&self, role: &str, listen: Option<&str>) -> Result<Child> {
        let mut command = self.command(&[role]);
        if let Some(listen) = listen {
            command.env("TASKFLOW_HTTP__LISTEN", listen);
        }
        command.spawn().context("start a role")
    }

    /// This very program with these words, in this corner.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let s = &self.settings;
        let mut command = Command::new(std::env::current_exe().unwrap_or_else(|_| "taskflow".into()));
        command
            .args(words)
            .env("TASKFLOW_POSTGRES__URL", &s.postgres.url)
            .env("TASKFLOW_AMQP__URL", &s.amqp.url)
            .env("TASKFLOW_MONGODB__URL", &s.mongodb.url)
            .env("TASKFLOW_REDIS__URL", &s.redis.url)
            .env("TASKFLOW_REDIS__KEY_PREFIX", &s.redis.key_prefix)
            // The load is one user at one address: it is counted as ever, and never refused.
            .env("TASKFLOW_HTTP__LIMITS__USER_REQUESTS_PER_MINUTE", "1000000000000")
            .env("TASKFLOW_HTTP__LIMITS__ADDRESS_REQUESTS_PER_HOUR", "1000000000000")
            .env("TASKFLOW_METRICS__LISTEN", "127.0.0.1:0")
            .env("TASKFLOW_LOG", "warn,lapin=off")
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn close(self) {
        self.stop.cancel();
        self.stores.postgres.close().await;
    }
}

/// Asks a role to stop, as an operator would.
pub(crate) async fn stop(mut child: Child) -> Result<()> {
    if let Some(pid) = child.id() {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid.cast_signed()),
            nix::sys::signal::Signal::SIGTERM,
        )?;
    }
    tokio::time::timeout(Duration::from_secs(35), child.wait()).await.context("a role did not stop")??;
    Ok(())
}

/// CPU seconds of one process.
pub(crate) fn process_cpu(pid: u32) -> f64 {
    stat(&Path::new("/proc").join(pid.to_string())).map_or(0.0, |(_, seconds)| seconds)
}

/// The most memory that a process has had, in MiB.
pub(crate) fn peak_memory_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The memory that a process has at the moment, in KiB.
pub(crate) fn memory_kib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

/// CPU seconds of a server with everything it has started. Postgres gives each session a process group of its own, so
/// children count by their parent as well.
fn server_cpu(leader: u32) -> f64 {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let stats = processes.filter_map(|entry| stat(&entry.path()));
    stats
        .filter(|((parent, group), _)| *group == leader || *parent == leader)
        .map(|(_, seconds)| seconds)
        .sum()
}

/// Parent, process group, and CPU seconds, from the kernel's table.
fn stat(process: &Path) -> Option<((u32, u32), f64)> {
    let text = std::fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    // A hundred ticks a second on every Linux that matters.
    let seconds = (ticks(11) + ticks(12)) / 100.0;
    Some(((fields.get(1)?.parse().ok()?, fields.get(2)?.parse().ok()?), seconds))
}
