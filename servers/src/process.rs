//! A server's process: in a group of its own, as a user of its own, known again after a crash of whoever started it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Uid, User};
use tokio::process::{Child, Command};

/// How long a server may take to stop when asked.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// What to run.
pub(crate) struct Spec {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(&'static str, String)>,
    /// Its working directory, which it owns.
    pub dir: PathBuf,
    pub log: PathBuf,
    pub pid_file: PathBuf,
    /// Debian's user for this server; used when we are root.
    pub user: &'static str,
    /// The signal that asks it to stop.
    pub stop: Signal,
}

/// A running process with everything it has started.
pub(crate) struct Process {
    child: Option<Child>,
    pid: u32,
    stop: Signal,
    pid_file: PathBuf,
}

/// The user that a server runs as: its own when we are root, else ours.
pub(crate) fn user(name: &str) -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name(name)?;
    user.map(Some)
        .with_context(|| format!("there is no user {name}; Debian's package of the server makes it"))
}

/// Makes a folder that belongs to a server's user.
pub(crate) fn own_dir(dir: &Path, name: &str) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    if let Some(user) = user(name)? {
        chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        must_reach(dir, name)?;
    }
    Ok(())
}

/// Gives a file to a server's user.
pub(crate) fn own_file(file: &Path, name: &str) -> Result<()> {
    if let Some(user) = user(name)? {
        chown(file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// A folder below one that its user may not enter fails later in words that nobody understands.
fn must_reach(dir: &Path, name: &str) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for parent in dir.ancestors().skip(1) {
        let mode = std::fs::metadata(parent)?.permissions().mode();
        if mode & 0o001 == 0 {
            bail!(
                "the user {name} can't reach {}: {} is closed to others; choose another folder with --data, or `chmod o+x {}`",
                dir.display(),
                parent.display(),
                parent.display()
            );
        }
    }
    Ok(())
}

/// A command that runs as a server's user.
pub(crate) fn command(program: &Path, name: &str) -> Result<Command> {
    let mut command = Command::new(program);
    if let Some(user) = user(name)? {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    Ok(command)
}

/// Runs a command to its end; an error has what it printed.
pub(crate) async fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command.output().await.with_context(|| format!("run {what}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    bail!("{what} failed: {text}{}", String::from_utf8_lossy(&output.stderr))
}

impl Process {
    pub(crate) async fn start(spec: Spec) -> Result<Self> {
        clear_leftover(&spec).await?;
        for file in [&spec.log, &spec.pid_file] {
            if let Some(folder) = file.parent() {
                std::fs::create_dir_all(folder)?;
            }
        }
        let log = File::options().create(true).append(true).open(&spec.log)?;
        let mut command = command(&spec.program, spec.user)?;
        command
            .args(&spec.args)
            .envs(spec.env)
            .current_dir(&spec.dir)
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for us; we stop the servers in order.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("run {}", spec.program.display()))?;
        let pid = child.id().context("it ended at once")?;
        let started = started(pid).unwrap_or_default();
        std::fs::write(&spec.pid_file, format!("{pid} {started}"))?;
        Ok(Self { child: Some(child), pid, stop: spec.stop, pid_file: spec.pid_file })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let _ = killpg(group(self.pid), signal);
    }

    /// Asks the process to stop; kills it if it does not.
    pub(crate) async fn stop(mut self) {
        // To the process alone: its children are its own to stop.
        let _ = nix::sys::signal::kill(group(self.pid), self.stop);
        if let Some(child) = &mut self.child {
            let _ = tokio::time::timeout(STOP_WITHIN, child.wait()).await;
        }
        self.kill().await;
    }

    pub(crate) async fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(mut child) = self.child.take() {
            let _ = child.wait().await;
        }
        let _ = std::fs::remove_file(&self.pid_file);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whoever forgets to stop a server must not leave it behind.
        if self.child.is_some() {
            self.signal(Signal::SIGKILL);
        }
    }
}

fn group(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}

/// Stops what a former run has left of this server.
pub(crate) async fn clear_leftover(spec: &Spec) -> Result<()> {
    stop_leftover(&spec.pid_file, spec.stop).await
}

/// Stops what a former run has left, if it is the same process and not another one under its number.
async fn stop_leftover(pid_file: &Path, stop: Signal) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(pid_file) else { return Ok(()) };
    if let Some((pid, start)) = text.split_once(' ')
        && let Ok(pid) = pid.parse()
    {
        let same = || started(pid).as_deref() == Some(start);
        for (signal, patience_ms) in [(stop, 15_000), (Signal::SIGKILL, 5_000)] {
            if !same() {
                break;
            }
            tracing::info!(pid, "A server of a former run is still there; it is stopped.");
            let _ = match signal {
                Signal::SIGKILL => killpg(group(pid), signal),
                // It may be paused.
                _ => nix::sys::signal::kill(group(pid), Signal::SIGCONT)
                    .and_then(|()| nix::sys::signal::kill(group(pid), signal)),
            };
            for _ in 0..patience_ms / 50 {
                if !same() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        if same() {
            bail!("process {pid} of a former run does not stop");
        }
        // Children of a server that was killed alone.
        let _ = killpg(group(pid), Signal::SIGKILL).is_ok();
    }
    std::fs::remove_file(pid_file).with_context(|| format!("remove {}", pid_file.display()))
}

/// When a process started, in the kernel's ticks: with the number it names a process for good.
fn started(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    // A zombie has ended; nobody has asked for its result yet.
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19).map(|start| (*start).to_owned())
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
