//! A server's process: in a group of its own, as a user of its own, known again after a crash of whoever started it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::proc::{self, Identity};
use crate::{ports, user};

/// How long a server may take to stop when asked. Postgres writes a checkpoint, RabbitMQ closes its queues.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long the kernel may take to end what was killed; a disk may hold it up.
const DIE_WITHIN: Duration = Duration::from_secs(10);

/// What to run.
pub(crate) struct Spec {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(&'static str, String)>,
    /// Its working directory, which it owns. By it and the names a lost server is known again.
    pub dir: PathBuf,
    /// What its processes call themselves.
    pub names: &'static [&'static str],
    pub log: PathBuf,
    pub pid_file: PathBuf,
    /// Debian's user for this server; used when we are root.
    pub user: &'static str,
    /// Where it will listen, and for what.
    pub ports: Vec<(u16, &'static str)>,
    /// The signal that asks it to stop.
    pub stop: Signal,
}

/// A running process with everything it has started.
pub(crate) struct Process {
    /// Gone when it was stopped.
    child: Option<Child>,
    identity: Identity,
    stop: Signal,
    pid_file: PathBuf,
}

/// Erlang makes tables as long as the limit, so that some containers' billion is too much; a thousand is too little.
const OPEN_FILES: &str = r#"files=$(ulimit -Hn)
case $files in unlimited|??????*) files=65536 ;; esac
ulimit -n "$files"
exec "$@""#;

impl Process {
    /// Starts it. What a former run has left is stopped first; a port in a stranger's hands is an error.
    pub(crate) async fn start(spec: Spec) -> Result<Self> {
        clear_leftover(&spec).await?;
        for (port, what) in &spec.ports {
            ports::must_be_free(*port, what)?;
        }
        for file in [&spec.log, &spec.pid_file] {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)?;
            }
        }
        let log = File::options().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| format!("open {}", spec.log.display()))?;
        let mut command = user::command(Path::new("/bin/sh"), spec.user)?;
        command
            .args(["-c", OPEN_FILES, "sh"])
            .arg(&spec.program)
            .args(&spec.args)
            .envs(spec.env)
            .current_dir(&spec.dir)
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for us; we stop the servers in order.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("run {}", spec.program.display()))?;
        // Even if it has ended by now: nobody has asked for its result, so the number is still its own.
        let pid = child.id().context("it ended at once")?;
        let identity = Identity::of(pid).with_context(|| {
            format!(
                "{} ended at once; {} says:\n{}",
                spec.program.display(),
                spec.log.display(),
                tail(&spec.log)
            )
        })?;
        let process = Self { child: Some(child), identity, stop: spec.stop, pid_file: spec.pid_file };
        std::fs::write(&process.pid_file, process.identity.to_line())
            .with_context(|| format!("write {}", process.pid_file.display()))?;
        Ok(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.identity.pid
    }

    pub(crate) fn is_running(&self) -> bool {
        self.identity.is_alive()
    }

    pub(crate) fn pause(&self) {
        if self.is_running() {
            proc::freeze(self.pid());
        }
    }

    pub(crate) fn resume(&self) {
        if self.is_running() {
            proc::thaw(self.pid());
        }
    }

    /// Asks the process to stop; kills it if it does not.
    pub(crate) async fn stop(mut self) {
        // Paused, it would not hear.
        self.resume();
        let family: Vec<Identity> = proc::family(self.pid()).into_iter().filter_map(Identity::of).collect();
        // To the process alone: its children are its own to stop.
        let _ = self.identity.signal(self.stop);
        let asked = match &mut self.child {
            Some(child) => timeout(STOP_WITHIN, child.wait()).await,
            None => return,
        };
        if asked.is_err() {
            tracing::warn!(pid = self.pid(), "A server did not stop when asked; it is killed.");
            return self.kill().await;
        }
        self.child = None;
        end(&family, None).await;
        let _ = std::fs::remove_file(&self.pid_file);
    }

    pub(crate) async fn kill(mut self) {
        // Its number is its own as long as nobody has asked for its result.
        let family = proc::kill_family(self.pid());
        if let Some(mut child) = self.child.take() {
            let _ = child.wait().await;
        }
        end(&family, None).await;
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whoever forgets to stop a server must not leave it behind.
        if self.child.is_some() {
            proc::kill_family(self.pid());
        }
    }
}

/// Waits until these have ended: first, if a signal is given, as they are asked to, then killed. False if some do not.
async fn end(processes: &[Identity], ask: Option<Signal>) -> bool {
    let alive = || processes.iter().filter(|process| process.is_alive());
    // Children of a server that has just stopped may take a moment to notice.
    let patience = if ask.is_some() { STOP_WITHIN } else { Duration::from_secs(1) };
    for (signal, patience) in [(ask, patience), (Some(Signal::SIGKILL), DIE_WITHIN)] {
        if let Some(signal) = signal {
            for process in alive() {
                let _ = process.signal(Signal::SIGCONT).and_then(|()| process.signal(signal));
            }
        }
        let deadline = Instant::now() + patience;
        while alive().next().is_some() && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
    }
    alive().next().is_none()
}

/// Stops what a former run has left of this server. Whoever calls holds the server's lock: nobody looks after it.
pub(crate) async fn clear_leftover(spec: &Spec) -> Result<()> {
    let recorded = std::fs::read_to_string(&spec.pid_file).ok().and_then(|line| Identity::from_line(&line));
    let mut left = proc::working_in(&spec.dir, spec.names);
    left.extend(recorded.filter(|process| process.is_alive() && !left.contains(process)));
    if left.is_empty() {
        return Ok(());
    }
    // Only the uppermost is asked, and stops the others itself.
    let families: Vec<Vec<u32>> = left.iter().map(|process| proc::family(process.pid)).collect();
    let is_child =
        |pid: u32| families.iter().any(|family| family.contains(&pid) && family.first() != Some(&pid));
    let (children, heads): (Vec<_>, Vec<_>) = left.into_iter().partition(|process| is_child(process.pid));
    for head in &heads {
        tracing::info!(pid = head.pid, program = %spec.program.display(), "A server of a former run still runs; it is stopped.");
        // It may have been left paused.
        proc::thaw(head.pid);
    }
    let ended = end(&heads, Some(spec.stop)).await && end(&children, None).await;
    if !ended {
        bail!(
            "process {} of a former run, in {}, does not stop; stop it by hand, as its own user or as root",
            heads
                .iter()
                .chain(&children)
                .map(|process| process.pid.to_string())
                .collect::<Vec<_>>()
                .join(", "),
            spec.dir.display()
        );
    }
    Ok(())
}

/// The end of a log.
pub(crate) fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| error.to_string())
}
