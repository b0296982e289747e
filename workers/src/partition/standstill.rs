//! A pipeline that stands still: since an operator wants it, or since a store is away.

use taskflow_stores::postgres::leases;
use taskflow_stores::{Kind, StoreError, observe, seldom};
use tokio_util::sync::CancellationToken;

use super::{Pipeline, QUIET, QUIET_LONG};
use crate::pause;
use crate::pulse::Doing;
use taskflow_stores::backoff::Backoff;

impl Pipeline<'_> {
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

    /// Waits until Postgres and the broker answer; `false` if it is time to stop.
    pub(super) async fn wait_for_stores(&mut self, backoff: &mut Backoff, stop: &CancellationToken) -> bool {
        loop {
            if !backoff.wait(stop).await {
                return false;
            }
            // A commit that seemed to fail may have lasted: the sinks learn of its batch from the head.
            match leases::newest_batch(&self.context.stores.postgres, &self.name, self.epoch).await {
                Ok(newest) => {
                    observe::store_up("postgres", true);
                    self.newest = newest.unwrap_or(self.newest);
                    return true;
                }
                Err(error) => {
                    observe::store_up("postgres", false);
                    tracing::debug!(partition = self.name, %error, "Still waiting.");
                }
            }
        }
    }
}
