//! The pipeline of one partition, from its lease to its end. [`pipeline`] is the table of contents.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use taskflow_core::batch::Verdict;
use taskflow_core::{Item, metric};
use taskflow_stores::postgres::batch as transaction;
use taskflow_stores::postgres::leases::{self, Lease};
use taskflow_stores::postgres::receipts::View;
use taskflow_stores::postgres::{suspects, waiting};
use taskflow_stores::rabbit::consume::{Delivery, Subscription};
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{Kind, StoreError, clock, observe};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::announce::Announcement;
use crate::apply::{Applied, Fence, observe_step};
use crate::backoff::Backoff;
use crate::bisect::{End, Source, apply_all, bury_dead};
use crate::collect::{Collected, Collector};
use crate::decode::{Origin, decode};
use crate::messages::Messages;
use crate::relay::Relay;
use crate::sink::Batch;
use crate::suspect::{self, Trial};
use crate::waiting::{Due, Room};
use crate::{Context, crash, report};

/// A quiet partition tidies its outbox after this long.
const QUIET: Duration = Duration::from_millis(100);
/// A quiet partition that has nothing to tidy looks up this seldom.
const QUIET_LONG: Duration = Duration::from_secs(5);

/// A batch of fewer commands leaves the outbox's tidying to a quiet moment …
const LONE: usize = 16;
/// … unless as many relayed batches wait for it.
const TIDY_MAX: usize = 32;

/// Why a pipeline ended.
enum Left {
    /// It was told to.
    Stopped,
    /// The lease is gone: somebody else has the partition.
    Fenced,
}

/// What a partition's pipeline knows between two batches.
struct Pipeline<'c> {
    context: &'c Context,
    partition: Partition,
    name: String,
    epoch: i64,
    /// The number of the newest batch.
    newest: i64,
    relay: Relay,
    room: Room,
    lease_until: watch::Receiver<Instant>,
}

/// Consumes a partition until `stop`, or until the lease is gone. Stores that are away are waited for.
pub(crate) async fn run(
    context: Arc<Context>,
    partition: Partition,
    lease: Lease,
    lease_until: watch::Receiver<Instant>,
    stop: CancellationToken,
) {
    let name = partition.to_string();
    let relay = Relay::start(&context, &name, lease.batch);
    let mut pipeline = Pipeline {
        context: &context,
        partition,
        epoch: lease.epoch,
        newest: lease.batch,
        relay,
        room: Room::default(),
        lease_until,
        name,
    };
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        let started = Instant::now();
        match pipeline.consume(&stop).await {
            Ok(Left::Stopped) => break,
            Ok(Left::Fenced) => {
                observe::counter(&metric::FENCED, &[]).increment(1);
                tracing::warn!(
                    partition = pipeline.name,
                    "The lease is gone; the batch in hand was not applied here."
                );
                break;
            }
            Err(error) => {
                observe::store_up(error.store, false);
                if started.elapsed() > Duration::from_secs(60) {
                    backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
                }
                match error.kind {
                    Kind::Unavailable => {
                        tracing::warn!(partition = pipeline.name, %error, "A store is away; the partition waits and gives its messages back.");
                    }
                    _ => {
                        tracing::error!(partition = pipeline.name, %error, "The partition stands still until this is mended; its messages are kept.");
                    }
                }
            }
        }
        if !pipeline.wait_for_stores(&mut backoff, &stop).await {
            break;
        }
    }
    let Pipeline { relay, name, .. } = pipeline;
    let relayed = relay.drain(Duration::from_millis(context.settings.drain_ms)).await;
    if !relayed.is_empty()
        && let Err(error) = transaction::tidy(&context.stores.postgres, &name, &relayed).await
    {
        tracing::debug!(partition = name, %error, "The outbox was not tidied; the next holder relays it once more.");
    }
}

impl Pipeline<'_> {
    /// Subscribes, and applies batch after batch.
    async fn consume(&mut self, stop: &CancellationToken) -> Result<Left, StoreError> {
        let context = self.context;
        let settings = &context.settings;
        let prefetch = (settings.max_batch * 2).min(usize::from(u16::MAX)) as u16;
        let link = &context.stores.consume;
        // Nobody else may be subscribed: a waiting consumer would get what we return out of order.
        let subscribed = Subscription::open(link, self.partition, prefetch, stop).await?;
        let Some(mut subscription) = subscribed else { return Ok(Left::Stopped) };
        observe::store_up("rabbitmq", true);
        let left = self.pipeline(&mut subscription, stop).await;
        match &left {
            Ok(_) | Err(StoreError { store: "postgres" | "mongodb" | "redis", .. }) => {
                subscription.release().await;
            }
            // The channel itself is the trouble: it goes with its messages.
            Err(_) => subscription.abandon(),
        }
        left
    }

    async fn pipeline(
        &mut self,
        subscription: &mut Subscription,
        stop: &CancellationToken,
    ) -> Result<Left, StoreError> {
        let settings = &self.context.settings;
        self.room = Room::open(&self.context.stores.postgres, &self.name).await?;
        let mut collector = Collector::new(settings.max_batch, Duration::from_millis(settings.linger_ms));
        let mut patience = QUIET;
        loop {
            if self.room.is_due()
                && let Some(left) = self.due(stop).await?
            {
                return Ok(left);
            }
            patience = self.room.pause().map_or(patience, |pause| patience.min(pause));
            let give_way = &self.context.give_way;
            let limit = give_way.limit(self.partition.low);
            let deliveries = match collector.collect(subscription, patience, limit, stop).await? {
                Collected::Batch(deliveries) => deliveries,
                Collected::Quiet => {
                    patience = if self.tidy().await { QUIET_LONG } else { QUIET };
                    continue;
                }
                Collected::Stopped => return Ok(Left::Stopped),
            };
            patience = QUIET;
            crash::point("collected");
            let turn = give_way.begin(self.partition.low).await;
            if let Some(left) = self.take(&deliveries, stop).await? {
                return Ok(left);
            }
            let start = Instant::now();
            if let Some(last) = deliveries.last() {
                last.ack_through().await?;
            }
            observe_step("ack", start);
            crash::point("acknowledged");
            turn.end(stop).await;
        }
    }

    /// A batch, unless one of its messages may be what kills workers: then one by one.
    async fn take(
        &mut self,
        deliveries: &[Delivery],
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        if !deliveries.iter().any(suspect::is_suspicious) {
            return self.batch(deliveries, stop).await;
        }
        let postgres = &self.context.stores.postgres;
        for delivery in deliveries {
            let alone = std::slice::from_ref(delivery);
            let left = match suspect::trial(postgres, &self.name, delivery).await? {
                Trial::None => self.batch(alone, stop).await?,
                Trial::Alone(digest) => {
                    let result = self.batch(alone, stop).await;
                    match result {
                        Ok(None) => suspects::forget(postgres, digest).await?,
                        _ => suspects::take_back(postgres, digest).await?,
                    }
                    result?
                }
                Trial::Condemned(digest) => {
                    let left = self.condemn(delivery, stop).await?;
                    suspects::forget(postgres, digest).await?;
                    left
                }
            };
            if left.is_some() {
                return Ok(left);
            }
        }
        Ok(None)
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
        left
    }

    /// Decode, apply, hand over. The caller acknowledges.
    async fn batch(
        &mut self,
        deliveries: &[Delivery],
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let context = self.context;
        let start = Instant::now();
        let mut decoded = decode(deliveries, &context.settings.patience, clock::now());
        let messages = Messages { context, partition: self.partition, deliveries, origins: &decoded.origins };
        for (delivery, detail) in &decoded.nameless {
            messages.send(*delivery, "malformed", detail).await?;
        }
        bury_dead(&decoded.items, &messages).await?;
        observe_step("decode", start);
        if decoded.items.is_empty() {
            return Ok(None);
        }
        let mut lines = std::mem::take(&mut self.room.lines);
        let left = self.apply(&mut decoded.items, &mut lines, &messages, stop).await;
        self.room.lines = lines;
        left
    }

    /// Commands that have waited and are due: a batch like any other, but nothing to acknowledge.
    async fn due(&mut self, stop: &CancellationToken) -> Result<Option<Left>, StoreError> {
        let context = self.context;
        let postgres = &context.stores.postgres;
        let rows = waiting::due(postgres, &self.name, clock::now(), context.settings.max_batch).await?;
        let due = Due { context, partition: self.partition, rows };
        let mut items = due.items();
        bury_dead(&items, &due).await?;
        // Their own lines are tried from the beginning; who joins a line meets it as it is.
        let mut lines = self.room.lines.clone();
        for subject in due.lines() {
            lines.remove(&subject);
        }
        if !items.is_empty()
            && let Some(left) = self.apply(&mut items, &mut lines, &due, stop).await?
        {
            return Ok(Some(left));
        }
        self.room = Room { lines, next_due: waiting::next_due(postgres, &self.name).await? };
        Ok(None)
    }

    /// Applies items of either source, and hands over.
    async fn apply(
        &mut self,
        items: &mut [Item],
        lines: &mut HashSet<Uuid>,
        source: &impl Source,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        if *self.lease_until.borrow() <= Instant::now() {
            return Ok(Some(Left::Fenced));
        }
        observe::histogram(&metric::BATCH_SIZE, &[]).record(items.len() as f64);
        // A lone command does not pay for what was before it: the next quiet moment does.
        let lone = items.len() < LONE && self.relay.relayed() < TIDY_MAX;
        let relayed = if lone { Vec::new() } else { self.relay.take_relayed() };
        let fence = Fence { partition: &self.name, epoch: self.epoch };
        let end = apply_all(self.context, fence, items, lines, &relayed, source, stop).await;
        let batches = match end {
            Ok(End::Applied(batches)) => batches,
            Ok(End::Fenced) => return Ok(Some(Left::Fenced)),
            Err(error) => {
                self.relay.put_back(relayed);
                return Err(error);
            }
        };
        for (first, applied) in batches {
            self.finish(first, applied, items, source).await?;
        }
        Ok(None)
    }

    /// After the commit: tell who waits, bury what bears a foreign id, count, and hand over to the sinks.
    async fn finish(
        &mut self,
        first: usize,
        applied: Applied,
        items: &[Item],
        source: &impl Source,
    ) -> Result<(), StoreError> {
        let Applied { number, folded, payload, refresh, settled } = applied;
        let mut announcements = Vec::new();
        for (index, verdict) in folded.verdicts.iter().enumerate() {
            let index = first + index;
            match verdict {
                Verdict::Finished(receipt) => {
                    report::finished(&self.name, number, &items[index], &folded.receipts[*receipt]);
                    if let Some(intake) = source.intake(index) {
                        let receipt = View::of(&folded.receipts[*receipt]);
                        announcements.push(Announcement { intake, receipt });
                    }
                }
                Verdict::Duplicate => {
                    observe::counter(&metric::COMMAND_DUPLICATES, &[("result", "same")]).increment(1);
                }
                Verdict::Mismatch => {
                    observe::counter(&metric::COMMAND_DUPLICATES, &[("result", "mismatch")]).increment(1);
                    let detail = format!("another command with the id {} was there first", items[index].id);
                    source.bury(index, "idempotency_mismatch", &detail).await?;
                }
                Verdict::Held(held) => report::held(&self.name, &items[index], &folded.held[*held]),
                Verdict::Stays => {}
            }
        }
        self.context.announcer.announce(announcements);
        report::receipts(&folded.receipts);
        self.room.note(&settled);
        self.newest = number;
        self.relay.hand_over(Batch { number, payload, refresh: Some(refresh) }).await;
        Ok(())
    }

    /// Removes what is relayed from the outbox. Returns whether everything is relayed.
    async fn tidy(&self) -> bool {
        self.relay.nudge(self.newest);
        let relayed = self.relay.take_relayed();
        if relayed.is_empty() {
            return self.relay.is_idle();
        }
        if let Err(error) = transaction::tidy(&self.context.stores.postgres, &self.name, &relayed).await {
            tracing::debug!(partition = self.name, %error, "The outbox will be tidied later.");
            self.relay.put_back(relayed);
        }
        false
    }

    /// Waits until Postgres and the broker answer; `false` if it is time to stop.
    async fn wait_for_stores(&mut self, backoff: &mut Backoff, stop: &CancellationToken) -> bool {
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
