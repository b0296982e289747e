//! The single test binary. It starts the servers once, runs the tests side by side, and stops the servers.
//!
//! A test is an async function that gets a corner of the servers of its own. Those that stop servers start a set of
//! their own.

mod again;
mod contract;
mod e2e;
mod faults;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use taskflow_tests::trial::Worlds;
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Process, Result, Site, World, logs, wait};

/// Tests at a time: they wait more than they work.
const AT_ONCE: usize = 3;
/// Marks tests that wait for each other: one at a time may break servers.
const TAKES_TURNS: &str = "servers";
/// Tests of which it is told at the end how long they took, with the time of all: what waits needlessly is found there.
const SLOWEST: usize = 15;
const TIMES_FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/times");
/// A test that takes longer hangs.
const LONGEST: Duration = Duration::from_secs(600);
const PROGRAM: &str = env!("CARGO_BIN_EXE_taskflow-under-test");

/// The shared servers, started by the first test that needs them.
struct Shared {
    runtime: tokio::runtime::Runtime,
    world: tokio::sync::OnceCell<World>,
}

static SHARED: OnceLock<Shared> = OnceLock::new();

fn shared() -> &'static Shared {
    SHARED.get_or_init(|| Shared {
        runtime: tokio::runtime::Runtime::new().expect("a runtime"),
        world: tokio::sync::OnceCell::new(),
    })
}

async fn shared_world() -> Result<&'static World> {
    shared().world.get_or_try_init(|| World::start(Sync::Skipped)).await
}

/// A test with a corner of the shared servers.
fn with_site(name: &str, test: impl AsyncFnOnce(Arc<Site>) -> Result + Send + 'static) -> Trial {
    trial(name, async move || {
        let world = shared_world().await?;
        let site = Arc::new(Site::new(world).await?);
        let result = test(Arc::clone(&site)).await;
        site.clear(world).await;
        result
    })
}

/// A test with nothing but a virtual host of the shared broker.
fn with_vhost(name: &str, test: impl AsyncFnOnce(String) -> Result + Send + 'static) -> Trial {
    trial(name, async move || test(shared_world().await?.vhost().await?).await)
}

/// A test with servers that it may break: nobody else has them meanwhile.
fn with_world(name: &str, test: impl AsyncFnOnce(&World) -> Result + Send + 'static) -> Trial {
    let trial = trial_after(
        name,
        async || Ok(faults::breakable().await),
        async move |mut worlds| {
            let worlds = worlds.get_or_insert_with(|| Worlds::new(Sync::Skipped));
            let result = test(worlds.any().await?).await;
            if result.is_err() {
                // Nobody knows what it has left.
                worlds.stop().await;
            }
            result
        },
    );
    trial.with_kind(TAKES_TURNS)
}

/// A test that starts servers of its own: one such set beside the shared one is enough for the machine.
fn with_own_servers(name: &str, test: impl AsyncFnOnce() -> Result + Send + 'static) -> Trial {
    trial_after(name, async || Ok(faults::breakable().await), async move |_turn| test().await)
        .with_kind(TAKES_TURNS)
}

/// A test without servers.
fn plain(name: &str, test: impl FnOnce() -> Result + Send + 'static) -> Trial {
    Trial::test(name, move || test().map_err(|error| format!("{error:#}").into()))
}

fn trial(name: &str, test: impl AsyncFnOnce() -> Result + Send + 'static) -> Trial {
    trial_after(name, async || Ok(()), async move |()| test().await)
}

/// A test that first waits for its turn, for as long as it takes.
fn trial_after<T>(
    name: &str,
    turn: impl AsyncFnOnce() -> Result<T> + Send + 'static,
    test: impl AsyncFnOnce(T) -> Result + Send + 'static,
) -> Trial {
    let (named, to_note) = (name.to_owned(), name.to_owned());
    Trial::test(name, move || {
        let limited = async {
            let turn = match turn().await {
                Ok(turn) => turn,
                Err(error) => return Ok(Err(error)),
            };
            // Waiting for its turn is not the test's time.
            let begin = Instant::now();
            let ended = tokio::time::timeout(LONGEST, test(turn)).await;
            TIMES.lock().unwrap_or_else(PoisonError::into_inner).push((begin.elapsed(), named));
            ended
        };
        let (ended, logs) =
            shared().runtime.block_on(logs::around(limited, |ended| !matches!(ended, Ok(Ok(())))));
        match ended {
            Ok(result) => result.map_err(|error| {
                again::note(&to_note, &error);
                format!("{error:#}\n{logs}").into()
            }),
            Err(_) => Err(format!("not done after {} s\n{logs}", LONGEST.as_secs()).into()),
        }
    })
}

/// How long each test took.
static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

/// Puts tests that wait for each other evenly between the others: several of them side by side would only wait.
fn spread(tests: Vec<Trial>) -> Vec<Trial> {
    let (turns, others): (Vec<Trial>, Vec<Trial>) =
        tests.into_iter().partition(|test| test.kind() == TAKES_TURNS);
    let share = |all: usize, index: usize| (index as f64 + 0.5) / all as f64;
    let (all_turns, all_others) = (turns.len(), others.len());
    let mut placed: Vec<(f64, Trial)> =
        turns.into_iter().enumerate().map(|(index, test)| (share(all_turns, index), test)).collect();
    placed.extend(others.into_iter().enumerate().map(|(index, test)| (share(all_others, index), test)));
    placed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    placed.into_iter().map(|(_, test)| test).collect()
}

fn tell_slowest() {
    let mut times = std::mem::take(&mut *TIMES.lock().unwrap_or_else(PoisonError::into_inner));
    if times.len() > SLOWEST {
        times.sort();
        times.reverse();
        let all: Duration = times.iter().map(|(took, _)| *took).sum();
        eprintln!("the slowest of {} tests, which took {} s together:", times.len(), all.as_secs());
        let lines: Vec<String> =
            times.iter().map(|(took, name)| format!("{:6.1} s  {name}", took.as_secs_f64())).collect();
        lines[..SLOWEST].iter().for_each(|line| eprintln!("{line}"));
        // A convenience: who can't write it has read the first of them.
        if std::fs::write(TIMES_FILE, lines.join("\n")).is_ok() {
            eprintln!("all of them: {TIMES_FILE}");
        }
    }
}

fn cluster(site: &Site) -> Result<Cluster<'_>> {
    Cluster::new(site, PROGRAM)
}

/// A second worker that has some of the partitions, and leaves some. Of five partitions it gets none, or all, once in
/// sixteen times: then another one is started, which has another id.
async fn sharing(site: &Site, cluster: &Cluster<'_>, env: &[(&str, &str)]) -> Result<Process> {
    loop {
        let second = cluster.spawn("worker", env)?;
        let held = "SELECT count(DISTINCT holder) FROM partition_leases WHERE expires_at > now()";
        let shared = wait::until("both have partitions", async || Ok(site.count(held).await? == 2));
        if tokio::time::timeout(Duration::from_secs(20), shared).await.is_ok() {
            return Ok(second);
        }
        second.kill().await?;
    }
}

fn main() -> ExitCode {
    // The program's own clients of object stores leave the choice of TLS to the process; so do the tests' clients, then.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let tests = [e2e::tests(), faults::tests(), contract::tests()].into_iter().flatten().collect();
    let is_whole = arguments.filter.is_none() && !arguments.list;
    let conclusion = libtest_mimic::run(&arguments, spread(tests));
    tell_slowest();
    if let Some(shared) = SHARED.get() {
        shared.runtime.block_on(faults::stop());
    }
    if let Some(shared) = SHARED.get()
        && shared.world.initialized()
    {
        // The servers end with their folder; a polite stop would only take time.
        shared.runtime.block_on(async {
            if let Some(world) = shared.world.get() {
                world.discard().await;
            }
        });
    }
    if conclusion.has_failed() && !(is_whole && again::passes(&conclusion)) {
        ExitCode::from(101)
    } else {
        ExitCode::SUCCESS
    }
}
