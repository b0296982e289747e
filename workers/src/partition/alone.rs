//! Taking messages of which one may be what kills workers: together as long as nobody has died of that, else one by one.

use std::collections::HashMap;

use taskflow_core::command::{Fingerprint, digest};
use taskflow_stores::StoreError;
use taskflow_stores::postgres::silence;
use taskflow_stores::postgres::{leases, suspects};
use taskflow_stores::rabbit::consume::Delivery;
use tokio_util::sync::CancellationToken;

use super::{HANDED_OVER, Left, Pipeline};
use crate::decode::Origin;
use crate::messages::Messages;
use crate::pulse::Doing;
use crate::suspect::{self, Trial};

/// Those in a batch that were with somebody who died, by their digests; with each how often it was tried alone since.
#[derive(Default)]
pub(super) struct Suspects {
    /// Whether anything in the batch came back.
    noted: bool,
    known: HashMap<Fingerprint, i16>,
}

impl Suspects {
    fn is_one(&self, delivery: &Delivery) -> bool {
        self.noted && suspect::is_suspicious(delivery) && self.known.contains_key(&digest(delivery.body()))
    }

    /// The parts of a batch that are taken one after the other: each suspect is one, and so are those between two of them.
    /// What came to its end must be acknowledged before the next part is tried. Else it comes back with the one that kills,
    /// is tried as often, and is condemned with it.
    pub(super) fn apart<'d>(&self, deliveries: &'d [Delivery]) -> impl Iterator<Item = &'d [Delivery]> {
        deliveries.chunk_by(|one, next| !self.is_one(one) && !self.is_one(next))
    }
}

impl Pipeline<'_> {
    /// Writes down who of a batch is about to be tried, and says who must be tried alone.
    pub(super) async fn suspects(&mut self, deliveries: &[Delivery]) -> Result<Suspects, StoreError> {
        let suspicious = |delivery: &&Delivery| suspect::is_suspicious(delivery);
        let digests: Vec<Fingerprint> =
            deliveries.iter().filter(suspicious).map(|delivery| digest(delivery.body())).collect();
        if digests.is_empty() {
            return Ok(Suspects::default());
        }
        let postgres = &self.context.stores.postgres;
        self.has_suspected = true;
        let noted = suspects::note_together(postgres, &digests, &self.name, self.epoch);
        let known = self.answers.wait("note suspects", noted).await?;
        Ok(Suspects { noted: true, known })
    }

    /// Takes one that is a suspect alone, or some that are not together. What came to its end is to be
    /// [forgotten](Self::forget) when it is acknowledged: until then it may come again.
    pub(super) async fn take(
        &mut self,
        deliveries: &[Delivery],
        suspects: &Suspects,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        self.settled.clear();
        if let [one] = deliveries
            && suspects.is_one(one)
        {
            return self.alone(one, suspects, stop).await;
        }
        let left = self.batch(deliveries, stop).await?;
        // Who was told to stop has died of nothing.
        if suspects.noted && !matches!(left, Some(Left::Fenced)) {
            let suspicious = |delivery: &&Delivery| suspect::is_suspicious(delivery);
            let came_back = deliveries.iter().filter(suspicious);
            self.settled.extend(came_back.map(|delivery| digest(delivery.body())));
        }
        Ok(left)
    }

    /// Forgets who has come to an end, after the broker has been told so.
    pub(super) async fn forget(&mut self) -> Result<(), StoreError> {
        self.done.append(&mut self.settled);
        if !self.done.is_empty() {
            let forgotten = suspects::forget(&self.context.stores.postgres, &self.done);
            self.answers.wait("forget suspects", forgotten).await?;
            self.done.clear();
        }
        Ok(())
    }

    /// Takes back what was noted and has not come to an end. This holder may have lost its lease, or a store, but it lives:
    /// whoever was tried meanwhile must not be condemned for that.
    pub(super) async fn acquit(&mut self) {
        if !self.has_suspected {
            return;
        }
        // What is settled and not acknowledged comes again.
        self.settled.clear();
        let acquitted = async {
            self.forget().await?;
            suspects::acquit(&self.context.stores.postgres, &self.name, self.epoch).await
        };
        if let Err(error) = silence::within(HANDED_OVER, "acquit suspects", acquitted).await {
            tracing::debug!(partition = self.name, %error, "A try counts though nobody died.");
        }
    }

    /// One that was with somebody who died, so many times alone.
    async fn alone(
        &mut self,
        delivery: &Delivery,
        suspects: &Suspects,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let (context, partition) = (self.context, self.partition);
        let tries = suspects.known.get(&digest(delivery.body())).copied().unwrap_or_default();
        // Others have their turns before it: that is no standstill of this one.
        self.pulse.is_at(Doing::Waiting("postgres"));
        let Some(solitude) = stop.run_until_cancelled(context.solitude.enter(tries)).await else {
            return Ok(Some(Left::Stopped));
        };
        self.pulse.is_at(Doing::Applying);
        let trial = suspect::try_alone(&context.stores.postgres, &self.name, self.epoch, delivery.body());
        let left = match self.answers.wait("note a try", trial).await? {
            Trial::Condemned(_) => {
                let left = self.condemn(delivery, stop).await;
                self.through += usize::from(matches!(left, Ok(None)));
                Some(left)
            }
            Trial::None | Trial::Alone(_) => {
                let trial = Box::pin(self.batch(std::slice::from_ref(delivery), stop));
                solitude.run(partition, trial).await
            }
        };
        let left = self.tried(left).await;
        self.solitude = Some(solitude);
        let Some(left) = left else { return Ok(Some(Left::BrokenOff)) };
        if self.held_by.is_none() && left.is_ok() && !matches!(left, Ok(Some(Left::Fenced))) {
            self.settled.push(digest(delivery.body()));
        }
        left
    }

    /// After a try: what did not come to its end is [acquitted](Self::acquit) before anybody else is tried. One that was
    /// broken off (`None`) subscribes anew and waits for its turn.
    pub(super) async fn tried(
        &mut self,
        left: Option<Result<Option<Left>, StoreError>>,
    ) -> Option<Result<Option<Left>, StoreError>> {
        // One of a paused type was read, and lives.
        if self.held_by.is_some() || !matches!(left, Some(Ok(None | Some(Left::Stopped)))) {
            self.acquit().await;
        }
        if left.is_none() {
            // A commit that was broken off may have lasted: the sinks learn of its batch from the head.
            let newest = leases::newest_batch(&self.context.stores.postgres, &self.name, self.epoch);
            let newest = silence::within(HANDED_OVER, "read the newest batch", newest).await;
            if let Ok(Some(newest)) = newest {
                self.newest = self.newest.max(newest);
            }
        }
        left
    }

    /// Buries a message that kills, unread.
    async fn condemn(
        &mut self,
        delivery: &Delivery,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let (item, reason, detail) = suspect::remains(delivery);
        tracing::error!(partition = self.name, command = ?delivery.message_id(), detail, "A message goes to the dead letters unread.");
        let origins = [Origin { delivery: 0, intake: delivery.intake() }];
        let deliveries = std::slice::from_ref(delivery);
        let messages =
            Messages { context: self.context, partition: self.partition, deliveries, origins: &origins };
        messages.send(0, reason, &detail).await?;
        let Some(item) = item else { return Ok(None) };
        let mut lines = std::mem::take(&mut self.room.lines);
        let left = self.apply(&mut [item], &mut lines, &messages, stop).await;
        self.room.lines = lines;
        self.hand_over().await;
        left
    }
}
