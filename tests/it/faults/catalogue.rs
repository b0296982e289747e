//! The short form of every fault of the catalogue: one seed, a moderate load, a few seconds each.

use libtest_mimic::Trial;
use taskflow_tests::faults::{self, Fault, Scope, process};
use taskflow_tests::trial::{self, Size, Worlds};
use taskflow_tests::{Result, World, disk};
use tokio::sync::Mutex;

use crate::{PROGRAM, shared_world, trial_after};

/// Servers that the faults may break, one fault after the other.
static WORLDS: Mutex<Option<Worlds>> = Mutex::const_new(None);

pub(crate) fn tests() -> Vec<Trial> {
    faults::all().filter(|fault| !fault.soak_only && possible(fault)).map(test).collect()
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
            async move |()| one(shared_world().await?, fault).await,
        ),
        Scope::Servers => trial_after(
            &name,
            async || Ok(WORLDS.lock().await),
            async move |mut worlds| {
                let worlds = worlds.get_or_insert_with(Worlds::new);
                let ended = one(worlds.get(fault).await?, fault).await;
                if ended.is_err() {
                    worlds.stop().await;
                }
                ended
            },
        ),
    }
}

async fn one(world: &World, fault: &Fault) -> Result {
    trial::run(world, PROGRAM, fault, Size::SHORT).await?.must_be_clean()
}

/// Stops the servers.
pub(crate) async fn stop() {
    if let Some(worlds) = WORLDS.lock().await.as_mut() {
        worlds.stop().await;
    }
}
