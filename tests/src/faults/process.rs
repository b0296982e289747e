//! Our own processes: killed, stopped, starved, panicking, with a wrong clock; callers that go away.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{Fault, act, nothing};
use crate::harness::Harness;
use crate::wait;

pub static FAULTS: &[Fault] = &[
    Fault::new("worker: kill -9 at random, three times", act!(kill_workers), act!(nothing)).death().takes(),
    Fault::new("worker: kill -9 of all", act!(kill_all_workers), act!(two_workers)).stands().takes(),
    Fault::new("worker: SIGSTOP for longer than its lease", act!(stop_a_worker), act!(go_on))
        .hold(4.0, 20.0)
        .takes(),
    Fault::new("worker: out of memory", act!(starve_a_worker), act!(replace)).death().takes(),
    Fault::new("worker: panic in a partition's task", act!(panic_in_partition), act!(replace))
        .death()
        .takes()
        // Which worker has the partition is a matter of chance; tests/it/faults/watchdog.rs does it with one worker.
        .soak_only(),
    Fault::new("worker: panic in a sink's task", act!(panic_in_sink), act!(replace))
        .death()
        .takes()
        .soak_only(),
    Fault::new("worker: its lease is taken away", act!(take_leases), act!(nothing)).death().takes(),
    Fault::new(
        "partitions: their number goes up and down, workers die meanwhile",
        act!(more_partitions),
        act!(as_before),
    )
    .death()
    .takes(),
    Fault::new("API: kill -9 at random, three times", act!(kill_api), act!(nothing)).hold(0.0, 0.0),
    Fault::new("API: callers that leave half-way", act!(rude_callers), act!(polite_callers))
        .applies()
        .takes(),
    Fault::new("clock: an hour forwards", act!(clock_forwards), act!(clock_right))
        .prepared(act!(fake_clock))
        .applies()
        .takes(),
    Fault::new("clock: an hour back", act!(clock_back), act!(clock_right))
        .prepared(act!(fake_clock))
        .applies()
        .takes(),
];

/// Somewhere within the next second or so.
async fn some_time(h: &mut Harness<'_>) {
    let millis = h.dice.below(1_000);
    sleep(Duration::from_millis(millis)).await;
}

async fn kill_workers(h: &mut Harness<'_>) -> Result<()> {
    for _ in 0..3 {
        some_time(h).await;
        h.take_worker()?.kill().await?;
        // A supervisor's work.
        h.start_worker()?;
    }
    Ok(())
}

async fn kill_all_workers(h: &mut Harness<'_>) -> Result<()> {
    some_time(h).await;
    while !h.workers.is_empty() {
        h.take_worker()?.kill().await?;
    }
    Ok(())
}

async fn two_workers(h: &mut Harness<'_>) -> Result<()> {
    h.start_worker()?;
    h.start_worker()
}

async fn stop_a_worker(h: &mut Harness<'_>) -> Result<()> {
    some_time(h).await;
    let worker = h.take_worker()?;
    worker.signal(Signal::SIGSTOP)?;
    h.workers.push(worker);
    Ok(())
}

async fn go_on(h: &mut Harness<'_>) -> Result<()> {
    h.signal_workers(Signal::SIGCONT)
}

/// The command dies as soon as it has asked; workers go on with the change, and die one after the other.
async fn more_partitions(h: &mut Harness<'_>) -> Result<()> {
    let asked =
        h.cluster.run(&["partitions", "set", "7"], &[("TASKFLOW_CRASH_AT", "change_asked:1")]).await?;
    ensure!(asked.status.signal() == Some(9), "the command lives: {}", asked.status);
    for _ in 0..2 {
        some_time(h).await;
        h.take_worker()?.kill().await?;
        h.start_worker()?;
    }
    Ok(())
}

pub(super) async fn as_before(h: &mut Harness<'_>) -> Result<()> {
    settled(h).await?;
    let number = h.site.rabbit.partitions.to_string();
    let set = h.cluster.run(&["partitions", "set", &number], &[]).await?;
    ensure!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    settled(h).await
}

async fn settled(h: &Harness<'_>) -> Result<()> {
    wait::until("the change is at its end", async || Ok(h.site.course().await?.is_settled())).await
}

/// From now on the worker gets no more memory than it has. Rust ends a process that can't allocate.
async fn starve_a_worker(h: &mut Harness<'_>) -> Result<()> {
    let mut worker = h.take_worker()?;
    let limit = tokio::process::Command::new("prlimit")
        .args(["--pid", &worker.pid()?.to_string(), "--as=1", "--data=1"])
        .output()
        .await
        .context("run prlimit (package util-linux)")?;
    ensure!(limit.status.success(), "prlimit: {}", String::from_utf8_lossy(&limit.stderr));
    // What the allocator has kept may last for a while; it need not die, only not lie.
    let starved = Instant::now();
    while worker.is_running() && starved.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(20)).await;
    }
    if worker.is_running() { worker.kill().await } else { Ok(()) }
}

/// Workers that lost or got company are two again.
async fn replace(h: &mut Harness<'_>) -> Result<()> {
    while h.workers.len() < 2 {
        h.start_worker()?;
    }
    Ok(())
}

async fn panic_in_partition(h: &mut Harness<'_>) -> Result<()> {
    panics(h, "panic:written:7").await
}

async fn panic_in_sink(h: &mut Harness<'_>) -> Result<()> {
    panics(h, "panic:audited:7").await
}

async fn panics(h: &mut Harness<'_>, at: &str) -> Result<()> {
    h.take_worker()?.kill().await?;
    h.start_worker_with(&[("TASKFLOW_CRASH_AT", at)])?;
    let worker = h.workers.last().context("no worker")?;
    wait::until("the task panics", async || Ok(worker.log().contains("panicked"))).await
}

/// As if it had run out without the holder's knowing: two believe that the partition is theirs.
async fn take_leases(h: &mut Harness<'_>) -> Result<()> {
    let others = "UPDATE partition_leases l SET expires_at = now() + interval '3 seconds', holder =
        (SELECT id FROM workers w WHERE w.id <> l.holder AND w.expires_at > now() LIMIT 1)
        WHERE EXISTS (SELECT 1 FROM workers w WHERE w.id <> l.holder AND w.expires_at > now())";
    for _ in 0..3 {
        some_time(h).await;
        h.site.sql(others).await?;
    }
    Ok(())
}

async fn kill_api(h: &mut Harness<'_>) -> Result<()> {
    for _ in 0..3 {
        some_time(h).await;
        let mut api = h.api.take().context("there is no API")?;
        api.signal(Signal::SIGKILL)?;
        let status = api.ended().await?;
        ensure!(status.signal() == Some(9), "it ended with {status}");
        h.start_api().await?;
    }
    Ok(())
}

async fn rude_callers(h: &mut Harness<'_>) -> Result<()> {
    h.load()?.be_rude(true);
    Ok(())
}

async fn polite_callers(h: &mut Harness<'_>) -> Result<()> {
    h.load()?.be_rude(false);
    ensure!(h.load()?.left() > 0, "nobody has left a request half-way");
    Ok(())
}

const FAKE: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Whether clocks can be set wrong here.
pub fn clocks_can_be_wrong() -> bool {
    Path::new(FAKE).exists()
}

/// Settings of a process whose clock is so many hours ahead, or behind if they are negative; its monotonic clock is right.
pub fn clock_ahead(hours: i32) -> Result<[(&'static str, String); 3]> {
    ensure!(clocks_can_be_wrong(), "there is no libfaketime; install the package libfaketime");
    Ok([
        ("LD_PRELOAD", FAKE.to_owned()),
        ("FAKETIME", format!("{hours:+}h")),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ])
}

/// The program reads the time through a library that adds what a file says. Its monotonic clock stays right, as when
/// a machine's clock is set.
async fn fake_clock(h: &mut Harness<'_>) -> Result<()> {
    ensure!(clocks_can_be_wrong(), "there is no libfaketime; install the package libfaketime");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("offset");
    std::fs::write(&file, "+0\n")?;
    let settings = [
        ("LD_PRELOAD", FAKE),
        ("FAKETIME_TIMESTAMP_FILE", &file.display().to_string()),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    h.env.extend(settings);
    h.kept.push(Box::new(folder));
    Ok(())
}

async fn clock_forwards(h: &mut Harness<'_>) -> Result<()> {
    set_clock(h, "+3600\n")
}

async fn clock_back(h: &mut Harness<'_>) -> Result<()> {
    set_clock(h, "-3600\n")
}

async fn clock_right(h: &mut Harness<'_>) -> Result<()> {
    set_clock(h, "+0\n")
}

fn set_clock(h: &Harness<'_>, offset: &str) -> Result<()> {
    let file = h.env.iter().find(|(name, _)| name == "FAKETIME_TIMESTAMP_FILE");
    // Moved into place: the library may read at any moment.
    let file = Path::new(&file.context("the clock is not a faked one")?.1);
    let fresh = file.with_extension("fresh");
    std::fs::write(&fresh, offset)?;
    Ok(std::fs::rename(fresh, file)?)
}
