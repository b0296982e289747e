//! Drills on real scratch servers.

use anyhow::{Context, ensure};
use serde_json::Value;
use taskflow_tests::backups::{Backups, text};
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Result, Site, World, wait};

use super::{Folder, Load, archived, reached};
use crate::PROGRAM;

/// A drill proves what is good, and says which part can't be restored.
pub(super) async fn run() -> Result {
    let world = World::start(Sync::Skipped).await?;
    let tried = Box::pin(drilled(&world)).await;
    world.stop().await;
    tried
}

async fn drilled(world: &World) -> Result {
    let site = Site::new(world).await?;
    let folder = Folder::new()?;
    let cluster = Cluster::new(&site, PROGRAM)?;
    let backups = archived(&cluster, &folder.0);
    // None that nobody here has made.
    cluster.write_settings("[scheduler.jobs.\"backup.postgres.base\"]\nenabled = false\n")?;
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    // It keeps a journal, in the same folder.
    let worker = cluster.spawn("worker", &backups.env())?;
    wait::until("the log is archived", async || Ok(reached(&backups).is_ok())).await?;
    // A drill that has nothing to restore proves nothing.
    let done = drill(&backups).await?;
    let detail = done["detail"].as_str().unwrap_or_default();
    ensure!(done["state"] == "failed" && detail.contains("nothing to restore"), "{done}");
    let mut load = Load::new(6);
    load.send(&site, 10).await?;
    let ids = [
        backups.create("postgres-base").await?,
        backups.create("postgres").await?,
        backups.create("mongodb").await?,
    ];
    load.send(&site, 10).await?;
    // While commands are applied.
    let (sent, done) = tokio::join!(load.send(&site, 60), drill(&backups));
    sent?;
    let done = done?;
    ensure!(done["state"] == "completed", "{done}");
    for part in ["cluster", "dump", "trail"] {
        ensure!(done["figures"][part]["took_s"].is_number(), "{part}: {done}");
    }
    let listed = backups.ask(&["backup", "list"]).await?;
    for id in &ids {
        let row =
            listed.as_array().into_iter().flatten().find(|row| row["id"] == **id).context("not listed")?;
        ensure!(row["state"] == "proven", "{row}");
    }
    cleared(&folder)?;
    scheduler.stop().await?;
    for step in ["unpacked", "replayed", "restored", "refilled"] {
        dies(&backups, step).await?;
    }
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    let done = drill(&backups).await?;
    ensure!(done["state"] == "completed", "after drills that died: {done}");
    cleared(&folder)?;
    // A byte of the dump changes; the rest is tried all the same.
    let path = backups.path(&ids[1]).join("database.dump.zst");
    let mut bytes = std::fs::read(&path)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes)?;
    let done = drill(&backups).await?;
    let detail = done["detail"].as_str().unwrap_or_default();
    ensure!(done["state"] == "failed" && detail.contains("database.dump.zst"), "{done}");
    ensure!(done["figures"]["trail"]["took_s"].is_number(), "{done}");
    wait::until("the audit trail tells of both", async || {
        let events = site.events().await?;
        let has =
            |kind: &str| events.iter().any(|event| event.get_str("type").is_ok_and(|found| found == kind));
        Ok(has("system.recovery_drill.completed") && has("system.recovery_drill.failed"))
    })
    .await?;
    worker.stop().await?;
    scheduler.stop().await
}

async fn drill(backups: &Backups<'_>) -> Result<Value> {
    let output = backups.run(&["jobs", "run", "backup.drill", "--json"], &[]).await?;
    serde_json::from_slice(&output.stdout).with_context(|| text(&output))
}

/// A drill whose scheduler is killed at a step; the next scheduler says what became of it.
async fn dies(backups: &Backups<'_>, step: &str) -> Result {
    let at = format!("{step}:1");
    let env = [backups.env().as_slice(), &[("TASKFLOW_CRASH_AT", at.as_str())]].concat();
    let mut doomed = backups.cluster.spawn("scheduler", &env)?;
    let next = async {
        wait::until("the scheduler dies at its step", async || Ok(!doomed.is_running())).await?;
        backups.cluster.spawn("scheduler", &backups.env())
    };
    let (done, scheduler) = tokio::try_join!(drill(backups), next)?;
    let detail = done["detail"].as_str().unwrap_or_default();
    ensure!(done["state"] == "failed" && detail.contains("is gone"), "{step}: {done}");
    scheduler.stop().await
}

/// No scratch server runs, and none of its files is there, though drills before were killed.
fn cleared(folder: &Folder) -> Result {
    let drills = folder.0.join("work/drill");
    let left: Vec<_> = std::fs::read_dir(&drills)?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "{left:?} are left");
    let drills = drills.display().to_string();
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        ensure!(!command.contains(&drills), "{command} is left");
    }
    Ok(())
}
