//! The short form of every fault of the catalogue: one seed, a moderate load, a few seconds each.

use std::sync::{Mutex, MutexGuard, PoisonError};

use libtest_mimic::Trial;
use taskflow_tests::faults::{self, Fault, Scope, process};
use taskflow_tests::trial::{self, Row, Size, Stuck, Worlds};
use taskflow_tests::world::Sync;
use taskflow_tests::{Result, World, disk};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{PROGRAM, TAKES_TURNS, shared_world, trial_after};

/// Sets of servers that tests may break, while nobody has them.
static IDLE: Mutex<Vec<Worlds>> = Mutex::new(Vec::new());
/// One at a time: two are not faster on two cores, and a broker then needs half a minute to start again.
static TURNS: Semaphore = Semaphore::const_new(1);

pub(crate) fn tests() -> Vec<Trial> {
    let mut faults: Vec<&Fault> = faults::all().filter(|fault| !fault.soak_only && possible(fault)).collect();
    // Servers on small disks are others: started once, for all that want them. What spoils the first ones comes before.
    faults.sort_by_key(|fault| (!fault.small_disks.is_empty(), fault.spoils));
    faults.into_iter().map(test).collect()
}

/// The turn to break servers that nobody else has meanwhile.
pub(crate) struct Turn {
    worlds: Option<Worlds>,
    _turn: SemaphorePermit<'static>,
}

impl Turn {
    pub(crate) fn worlds(&mut self) -> &mut Worlds {
        self.worlds.get_or_insert_with(|| Worlds::new(Sync::Skipped))
    }
}

impl Drop for Turn {
    /// Before the next one has its turn, which finds them then.
    fn drop(&mut self) {
        idle().extend(self.worlds.take());
    }
}

fn idle() -> MutexGuard<'static, Vec<Worlds>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a turn; if there is a choice, with servers whose disks are as small as wanted.
pub(crate) async fn breakable(small_disks: bool) -> Result<Turn> {
    let turn = TURNS.acquire().await?;
    let mut idle = idle();
    let chosen = idle.iter().position(|worlds| worlds.have_small_disks() == small_disks);
    let worlds = chosen.map(|chosen| idle.swap_remove(chosen)).or_else(|| idle.pop());
    Ok(Turn { worlds, _turn: turn })
}

/// Some take root or a package; the soak says so, here they are left out.
fn possible(fault: &Fault) -> bool {
    (fault.small_disks.is_empty() || disk::possible())
        && (!fault.name.starts_with("clock") || process::clocks_can_be_wrong())
}

fn test(fault: &'static Fault) -> Trial {
    let name = format!("fault: {}", fault.name);
    match fault.scope {
        Scope::Site => trial_after(
            &name,
            async || shared_world().await.map(drop),
            async move |()| {
                let world = shared_world().await?;
                let row = match run(world, fault).await {
                    Ok(row) => row,
                    Err(error) => again(error, run(world, fault)).await?,
                };
                row.must_be_clean()
            },
        ),
        Scope::Servers => trial_after(
            &name,
            async || breakable(!fault.small_disks.is_empty()).await,
            async move |mut turn| {
                let worlds = turn.worlds();
                let mut row = run(worlds.get(fault).await?, fault).await;
                if let Err(error) = row {
                    worlds.stop().await;
                    row = again(error, run(worlds.get(fault).await?, fault)).await;
                }
                let ended = row.and_then(|row| row.must_be_clean());
                if ended.is_err() || fault.spoils {
                    worlds.stop().await;
                }
                ended
            },
        )
        .with_kind(TAKES_TURNS),
    }
}

async fn run(world: &World, fault: &Fault) -> Result<Row> {
    trial::run(world, PROGRAM, fault, Size::SHORT).await
}

/// A trial that did not come about (a busy machine missed its moments) is made once more. One whose check found
/// anything lost, doubled, reordered or stuck, or that did not go on after the fault, is not: that is what it is there
/// for.
async fn again<T>(error: anyhow::Error, trial: impl Future<Output = Result<T>>) -> Result<T> {
    if error.is::<Stuck>() {
        return Err(error);
    }
    eprintln!("the trial did not come about and is made once more: {error:#}");
    trial.await
}

/// Stops the servers.
pub(crate) async fn stop() {
    let all = std::mem::take(&mut *idle());
    for mut worlds in all {
        worlds.stop().await;
    }
}
