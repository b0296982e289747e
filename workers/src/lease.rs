//! Which partitions this worker consumes.
//!
//! Every live worker computes the same answer from the same membership: rendezvous hashing gives each partition to
//! the worker with the highest hash. This is only a matter of balance. That a partition is consumed by one worker at
//! a time is the lease's doing, and that nobody commits without it is the fence's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use taskflow_core::command::digest;
use taskflow_core::metric;
use taskflow_stores::postgres::leases::{self, Membership};
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{StoreError, observe};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Context;
use crate::partition;

/// A partition that this worker consumes.
struct Held {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// Keeps the leases and the partitions' pipelines in step until `stop`, then lets all go.
pub(crate) async fn run(context: &Arc<Context>, name: &str, stop: &CancellationToken) {
    let lease = Duration::from_millis(context.settings.lease_ms);
    let (valid_until, _) = watch::channel(Instant::now());
    let mut held: BTreeMap<Partition, Held> = BTreeMap::new();
    let all = Partition::all(&context.stores.rabbit);
    let mut warned = false;
    while !stop.is_cancelled() {
        let asked = Instant::now();
        match leases::heartbeat(&context.stores.postgres, context.worker, name, lease.as_millis() as i64)
            .await
        {
            Ok(membership) => {
                warned = false;
                observe::store_up("postgres", true);
                valid_until.send_replace(asked + lease);
                follow(context, &membership, &all, &mut held, &valid_until, stop).await;
            }
            Err(error) => {
                if !warned {
                    tracing::warn!(%error, "The leases can't be renewed; partitions stop when they run out.");
                    observe::store_up("postgres", false);
                }
                warned = true;
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            // Four renewals a lease: one that fails is no reason to stop.
            () = tokio::time::sleep(lease / 8) => {}
        }
    }
    for one in held.values() {
        one.stop.cancel();
    }
    for (partition, one) in held {
        let _ = one.task.await;
        give_back(context, partition).await;
    }
    if let Err(error) = leases::leave(&context.stores.postgres, context.worker).await {
        tracing::warn!(%error, "Could not say that this worker leaves; its entry runs out by itself.");
    }
}

/// Stops what is no longer ours, starts what is.
async fn follow(
    context: &Arc<Context>,
    membership: &Membership,
    all: &[Partition],
    held: &mut BTreeMap<Partition, Held>,
    valid_until: &watch::Sender<Instant>,
    stop: &CancellationToken,
) {
    for partition in all {
        let name = partition.to_string();
        let mine = owner(&name, &membership.workers) == Some(context.worker);
        let leased = membership.held.contains(&name);
        if let Some(one) = held.get(partition) {
            if !mine || !leased {
                // The pipeline finishes its batch and ends; this is looked at again at the next heartbeat.
                one.stop.cancel();
            }
            if one.task.is_finished() {
                held.remove(partition);
                give_back(context, *partition).await;
            }
            continue;
        }
        if leased && !mine {
            // Ours in the database, and nobody here consumes it: giving it back has failed, or the answer to taking
            // it was lost. Renewed with the others it would never run out, and nobody could have the partition.
            give_back(context, *partition).await;
            continue;
        }
        if mine && !membership.taken.contains(&name) {
            match acquire(context, *partition, valid_until, stop).await {
                Ok(Some(one)) => drop(held.insert(*partition, one)),
                Ok(None) => {}
                Err(error) => tracing::warn!(partition = name, %error, "A lease could not be acquired."),
            }
        }
    }
}

async fn acquire(
    context: &Arc<Context>,
    partition: Partition,
    valid_until: &watch::Sender<Instant>,
    stop: &CancellationToken,
) -> Result<Option<Held>, StoreError> {
    let name = partition.to_string();
    let lease_ms = context.settings.lease_ms as i64;
    let lease = leases::acquire(&context.stores.postgres, &name, context.worker, lease_ms).await?;
    let Some(lease) = lease else { return Ok(None) };
    tracing::debug!(partition = name, epoch = lease.epoch, "The partition is ours.");
    gauge(&name, true);
    let stop = stop.child_token();
    let run = partition::run(Arc::clone(context), partition, lease, valid_until.subscribe(), stop.clone());
    Ok(Some(Held { task: tokio::spawn(run), stop }))
}

async fn give_back(context: &Context, partition: Partition) {
    let name = partition.to_string();
    gauge(&name, false);
    if let Err(error) = leases::release(&context.stores.postgres, &name, context.worker).await {
        tracing::warn!(partition = name, %error, "A lease could not be given back; it runs out by itself.");
    }
}

fn gauge(partition: &str, assigned: bool) {
    observe::gauge(&metric::PARTITION_ASSIGNED, &[("partition", partition)]).set(if assigned {
        1.0
    } else {
        0.0
    });
}

/// Rendezvous hashing: the worker whose hash with the partition is highest.
fn owner(partition: &str, workers: &[Uuid]) -> Option<Uuid> {
    let weight = |worker: &Uuid| digest(&[worker.as_bytes(), partition.as_bytes()].concat());
    workers.iter().copied().max_by_key(weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaving_worker_moves_only_its_own_partitions() {
        let workers: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let partitions: Vec<String> = (0..64).map(|index| format!("{index:02}")).collect();
        for partition in &partitions {
            let before = owner(partition, &workers);
            let after = owner(partition, &workers[..2]);
            assert!(before == after || before == Some(workers[2]));
        }
        let first = partitions.iter().filter(|p| owner(p, &workers) == Some(workers[0])).count();
        assert!((10..35).contains(&first), "{first} of 64 partitions");
    }
}
