//! A Redis Cluster that loses a node. Commands are applied all the while.

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::{Fault, act};
use crate::harness::Harness;

pub static FAULTS: &[Fault] = &[
    Fault::new("redis: cluster, a master dies, its replica takes over", act!(lose_master), act!(took_over))
        .on_redis_cluster()
        .applies()
        .takes()
        .hold(2.0, 20.0),
    Fault::new("redis: cluster, a master hangs, its replica takes over", act!(hang_master), act!(took_over))
        .on_redis_cluster()
        .applies()
        .takes()
        .hold(3.0, 20.0),
    Fault::new("redis: cluster, a master and its replica die", act!(lose_both), act!(start_all))
        .on_redis_cluster()
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 20.0),
    Fault::new("redis: cluster, all nodes die", act!(lose_all), act!(start_all))
        .on_redis_cluster()
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 20.0),
];

/// A master that is gone, and the replica that is to take its place.
struct Lost {
    master: usize,
    replica: usize,
    hangs: bool,
}

async fn lose(h: &mut Harness<'_>, hangs: bool) -> Result<()> {
    let any = h.dice.below(u64::MAX);
    let cluster = h.redis_cluster()?;
    let master = cluster.master(any).await?;
    let lost = Lost { master, replica: cluster.replica_of(master).await?, hangs };
    if hangs {
        cluster.signal(master, Signal::SIGSTOP)?;
    } else {
        cluster.kill(master).await?;
    }
    h.kept.push(Box::new(lost));
    Ok(())
}

async fn lose_master(h: &mut Harness<'_>) -> Result<()> {
    lose(h, false).await
}

async fn hang_master(h: &mut Harness<'_>) -> Result<()> {
    lose(h, true).await
}

/// The fault has had its effect when the replica is master; the other one comes back as its replica.
async fn took_over(h: &mut Harness<'_>) -> Result<()> {
    let lost = h.kept.pop().and_then(|kept| kept.downcast::<Lost>().ok()).context("nothing is lost")?;
    let cluster = h.redis_cluster()?;
    cluster.wait_master(lost.replica).await?;
    if lost.hangs {
        cluster.signal(lost.master, Signal::SIGCONT)?;
    } else {
        cluster.start_killed().await?;
    }
    cluster.wait_whole().await
}

async fn lose_both(h: &mut Harness<'_>) -> Result<()> {
    let any = h.dice.below(u64::MAX);
    let cluster = h.redis_cluster()?;
    let master = cluster.master(any).await?;
    let replica = cluster.replica_of(master).await?;
    cluster.kill(replica).await?;
    cluster.kill(master).await
}

async fn lose_all(h: &mut Harness<'_>) -> Result<()> {
    h.redis_cluster()?.kill_all().await
}

async fn start_all(h: &mut Harness<'_>) -> Result<()> {
    let cluster = h.redis_cluster()?;
    cluster.start_killed().await?;
    cluster.wait_whole().await
}
