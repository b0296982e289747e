//! What the kernel knows of processes: who is whose child, who is still the same, who holds a port.

use std::collections::BTreeSet;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A process for good: its number together with the moment of its start. Numbers are given again, also to programs
/// that are none of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub pid: u32,
    /// Ticks since the machine's start, and which start of the machine that was.
    since: String,
}

impl Identity {
    /// The process that has this number now, unless it has ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid).filter(Stat::is_alive)?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Some(Self { pid, since: format!("{} {}", stat.start, boot.trim()) })
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub(crate) fn to_line(&self) -> String {
        format!("{} {}\n", self.pid, self.since)
    }

    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let (pid, since) = line.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, since: since.to_owned() })
    }

    /// Sends a signal, unless the process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> nix::Result<()> {
        if self.is_alive() { kill(Pid::from_raw(self.pid.cast_signed()), signal) } else { Ok(()) }
    }
}

struct Stat {
    pid: u32,
    state: char,
    parent: u32,
    group: u32,
    start: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name is in parentheses and may hold anything, parentheses too.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }

    /// A zombie has ended; only nobody has asked for its result yet.
    fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }
}

fn all_pids() -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A process, its group, and everything below it. The group alone is not enough: Postgres gives each of its processes
/// a session of its own, and so does Erlang.
pub(crate) fn family(leader: u32) -> Vec<u32> {
    let stats: Vec<Stat> = all_pids().filter_map(Stat::of).filter(Stat::is_alive).collect();
    let mut found: BTreeSet<u32> =
        stats.iter().filter(|stat| stat.pid == leader || stat.group == leader).map(|stat| stat.pid).collect();
    loop {
        let before = found.len();
        for stat in &stats {
            if found.contains(&stat.parent) {
                found.insert(stat.pid);
            }
        }
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

/// Stops the clock of a process and its family: whoever was born meanwhile is found in the next round.
pub(crate) fn freeze(leader: u32) -> Vec<Identity> {
    let mut frozen = BTreeSet::new();
    loop {
        let fresh: Vec<u32> = family(leader).into_iter().filter(|pid| frozen.insert(*pid)).collect();
        if fresh.is_empty() {
            return frozen.into_iter().filter_map(Identity::of).collect();
        }
        for pid in fresh {
            send(pid, Signal::SIGSTOP);
        }
    }
}

/// Lets a frozen family go on, children first: their parent finds them as it left them.
pub(crate) fn thaw(leader: u32) {
    for pid in family(leader).into_iter().filter(|pid| *pid != leader).chain([leader]) {
        send(pid, Signal::SIGCONT);
    }
}

/// Kills a process and its family. Frozen first, so that none is born while the others are killed.
pub(crate) fn kill_family(leader: u32) -> Vec<Identity> {
    let family = freeze(leader);
    for identity in &family {
        // Gone already is what was wanted.
        let _ = identity.signal(Signal::SIGKILL);
    }
    family
}

/// An error means that the process is gone already, which is as good.
fn send(pid: u32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
}

/// Processes that work in a folder under one of these names: a server that was started there, whoever lost sight of
/// it. A shell that somebody opened in the folder has another name.
pub(crate) fn working_in(dir: &Path, names: &[&str]) -> Vec<Identity> {
    let is_one = |pid: &u32| {
        let here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        here && name_of(*pid).is_some_and(|name| names.contains(&name.as_str()))
    };
    all_pids().filter(is_one).filter_map(Identity::of).collect()
}

/// A program's name as its command line tells: `/usr/bin/redis-server *:6379`, `postgres: checkpointer`.
pub(crate) fn name_of(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let line = String::from_utf8_lossy(&line);
    let program = line.split(['\0', ' ']).next()?.trim_end_matches(':');
    Some(program.rsplit('/').next()?.to_owned()).filter(|name| !name.is_empty())
}

/// Who listens on a port, if we may see it.
pub(crate) fn listener(port: u16) -> Option<u32> {
    let tables =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| std::fs::read_to_string(file).unwrap_or_default());
    let sockets: Vec<String> = tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
            // 0A is LISTEN.
            let listens = *fields.get(3)? == "0A" && u16::from_str_radix(local_port, 16).ok()? == port;
            listens.then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))?
        })
        .collect();
    all_pids().find(|pid| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| std::fs::read_link(file.path()).ok())
            .any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str()))
    })
}
