//! MongoDB: killed, stopped, away for minutes, without a disk. Commands are applied all the while.

use anyhow::Result;
use taskflow_servers::Kind::MongoDb;

use super::{Fault, act};
use crate::disk;
use crate::harness::Harness;
use crate::wait;

pub static FAULTS: &[Fault] = &[
    Fault::new("mongodb: kill -9", act!(kill), act!(start)).servers().applies().takes().falls_behind(),
    Fault::new("mongodb: hangs (SIGSTOP)", act!(pause), act!(resume))
        .servers()
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 40.0),
    Fault::new("mongodb: down for minutes", act!(kill), act!(start))
        .servers()
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 150.0)
        .soak_only(),
    Fault::new("mongodb: rejects writes (disk full)", act!(fill_disk), act!(clear_disk))
        .small_disk(&[MongoDb])
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 20.0),
];

async fn kill(h: &mut Harness<'_>) -> Result<()> {
    h.server(MongoDb, async |server| server.kill().await).await;
    Ok(())
}

async fn start(h: &mut Harness<'_>) -> Result<()> {
    h.server(MongoDb, async |server| server.restart().await).await
}

async fn pause(h: &mut Harness<'_>) -> Result<()> {
    h.server(MongoDb, async |server| server.pause()).await;
    Ok(())
}

async fn resume(h: &mut Harness<'_>) -> Result<()> {
    h.server(MongoDb, async |server| server.resume()).await;
    Ok(())
}

async fn fill_disk(h: &mut Harness<'_>) -> Result<()> {
    disk::fill(&h.world.folder_of(MongoDb))?;
    behind(h).await
}

/// Until the room that a store has laid by is used up as well, and events wait for it.
pub(super) async fn behind(h: &Harness<'_>) -> Result<()> {
    wait::until("events wait in the outbox", async || {
        Ok(h.site
            .count("SELECT count(*) FROM outbox WHERE created_at < now() - interval '2 seconds'")
            .await?
            > 0)
    })
    .await
}

/// A store that met a full disk may have stopped itself; whoever makes room starts it anew.
async fn clear_disk(h: &mut Harness<'_>) -> Result<()> {
    disk::clear(&h.world.folder_of(MongoDb))?;
    start(h).await
}
