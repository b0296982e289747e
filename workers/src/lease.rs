//! Which partitions this worker consumes.
//!
//! Every live worker computes the same answer from the same membership: rendezvous hashing gives each partition to
//! the worker with the highest hash. This is only a matter of balance. That a partition is consumed by one worker at
//! a time is the lease's doing, and that nobody commits without it is the fence's.
//!
//! A worker that does not reach the broker for longer than a lease has no share, as long as others do: it would renew its
//! leases and consume nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use taskflow_core::command::digest;
use taskflow_core::metric;
use taskflow_stores::postgres::leases::{self, Heartbeat, Membership, Reach};
use taskflow_stores::postgres::restore_epochs::{self, Epoch};
use taskflow_stores::postgres::{silence, suspects};
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{StoreError, observe, seldom, supervise};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::pulse::Pulse;
use crate::{Context, change, partition, pause};

/// A partition that this worker consumes.
struct Held {
    epoch: i64,
    stop: CancellationToken,
    task: JoinHandle<()>,
    pulse: Arc<Pulse>,
}

/// A pipeline that panics again and again rests longer each time, up to this.
const REST_MAX: Duration = Duration::from_secs(30);

/// How long Postgres may take for a lease, beside what its own limits allow.
const ANSWER: Duration = Duration::from_secs(15);
/// The shortest pause between two heartbeats, however soon a lease ends.
const WAKE_MIN: Duration = Duration::from_millis(20);

/// What the keeper of the leases knows.
struct Keeper {
    context: Arc<Context>,
    held: BTreeMap<Partition, Held>,
    /// Holders of ours that were broken off, by their epochs: what they tried must not be charged with that.
    broken_off: Vec<(Partition, i64)>,
    /// Pipelines that have panicked: how often in a row, and until when they rest.
    resting: BTreeMap<Partition, (u32, Instant)>,
    valid_until: watch::Sender<Instant>,
    /// Since when there is no connection to the broker.
    unreached_since: Option<Instant>,
    /// Whether this worker has a share of the partitions.
    shares: bool,
    /// Whether this is a restored database with which the other stores do not agree yet.
    restored: bool,
    stop: CancellationToken,
}

/// Keeps the leases and the partitions' pipelines in step until `stop`, then lets all go.
pub(crate) async fn run(context: &Arc<Context>, name: &str, stop: &CancellationToken) {
    let lease = Duration::from_millis(context.settings.lease_ms);
    let mut keeper = Keeper {
        context: Arc::clone(context),
        held: BTreeMap::new(),
        broken_off: Vec::new(),
        resting: BTreeMap::new(),
        valid_until: watch::Sender::new(Instant::now()),
        unreached_since: None,
        shares: true,
        restored: false,
        stop: stop.clone(),
    };
    while !stop.is_cancelled() {
        let asked = Instant::now();
        let mut first_end = None;
        let cut_off = keeper.is_cut_off(asked, lease);
        let me = Heartbeat {
            worker: context.worker,
            name,
            lease_ms: lease.as_millis() as i64,
            step: context.course.borrow().step,
            reached: &keeper.reached(),
            cut_off,
        };
        let beat = leases::heartbeat(&context.stores.postgres, me);
        match silence::within(lease, "renew leases", beat).await {
            Ok(membership) => {
                observe::store_up("postgres", true);
                // First: what is renewed is not theirs.
                keeper.let_go_of_lost(&membership);
                keeper.valid_until.send_replace(asked + lease);
                if pause::learn(context, &membership.pauses) {
                    keeper.held.values().for_each(|one| one.pulse.leave());
                }
                if let Some(course) = membership.course {
                    change::learn(context, course);
                }
                first_end = membership.first_ends_in.map(|ends_in| Instant::now() + ends_in);
                keeper.follow(&membership).await;
            }
            Err(error) => {
                observe::store_up("postgres", false);
                if seldom::worth_a_line(&error) {
                    tracing::warn!(%error, "The leases can't be renewed; partitions stop when they run out.");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause(lease, first_end)) => {}
        }
    }
    for one in keeper.held.values() {
        one.stop.cancel();
    }
    // First: others take each partition as soon as it is given back, while the rest still end.
    let left = leases::leave(&context.stores.postgres, context.worker);
    if let Err(error) = silence::within(ANSWER, "leave the workers", left).await {
        tracing::warn!(%error, "Could not say that this worker leaves; its entry runs out by itself.");
    }
    let given_back = keeper.held.into_iter().map(|(partition, one)| async move {
        let _ = one.task.await;
        context.watched.remove(partition);
        give_back(context, partition).await;
    });
    join_all(given_back).await;
}

/// Between two heartbeats: eight a lease, so that some which fail are no reason to stop. Less when the lease of somebody
/// else ends before, which nobody renews: its holder is dead, and no time is to be lost.
fn pause(lease: Duration, first_end: Option<Instant>) -> Duration {
    let until_end = first_end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
    until_end.max(WAKE_MIN).min(lease / 8)
}

impl Keeper {
    /// Whether the broker has not been reached for longer than a lease. A connection that is made anew is no reason to
    /// move partitions.
    fn is_cut_off(&mut self, now: Instant, lease: Duration) -> bool {
        if self.context.stores.consume.is_up() {
            self.unreached_since = None;
            return false;
        }
        now.saturating_duration_since(*self.unreached_since.get_or_insert(now)) > lease
    }

    /// How far each partition has got.
    fn reached(&self) -> Vec<(String, DateTime<Utc>)> {
        let reached =
            |(partition, one): (&Partition, &Held)| Some((partition.to_string(), one.pulse.state().reached?));
        self.held.iter().filter_map(reached).collect()
    }

    /// Stops the pipelines whose leases are somebody else's by now.
    fn let_go_of_lost(&self, membership: &Membership) {
        let is_lost = |partition: &&Partition| !membership.held.contains(&partition.to_string());
        for partition in self.held.keys().filter(is_lost) {
            self.held[partition].stop.cancel();
        }
    }

    /// Takes back what was noted of messages that were being tried when their holders were broken off.
    async fn acquit(&mut self) {
        while let Some((partition, epoch)) = self.broken_off.last().copied() {
            let name = partition.to_string();
            let acquitted = suspects::acquit(&self.context.stores.postgres, &name, epoch);
            // What is in its way must not cost the leases.
            let patience = Duration::from_millis(self.context.settings.lease_ms / 8);
            if let Err(error) = silence::within(patience, "acquit suspects", acquitted).await {
                tracing::debug!(partition = name, %error, "What was tried there is acquitted later.");
                return;
            }
            self.broken_off.pop();
        }
    }

    /// Stops what is no longer ours, starts what is.
    async fn follow(&mut self, membership: &Membership) {
        self.acquit().await;
        let course = *self.context.course.borrow();
        let all = course.consumed();
        let workers = sharing(&membership.workers);
        let shares = workers.contains(&self.context.worker);
        if self.shares && !shares {
            tracing::warn!(
                "This worker does not reach the broker, others do: its partitions are theirs until it does."
            );
        }
        self.shares = shares;
        self.learn_of_restore(membership.restored.as_ref());
        let given_up: Vec<Partition> = self.held.keys().filter(|held| !all.contains(held)).copied().collect();
        for partition in given_up {
            let Some(one) = self.held.get(&partition) else { continue };
            one.stop.cancel();
            if one.task.is_finished() {
                self.bury(partition).await;
            }
        }
        for partition in &all {
            let name = partition.to_string();
            if self.held.keys().any(|held| held != partition && change::same_name(*held, *partition)) {
                // What has its name still ends here; the lease is that one's.
                continue;
            }
            let mine = owner(&name, &workers) == Some(self.context.worker);
            let leased = membership.held.contains(&name);
            if let Some(one) = self.held.get(partition) {
                if !mine || !leased {
                    // The pipeline finishes its batch and ends; this is looked at again at the next heartbeat.
                    one.stop.cancel();
                }
                if one.task.is_finished() {
                    self.bury(*partition).await;
                }
                continue;
            }
            if leased && !mine {
                // Ours in the database, and nobody here consumes it: giving it back has failed, or the answer to taking
                // it was lost. Renewed with the others it would never run out, and nobody could have the partition.
                give_back(&self.context, *partition).await;
                continue;
            }
            let rests = self.resting.get(partition).is_some_and(|(_, until)| Instant::now() < *until);
            if !mine || rests || membership.taken.contains(&name) {
                continue;
            }
            if self.broken_off.iter().any(|(broken_off, _)| broken_off == partition) {
                // Under a new epoch what was tried there would be charged.
                continue;
            }
            match self.acquire(*partition, course.step).await {
                Ok(Some(one)) => drop(self.held.insert(*partition, one)),
                Ok(None) => {}
                Err(error) => {
                    if seldom::worth_a_line(&error) {
                        tracing::warn!(partition = name, %error, "A lease could not be acquired.");
                    }
                }
            }
        }
    }

    /// A worker that is started waits for the stores to agree before it comes here; one that works finds it now.
    fn learn_of_restore(&mut self, epoch: Option<&Epoch>) {
        match (epoch, self.restored) {
            (Some(epoch), false) => {
                let fault = epoch.fault();
                tracing::error!("{fault}");
                self.context.vitals.fault(restore_epochs::PART, fault);
            }
            (None, true) => {
                tracing::info!("The restore was brought to its end.");
                self.context.vitals.well(restore_epochs::PART);
            }
            _ => {}
        }
        self.restored = epoch.is_some();
    }

    async fn acquire(&self, partition: Partition, newest: i64) -> Result<Option<Held>, StoreError> {
        let context = &self.context;
        let name = partition.to_string();
        let lease_ms = context.settings.lease_ms as i64;
        let acquired = leases::acquire(&context.stores.postgres, &name, context.worker, lease_ms, newest);
        let lease = silence::within(ANSWER, "acquire a lease", acquired).await?;
        let Some(lease) = lease else { return Ok(None) };
        tracing::debug!(partition = name, epoch = lease.epoch, "The partition is ours.");
        gauge(&name, true);
        let (stop, pulse) = (self.stop.child_token(), Arc::new(Pulse::new()));
        let epoch = lease.epoch;
        let valid_until = self.valid_until.subscribe();
        let run = partition::run(
            Arc::clone(context),
            partition,
            lease,
            valid_until,
            Arc::clone(&pulse),
            stop.clone(),
            self.stop.clone(),
        );
        let task = tokio::spawn(run);
        context.watched.add(partition, Arc::clone(&pulse), task.abort_handle());
        Ok(Some(Held { epoch, stop, task, pulse }))
    }

    /// Gives up a partition whose pipeline has ended. If it is still ours, the next heartbeat starts it again, under a
    /// new epoch: what the old one may have left behind can commit nothing.
    async fn bury(&mut self, partition: Partition) {
        let Some(one) = self.held.remove(&partition) else { return };
        self.context.watched.remove(partition);
        match one.task.await {
            Err(error) if error.is_panic() => {
                let finished_something = one.pulse.state().finished.is_some();
                let (panics, until) = self.resting.entry(partition).or_insert((0, Instant::now()));
                *panics = if finished_something { 1 } else { *panics + 1 };
                let rest = Duration::from_millis(250).saturating_mul(1 << (*panics).min(10)).min(REST_MAX);
                *until = Instant::now() + rest;
                let cause = supervise::words(error.into_panic().as_ref());
                supervise::died("partition", &format!("partition {partition}: {cause}"));
                let name = partition.to_string();
                let postgres = &self.context.stores.postgres;
                let abandoned = leases::abandon(postgres, &name, self.context.worker);
                if let Err(error) = silence::within(ANSWER, "abandon a lease", abandoned).await {
                    tracing::warn!(partition = name, %error, "A lease could not be abandoned; it runs out by itself.");
                }
                gauge(&name, false);
                return;
            }
            // It left by itself …
            Ok(()) => drop(self.resting.remove(&partition)),
            // … or the watchdog ended it, which has said so.
            Err(_) => {
                self.resting.remove(&partition);
                self.broken_off.push((partition, one.epoch));
                self.acquit().await;
            }
        }
        give_back(&self.context, partition).await;
    }
}

async fn give_back(context: &Context, partition: Partition) {
    let name = partition.to_string();
    gauge(&name, false);
    let released = leases::release(&context.stores.postgres, &name, context.worker);
    if let Err(error) = silence::within(ANSWER, "release a lease", released).await
        && seldom::worth_a_line(&error)
    {
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

/// Those who share the partitions. Whoever is cut off from the broker does not, if somebody has reached it for long: when
/// a broker comes back to all, the first to notice does not get everything.
fn sharing(workers: &[(Uuid, Reach)]) -> Vec<Uuid> {
    let somebody = workers.iter().any(|(_, reach)| *reach == Reach::Steady);
    workers.iter().filter(|(_, reach)| !somebody || *reach != Reach::CutOff).map(|(id, _)| *id).collect()
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
    fn who_is_cut_off_has_no_share_while_another_is_not() {
        let [one, two, three] = [1, 2, 3].map(Uuid::from_u128);
        assert_eq!(sharing(&[(one, Reach::Steady), (two, Reach::CutOff)]), [one]);
        assert_eq!(sharing(&[(one, Reach::CutOff), (two, Reach::CutOff)]), [one, two]);
        assert_eq!(sharing(&[(one, Reach::Back), (two, Reach::CutOff)]), [one, two]);
        assert_eq!(
            sharing(&[(one, Reach::Back), (two, Reach::CutOff), (three, Reach::Steady)]),
            [one, three]
        );
    }

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
