//! The short form of every fault of the catalogue: one seed, a moderate load, a few seconds each.

use libtest_mimic::Trial;
use taskflow_tests::faults::{self, Fault, Scope, process};
use taskflow_tests::trial::{self, Row, Size, Stuck, Worlds};
use taskflow_tests::world::Sync;
use taskflow_tests::{Result, World, disk};
use tokio::sync::{Mutex, MutexGuard};

use crate::{PROGRAM, TAKES_TURNS, shared_world, trial_after};

/// Servers that tests may break, one after the other.
static WORLDS: Mutex<Option<Worlds>> = Mutex::const_new(None);

pub(crate) fn tests() -> Vec<Trial> {
    let mut faults: Vec<&Fault> = faults::all().filter(|fault| !fault.soak_only && possible(fault)).collect();
    // Servers on small disks are others: started once, for all that want them. What spoils the first ones comes before.
    faults.sort_by_key(|fault| (!fault.small_disks.is_empty(), fault.spoils));
    faults.into_iter().map(test).collect()
}

/// The turn to break servers.
pub(crate) async fn breakable() -> MutexGuard<'static, Option<Worlds>> {
    WORLDS.lock().await
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
            async || Ok(breakable().await),
            async move |mut worlds| {
                let worlds = worlds.get_or_insert_with(|| Worlds::new(Sync::Skipped));
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
    if let Some(worlds) = WORLDS.lock().await.as_mut() {
        worlds.stop().await;
    }
}
