//! Redis: killed, stopped, emptied, read-only, out of memory, without a disk. Commands are applied all the while.

use anyhow::Result;
use taskflow_servers::Kind::Redis;

use super::{Fault, act, nothing};
use crate::disk;
use crate::harness::Harness;

pub static FAULTS: &[Fault] = &[
    Fault::new("redis: kill -9", act!(kill), act!(start)).servers().applies().takes().falls_behind(),
    Fault::new("redis: hangs (SIGSTOP)", act!(pause), act!(resume))
        .servers()
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 40.0),
    Fault::new("redis: flushed", act!(flush), act!(nothing)).servers().hold(0.0, 0.0),
    Fault::new("redis: read-only", act!(read_only), act!(writable))
        .servers()
        .applies()
        .takes()
        .falls_behind(),
    Fault::new("redis: out of memory", act!(no_memory), act!(memory))
        .servers()
        .applies()
        .takes()
        .falls_behind(),
    Fault::new("redis: disk full", act!(fill_disk), act!(clear_disk))
        .small_disk(&[Redis])
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 20.0),
];

async fn kill(h: &mut Harness<'_>) -> Result<()> {
    h.server(Redis, async |server| server.kill().await).await;
    Ok(())
}

async fn start(h: &mut Harness<'_>) -> Result<()> {
    h.server(Redis, async |server| server.restart().await).await
}

async fn pause(h: &mut Harness<'_>) -> Result<()> {
    h.server(Redis, async |server| server.pause()).await;
    Ok(())
}

async fn resume(h: &mut Harness<'_>) -> Result<()> {
    h.server(Redis, async |server| server.resume()).await;
    Ok(())
}

async fn flush(h: &mut Harness<'_>) -> Result<()> {
    h.redis(&["FLUSHALL"]).await
}

/// A replica of a master that is not there: what it has it keeps, and takes nothing.
async fn read_only(h: &mut Harness<'_>) -> Result<()> {
    h.redis(&["REPLICAOF", "127.0.0.1", "1"]).await
}

async fn writable(h: &mut Harness<'_>) -> Result<()> {
    h.redis(&["REPLICAOF", "NO", "ONE"]).await
}

async fn no_memory(h: &mut Harness<'_>) -> Result<()> {
    h.redis(&["CONFIG", "SET", "maxmemory", "1"]).await
}

async fn memory(h: &mut Harness<'_>) -> Result<()> {
    h.redis(&["CONFIG", "SET", "maxmemory", "0"]).await
}

async fn fill_disk(h: &mut Harness<'_>) -> Result<()> {
    disk::fill(&h.world.folder_of(Redis))?;
    super::mongodb::behind(h).await
}

async fn clear_disk(h: &mut Harness<'_>) -> Result<()> {
    disk::clear(&h.world.folder_of(Redis))
}
