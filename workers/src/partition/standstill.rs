//! A pipeline that stands still: since an operator wants it, or since a store is away.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use taskflow_stores::postgres::batch as transaction;
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{Kind, StoreError, clock, observe, seldom};
use tokio_util::sync::CancellationToken;

use super::{Pipeline, QUIET, QUIET_LONG};
use crate::pause;
use crate::pulse::Doing;
use taskflow_stores::backoff::Backoff;

/// So often in a row may a batch fail, though the stores answer, before its partition is tried less often …
const FAILS: u32 = 10;
/// … each time by so much, up to …
const REST: Duration = Duration::from_secs(1);
/// … this: the broker counts how often it gets a message back, and gives it up after 1,000 times.
const REST_MAX: Duration = Duration::from_secs(60);

/// How often in a row messages were taken and given back, without one that was finished; by partition, whichever pipeline
/// did so.
#[derive(Debug, Default)]
pub(crate) struct Fails(Mutex<BTreeMap<Partition, u32>>);

impl Fails {
    pub(super) fn note(&self, partition: Partition, took: bool, finished: bool) {
        let mut fails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if finished { 0 } else { fails.get(&partition).copied().unwrap_or_default() };
        fails.insert(partition, before + u32::from(took));
    }

    /// How long the partition rests beside the usual pause.
    fn rest(&self, partition: Partition) -> Duration {
        let fails = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fails = fails.get(&partition).copied().unwrap_or_default();
        REST.saturating_mul(fails.saturating_sub(FAILS)).min(REST_MAX)
    }
}

impl Pipeline<'_> {
    /// Notes how it went since `started`: whether it `failed`, so that what was taken was given back unfinished. Returns
    /// whether something was finished.
    pub(super) fn note_end(&mut self, started: Instant, failed: bool) -> bool {
        let finished = self.pulse.state().finished.is_some_and(|finished| finished > started);
        let given_back = std::mem::take(&mut self.took) && failed;
        self.context.fails.note(self.partition, given_back, finished);
        finished
    }

    /// Waits while an operator wants it to, and tidies meanwhile; `false` if it is time to stop.
    pub(super) async fn while_paused(&mut self, stop: &CancellationToken) -> bool {
        let context = self.context;
        loop {
            let pauses = context.pauses.borrow().clone();
            self.held_by = self.held_by.take().filter(|scope| pauses.contains(scope));
            let Some(scope) = pauses.of_partition(&self.name).or(self.held_by.as_ref()) else {
                return !stop.is_cancelled();
            };
            if self.pulse.state().doing != Doing::Paused {
                self.pulse.is_at(Doing::Paused);
                tracing::info!(partition = self.name, %scope, "The partition is paused; its messages wait with the broker.");
            }
            let moment = if self.tidy().await { QUIET_LONG } else { QUIET };
            if !pause::changed(context, stop, moment).await {
                return false;
            }
        }
    }

    /// Says why the partition waits. For a store that is away one line does for all partitions.
    pub(super) fn complain(&self, error: &StoreError) {
        let partition = &self.name;
        if error.kind == Kind::Unavailable {
            self.pulse.is_at(Doing::Waiting(error.store));
            if let Some(held_back) = seldom::about(error.store) {
                tracing::warn!(partition, %error, held_back, "A store is away; the partition waits and gives its messages back.");
            }
        } else {
            self.pulse.is_at(Doing::Broken(error.to_string()));
            if self.pulse.complaints.due().is_some() {
                tracing::error!(partition, %error, "The partition stands still until this is mended; its messages are kept.");
            }
        }
    }

    /// Rests where messages were given back again and again, whichever pipeline did so; `false` if it is time to stop.
    pub(super) async fn rest(&self, stop: &CancellationToken) -> bool {
        let rest = self.context.fails.rest(self.partition);
        if rest.is_zero() {
            return !stop.is_cancelled();
        }
        let fault =
            format!("what it takes fails again and again; it is tried once more within {} s", rest.as_secs());
        self.pulse.is_at(Doing::Broken(fault));
        // Never in step with other partitions.
        let rest = rest.mul_f64(rand::random_range(0.5..=1.0));
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(rest) => true,
        }
    }

    /// Waits until batches can be written; `false` if it is time to stop. A store that only reads, or lacks something, is
    /// found here, where no message is in hand that the broker would count as given back.
    pub(super) async fn wait_for_stores(&mut self, backoff: &mut Backoff, stop: &CancellationToken) -> bool {
        loop {
            if !backoff.wait(stop).await {
                return false;
            }
            // A commit that seemed to fail may have lasted: the sinks learn of its batch from the head.
            let fence = (self.name.as_str(), self.epoch);
            let lease = Duration::from_millis(self.context.settings.lease_ms);
            let tried =
                transaction::may_be_written(&self.context.stores.postgres, fence, lease, clock::now());
            match self.answers.wait("try whether a batch can be written", tried).await {
                Ok(newest) => {
                    observe::store_up("postgres", true);
                    let Some(newest) = newest else {
                        tracing::debug!(
                            partition = self.name,
                            "Meanwhile somebody else has taken the partition."
                        );
                        return false;
                    };
                    self.newest = newest;
                    return true;
                }
                Err(error) => {
                    observe::store_up("postgres", false);
                    // Somebody holds what it needs, and lets go some day.
                    if error.kind == Kind::Conflict {
                        tracing::debug!(partition = self.name, %error, "Still waiting.");
                    } else {
                        self.complain(&error);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_and_again_is_tried_less_often_and_never_given_up() {
        let (fails, partition) = (Fails::default(), Partition { low: false, index: 3, alternate: false });
        (0..FAILS).for_each(|_| fails.note(partition, true, false));
        assert_eq!(fails.rest(partition), Duration::ZERO);
        let mut rested = Duration::ZERO;
        for _ in FAILS..1_000 {
            fails.note(partition, true, false);
            rested += fails.rest(partition);
        }
        // As long as the broker goes on giving it back.
        assert!(rested > Duration::from_secs(15 * 3_600), "{rested:?}");
        // Without a message nothing is given back.
        let before = fails.rest(partition);
        fails.note(partition, false, false);
        assert_eq!(fails.rest(partition), before);
        assert_eq!(fails.rest(Partition { index: 4, ..partition }), Duration::ZERO);
        fails.note(partition, true, true);
        assert_eq!(fails.rest(partition), Duration::ZERO);
    }
}
