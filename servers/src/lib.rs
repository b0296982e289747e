//! Real servers as processes of this machine: Postgres, RabbitMQ, MongoDB and Redis, on ports of their own, with their
//! data under one folder.
//!
//! `taskflow dev` and `taskflow bench` start them, and the tests start, kill, pause and restart them. As root each runs
//! as its own user, as Debian's packages set it up; otherwise all run as who started them. Nothing here touches the
//! standard ports, and nothing is stopped by its name alone: only what was started here, known by its process id and the
//! moment of its start, or by the data folder that it works in.
//!
//! One server alone, for a test that needs no more, is [`Server::start`].

mod amqp;
mod mongodb;
mod ports;
mod postgres;
mod proc;
mod process;
mod rabbitmq;
mod recovered;
mod redis;
mod secret;
mod user;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use ports::{Ports, free_address};
use process::Process;
pub use recovered::Recovered;
use tokio::time::Instant;

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Postgres,
    RabbitMq,
    MongoDb,
    Redis,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Postgres, Self::RabbitMq, Self::MongoDb, Self::Redis];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::RabbitMq => "rabbitmq",
            Self::MongoDb => "mongodb",
            Self::Redis => "redis",
        }
    }
}

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Data, logs, passwords and process ids. Each server's user must be able to reach it.
    pub data_dir: PathBuf,
    pub ports: Ports,
    /// Virtual hosts of RabbitMQ beside `taskflow`.
    pub vhosts: Vec<String>,
    /// A library that each server loads before its own (`LD_PRELOAD`); nothing but tests want one.
    pub preload: Option<PathBuf>,
}

/// One server, running or not. Dropped while it runs, it is killed.
pub struct Server {
    kind: Kind,
    options: Options,
    url: String,
    /// The server last; before it what it needs (Erlang's name server).
    processes: Vec<Process>,
    /// Held as long as this lives, and let go by the kernel when we are killed: whoever has it may stop what is left.
    _lock: File,
}

/// How long a server may take to be ready. Some seconds do, unless a compiler has the processors.
const READY_WITHIN: Duration = Duration::from_mins(2);

impl Server {
    /// Starts a server and waits until it answers. What a former run left behind is stopped first.
    pub async fn start(kind: Kind, options: &Options) -> Result<Self> {
        user::make_open_dir(&options.data_dir)?;
        let data_dir = options.data_dir.canonicalize()?;
        let options = Options { data_dir, ..options.clone() };
        let lock = lock(kind, &options)?;
        let url = match kind {
            Kind::Postgres => postgres::url(&options)?,
            Kind::RabbitMq => rabbitmq::url(&options)?,
            Kind::MongoDb => mongodb::url(&options),
            Kind::Redis => redis::url(&options)?,
        };
        let mut server = Self { kind, options, url, processes: Vec::new(), _lock: lock };
        server.restart().await?;
        Ok(server)
    }

    /// Starts the server again, after [`Server::stop`] or [`Server::kill`], with the data it had and where it was. A
    /// server that runs is stopped first.
    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await;
        self.processes = match self.kind {
            Kind::Postgres => postgres::start(&self.options).await,
            Kind::RabbitMq => rabbitmq::start(&self.options).await,
            Kind::MongoDb => mongodb::start(&self.options).await,
            Kind::Redis => redis::start(&self.options).await,
        }
        .with_context(|| format!("start {}", self.name()))?;
        self.wait_ready().await?;
        if self.kind == Kind::Postgres {
            postgres::create_database(&self.options).await?;
        }
        Ok(())
    }

    /// Waits until the server does its work: it lets its user in and answers.
    ///
    /// # Errors
    /// It has ended, or takes longer than two minutes.
    pub async fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            // Looked at first: on a port that it has left, another may answer.
            let ended = self.processes.last().is_none_or(|process| !process.is_running());
            if !ended && self.is_ready().await {
                return Ok(());
            }
            if ended || Instant::now() > deadline {
                let log = self.options.log(self.name());
                let what = if ended { "does not run" } else { "did not get ready in two minutes" };
                bail!("{} {what}; the end of {}:\n{}", self.name(), log.display(), process::tail(&log));
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    async fn is_ready(&self) -> bool {
        match self.kind {
            Kind::Postgres => postgres::is_ready(&self.options).await,
            Kind::RabbitMq => rabbitmq::is_ready(&self.options).await,
            Kind::MongoDb => mongodb::is_ready(&self.options).await,
            Kind::Redis => redis::is_ready(&self.options).await,
        }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn name(&self) -> &'static str {
        self.kind.as_str()
    }

    /// How clients reach it, password included.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The process id, from its start until it is stopped or killed here.
    pub fn pid(&self) -> Option<u32> {
        self.processes.last().map(Process::pid)
    }

    /// Asks the server to stop, in its own way, and waits until it has.
    pub async fn stop(&mut self) {
        while let Some(process) = self.processes.pop() {
            process.stop().await;
        }
    }

    /// Kills the server at once (SIGKILL), with everything it has started, and waits until all of it is gone: as a
    /// machine that loses its power would, but for the disks.
    pub async fn kill(&mut self) {
        while let Some(process) = self.processes.pop() {
            process.kill().await;
        }
    }

    /// Runs RabbitMQ's control program against this server.
    ///
    /// # Errors
    /// What the program says; or this is no RabbitMQ.
    pub async fn rabbitmqctl(&self, args: &[&str]) -> Result<String> {
        if self.kind != Kind::RabbitMq {
            bail!("{} has no rabbitmqctl", self.kind.as_str());
        }
        rabbitmq::control(&self.options, args).await
    }

    /// Makes virtual hosts of the broker.
    ///
    /// # Errors
    /// What its control program says; or this is no RabbitMQ.
    pub async fn add_vhosts(&self, names: &[String]) -> Result<()> {
        if self.kind != Kind::RabbitMq {
            bail!("{} has no virtual hosts", self.kind.as_str());
        }
        rabbitmq::add_vhosts(&self.options, names).await
    }

    /// Stops the server's clock (SIGSTOP), and that of everything it has started: its connections stay open and
    /// nothing answers.
    pub fn pause(&self) {
        self.processes.last().inspect(|process| process.pause());
    }

    /// Lets a paused server go on.
    pub fn resume(&self) {
        self.processes.last().inspect(|process| process.resume());
    }
}

/// One process at a time looks after a server: what another one still uses is no leftover.
fn lock(kind: Kind, options: &Options) -> Result<File> {
    let file = options.data_dir.join("run").join(format!("{}.lock", kind.as_str()));
    user::make_open_dir(&options.data_dir.join("run"))?;
    let lock = File::options().create(true).truncate(false).write(true).open(&file);
    let lock = lock.with_context(|| format!("open {}", file.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!(
            "{} in {} is in use by another TaskFlow that runs; stop that, or choose another data folder",
            kind.as_str(),
            options.data_dir.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", file.display())),
    }
}

/// What a folder of servers holds.
const CONTENTS: [&str; 8] = ["postgres", "rabbitmq", "mongodb", "redis", "log", "run", "secret", "bin"];
/// What the servers' processes call themselves.
const NAMES: [&str; 8] = [
    "postgres",
    "beam.smp",
    "epmd",
    "mongod",
    "secantusd-rs",
    "redis-server",
    "redis-aof-rewrite",
    "redis-rdb-bgsave",
];

/// Kills what a former run has left running in a folder, and removes the folder.
///
/// # Errors
/// Another TaskFlow uses it at this moment, or there is something in it that no server has made: then it is left alone.
pub async fn discard(data_dir: &Path) -> Result<()> {
    if !data_dir.exists() {
        return Ok(());
    }
    let data_dir = data_dir.canonicalize()?;
    let entries = std::fs::read_dir(&data_dir).with_context(|| format!("look at {}", data_dir.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        if !CONTENTS.iter().any(|ours| name == **ours) {
            bail!(
                "{} holds {}, which is not ours: it would be removed; choose another folder",
                data_dir.display(),
                name.display()
            );
        }
    }
    let options =
        Options { data_dir: data_dir.clone(), ports: Ports::from(0), vhosts: Vec::new(), preload: None };
    let _locks = Kind::ALL.into_iter().map(|kind| lock(kind, &options)).collect::<Result<Vec<_>>>()?;
    kill_left(&data_dir).await;
    std::fs::remove_dir_all(&data_dir).with_context(|| format!("remove {}", data_dir.display()))
}

/// Kills the servers that work in a folder, which a process that was killed has left; returns when they have ended. The
/// folder's files can be removed then without a server that still writes to them.
pub async fn kill_left(dir: &Path) {
    let Ok(dir) = dir.canonicalize() else { return };
    let left = proc::working_in(&dir, &NAMES);
    for process in &left {
        proc::kill_family(process.pid);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while left.iter().any(proc::Identity::is_alive) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// All four.
pub struct Servers {
    pub postgres: Server,
    pub rabbitmq: Server,
    pub mongodb: Server,
    pub redis: Server,
}

impl Servers {
    /// Starts all four side by side.
    pub async fn start(options: &Options) -> Result<Self> {
        Self::start_with(options, |_| {}).await
    }

    /// Starts all four side by side and says of each when it is ready.
    pub async fn start_with(options: &Options, progress: impl Fn(&str)) -> Result<Self> {
        let start = async |kind| {
            let begin = Instant::now();
            let server = Server::start(kind, options).await?;
            progress(&format!("{} is ready after {:.1} s", server.name(), begin.elapsed().as_secs_f64()));
            anyhow::Ok(server)
        };
        let (postgres, rabbitmq, mongodb, redis) = tokio::try_join!(
            start(Kind::Postgres),
            start(Kind::RabbitMq),
            start(Kind::MongoDb),
            start(Kind::Redis),
        )?;
        Ok(Self { postgres, rabbitmq, mongodb, redis })
    }

    /// Stops all four side by side.
    pub async fn stop(&mut self) {
        tokio::join!(self.postgres.stop(), self.rabbitmq.stop(), self.mongodb.stop(), self.redis.stop());
    }

    pub fn all(&mut self) -> [&mut Server; 4] {
        [&mut self.postgres, &mut self.rabbitmq, &mut self.mongodb, &mut self.redis]
    }
}

impl Options {
    /// The folder of one server's data.
    fn dir(&self, name: &str) -> PathBuf {
        self.data_dir.join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.data_dir.join("log").join(format!("{name}.log"))
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.data_dir.join("run").join(format!("{name}.pid"))
    }

    /// What a server finds in its environment, beside what all get.
    fn environment(&self, home: &Path) -> Vec<(&'static str, String)> {
        let preload = self.preload.iter().map(|library| ("LD_PRELOAD", library.display().to_string()));
        [("HOME", home.display().to_string())].into_iter().chain(preload).collect()
    }

    /// A password, made at the first use and kept.
    fn password(&self, name: &str) -> Result<String> {
        secret::password(&self.data_dir.join("secret").join(name))
    }
}

/// The first of these programs that exists.
fn find_program(candidates: &[PathBuf], name: &str, way_out: &str) -> Result<PathBuf> {
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .with_context(|| format!("there is no {name} on this machine; {way_out}"))
}

/// Where a program lies on the PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "where programs lie is no setting of ours")]
    let path = std::env::var("PATH").ok()?;
    path.split(':').map(|folder| Path::new(folder).join(name)).find(|program| program.is_file())
}
