//! The program under test, as processes.

use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::{Client, Site, logs, wait};

/// Starts processes for one site.
pub struct Cluster<'s> {
    site: &'s Site,
    program: PathBuf,
    logs: Arc<tempfile::TempDir>,
    started: std::sync::atomic::AtomicUsize,
}

/// A role that runs.
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// Seconds of processor time that a process has used.
pub fn cpu_seconds(pid: Pid) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("no statistics")?.1.split_whitespace();
    // The 14th and the 15th field, in hundredths of a second (proc(5)).
    let ticks: Vec<f64> = fields.skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

impl<'s> Cluster<'s> {
    pub fn new(site: &'s Site, program: &str) -> Result<Self> {
        let (program, started) = (program.into(), std::sync::atomic::AtomicUsize::new(0));
        Ok(Self { site, program, logs: logs::folder()?, started })
    }

    /// A folder of the test's own, in which its processes work.
    pub fn folder(&self) -> &std::path::Path {
        self.logs.path()
    }

    /// Starts a worker.
    pub fn worker(&self) -> Result<Process> {
        self.spawn("worker", &[])
    }

    /// Starts a worker that ends itself (SIGKILL) at a step: `name:n` is the n-th time there.
    pub fn crashing_worker(&self, at: &str) -> Result<Process> {
        self.spawn("worker", &[("TASKFLOW_CRASH_AT", at)])
    }

    /// Starts an API and a client for it.
    pub async fn api(&self) -> Result<(Process, Client)> {
        self.api_with(&[]).await
    }

    /// The same with settings of its own.
    pub async fn api_with(&self, env: &[(&str, &str)]) -> Result<(Process, Client)> {
        let address = crate::free_address()?;
        let env = [env, &[("TASKFLOW_HTTP__LISTEN", address.as_str())]].concat();
        let process = self.spawn("api", &env)?;
        let client = Client::new(&format!("http://{address}"))?;
        wait::until("the API is ready", async || Ok(client.get("/readyz").await?.status() == 200)).await?;
        Ok((process, client))
    }

    pub fn spawn(&self, role: &str, env: &[(&str, &str)]) -> Result<Process> {
        let number = self.started.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let log = self.logs.path().join(format!("{number}-{role}.log"));
        let file = std::fs::File::create(&log)?;
        let child = self.command(&[role], env).stdout(Stdio::null()).stderr(file).spawn()?;
        Ok(Process { child, log })
    }

    /// Writes the settings file that all processes find from now on.
    pub fn write_settings(&self, toml: &str) -> Result<()> {
        Ok(std::fs::write(self.logs.path().join("taskflow.toml"), toml)?)
    }

    /// Lines that all processes of a role have logged by now, those that have ended too.
    pub fn log_lines(&self, role: &str) -> usize {
        logs::all(self.logs.path(), role).iter().map(|(_, text)| text.lines().count()).sum()
    }

    /// The last lines of each log.
    pub fn log_tails(&self, lines: usize) -> String {
        logs::tails(self.logs.path(), lines).concat()
    }

    /// Runs a subcommand to its end.
    pub async fn run(&self, args: &[&str], env: &[(&str, &str)]) -> Result<Output> {
        Ok(self.command(args, env).stdin(Stdio::null()).output().await?)
    }

    /// A command of the program, with this site's settings.
    pub fn command(&self, args: &[&str], env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(&self.program);
        // Settings of whoever runs the tests are none of this site's.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TASKFLOW_"))
        {
            command.env_remove(name);
        }
        command
            .args(args)
            .current_dir(self.logs.path())
            .env("TASKFLOW_LOG", "info,lapin=off,sqlx=error")
            .envs(self.site.env.iter().map(|(name, value)| (name, value)))
            .envs(env.iter().copied())
            .kill_on_drop(true);
        command
    }
}

impl Process {
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(self.child.id().context("the process has ended")?.cast_signed()))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid()?, signal)?)
    }

    /// Asks it to stop and waits until it has; it must say that all went well.
    pub async fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        let status = self.ended().await?;
        ensure!(status.success(), "it ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Kills it at once.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Waits until it has ended by itself.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), self.child.wait()).await;
        Ok(ended.with_context(|| format!("it does not end:\n{}", self.log()))??)
    }

    /// Its end, whenever that is.
    pub async fn end(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }

    /// Seconds of processor time that it has used.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.pid()?)
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}
