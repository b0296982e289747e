//! The pipeline of one partition, from its lease to its end. [`pipeline`] is the table of contents.

mod alone;
mod consume;
pub(crate) mod standstill;
mod waited;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use taskflow_core::batch::Verdict;
use taskflow_core::command::Fingerprint;
use taskflow_core::pause::Scope;
use taskflow_core::{Item, metric};
use taskflow_stores::postgres::batch as transaction;
use taskflow_stores::postgres::leases::Lease;
use taskflow_stores::postgres::receipts::View;
use taskflow_stores::postgres::silence;
use taskflow_stores::rabbit::consume::{Delivery, Subscription};
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, clock, observe};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::announce::Announcement;
use crate::answers::Answers;
use crate::apply::{Applied, Fence, observe_step};
use crate::bisect::{End, Source, apply_all, bury_dead};
use crate::collect::{Collected, Collector};
use crate::decode::decode;
use crate::messages::Messages;
use crate::pulse::{Doing, Pulse};
use crate::relay::Relay;
use crate::sink::Batch;
use crate::suspect::Entered;
use crate::waiting::{Room, foreign};
use taskflow_stores::backoff::Backoff;

use self::alone::Suspects;
use self::waited::Careful;
use crate::{Context, crash, pause, report};

/// A quiet partition tidies its outbox after this long.
const QUIET: Duration = Duration::from_millis(300);
/// A quiet partition that has nothing to tidy looks up this seldom.
const QUIET_LONG: Duration = Duration::from_secs(5);

/// How long a partition's sinks may finish before another worker has it.
const HANDED_OVER: Duration = Duration::from_secs(1);
/// Between two looks for a store that is away: what comes back is used within a few seconds.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A batch of fewer commands leaves the outbox's tidying to a quiet moment …
const LONE: usize = 16;
/// … unless as many relayed batches wait for it.
const TIDY_MAX: usize = 32;

static LEASES_GONE: Seldom = Seldom::new();

/// Why a pipeline ended.
enum Left {
    /// It was told to.
    Stopped,
    /// The lease is gone: somebody else has the partition.
    Fenced,
    /// One that may kill and is tried alone waited for something for too long.
    BrokenOff,
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
    careful: Careful,
    /// Whether messages were taken that may have killed somebody …
    has_suspected: bool,
    /// … which of them have come to an end, but are not acknowledged …
    settled: Vec<Fingerprint>,
    /// … and which are, but not forgotten.
    done: Vec<Fingerprint>,
    lease_until: watch::Receiver<Instant>,
    pulse: Arc<Pulse>,
    /// While a message is tried alone, until it is acknowledged.
    solitude: Option<Entered<'c>>,
    /// The pause of a type of command, one of which is next.
    held_by: Option<Scope>,
    /// How many of the messages in hand have come to their end.
    through: usize,
    /// Batches that have lasted and that the sinks have not been given.
    lasted: Vec<Batch>,
    /// Whether messages were taken, or were on their way here, since the last pause.
    took: bool,
    /// How long it waits for Postgres.
    answers: Arc<Answers>,
}

/// Consumes a partition until `stop`, or until the lease is gone. Stores that are away are waited for. `leaving` says that
/// the whole process stops: perhaps nobody takes over, so that its sinks get more time.
pub(crate) async fn run(
    context: Arc<Context>,
    partition: Partition,
    lease: Lease,
    lease_until: watch::Receiver<Instant>,
    pulse: Arc<Pulse>,
    stop: CancellationToken,
    leaving: CancellationToken,
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
        careful: Careful::after(lease.deaths, context.settings.max_batch),
        has_suspected: false,
        settled: Vec::new(),
        done: Vec::new(),
        lease_until,
        pulse,
        solitude: None,
        held_by: None,
        through: 0,
        lasted: Vec::new(),
        took: false,
        answers: context.answers.of(partition),
        name,
    };
    let fresh = || Backoff::new(Duration::from_millis(100), WAIT_MAX);
    let mut backoff = fresh();
    let mut goes_on = pipeline.rest(&stop).await;
    while goes_on {
        let parting = pipeline.pulse.arm(&stop);
        if !pipeline.while_paused(&stop).await {
            break;
        }
        let started = Instant::now();
        let until = pipeline.lease_until.clone();
        let lease_time = Duration::from_millis(context.settings.lease_ms);
        let left = tokio::select! {
            biased;
            left = pipeline.consume(&parting, &stop) => left,
            // Whoever can't renew its lease may hang in Postgres for long; its successor waits until it has left the
            // queue. What is dropped here ends its transaction and its channel.
            () = ended(until, lease_time) => Ok(Left::Fenced),
        };
        // What broke again and again, and worked in between, is no longer outage.
        if pipeline.note_end(started, !matches!(left, Ok(Left::Stopped))) {
            backoff = fresh();
        }
        match left {
            Ok(Left::Stopped) if stop.is_cancelled() => break,
            // An operator paused it, or the watchdog lets an idle one subscribe anew.
            Ok(Left::Stopped) => continue,
            Ok(Left::Fenced) => {
                observe::counter(&metric::FENCED, &[]).increment(1);
                if let Some(held_back) = LEASES_GONE.due() {
                    tracing::warn!(
                        partition = pipeline.name,
                        held_back,
                        "The lease is gone; the batch in hand was not applied here."
                    );
                }
                break;
            }
            // It waited for a row that somebody holds.
            Ok(Left::BrokenOff) => pipeline.pulse.is_at(Doing::Waiting("postgres")),
            Err(error) => {
                observe::store_up(error.store, false);
                pipeline.complain(&error);
            }
        }
        goes_on = pipeline.rest(&stop).await && pipeline.wait_for_stores(&mut backoff, &stop).await;
    }
    if !stop.is_cancelled() {
        // The lease is gone, or was not heard of for too long: nobody here is stuck until the next heartbeat.
        pipeline.pulse.is_at(Doing::Waiting("postgres"));
    }
    pipeline.acquit().await;
    pipeline.solitude = None;
    let Pipeline { relay, name, newest, .. } = pipeline;
    let drain = Duration::from_millis(context.settings.drain_ms);
    // Whoever takes the partition over goes on where the outbox says; its commands must not wait for a store that is away.
    let patience = if leaving.is_cancelled() { drain } else { drain.min(HANDED_OVER) };
    let relayed = relay.drain(newest, patience).await;
    if !relayed.is_empty()
        && let Err(error) = silence::within(
            HANDED_OVER,
            "tidy the outbox",
            transaction::tidy(&context.stores.postgres, &name, &relayed),
        )
        .await
    {
        tracing::debug!(partition = name, %error, "The outbox was not tidied; the next holder relays it once more.");
    }
}

/// Waits until the lease has been over for as long again. A batch in hand may end meanwhile: the fence says whether it
/// counts, and on a machine that is too slow to renew its leases in time something gets done all the same.
async fn ended(mut until: watch::Receiver<Instant>, lease: Duration) {
    loop {
        let end = *until.borrow_and_update() + lease;
        tokio::select! {
            () = tokio::time::sleep_until(end.into()) => return,
            renewed = until.changed() => if renewed.is_err() {
                // The keeper of the leases is gone, and this pipeline with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Pipeline<'_> {
    async fn pipeline(
        &mut self,
        subscription: &mut Subscription,
        leave: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<Left, StoreError> {
        let settings = &self.context.settings;
        let room = Room::open(&self.context.stores.postgres, &self.name);
        self.room = self.answers.wait("read the waiting room", room).await?;
        let linger = Duration::from_millis(settings.linger_ms);
        let mut collector = Collector::new(settings.max_batch, linger, crash::deaf(&self.name));
        let mut patience = QUIET;
        let mut heard = Instant::now();
        loop {
            if let Some(left) = self.due(stop).await? {
                return Ok(left);
            }
            patience = self.room.pause().map_or(patience, |pause| patience.min(pause));
            let give_way = &self.context.give_way;
            let limit = give_way.limit(self.partition.low);
            let deliveries = match collector.collect(subscription, patience, limit, leave).await? {
                Collected::Batch(deliveries) => deliveries,
                Collected::Quiet => {
                    subscription.must_be_open()?;
                    // What is due may have cut the wait short: that says nothing of the queue.
                    if patience >= QUIET && heard.elapsed() >= QUIET {
                        self.pulse.quiet(clock::now());
                    }
                    patience = if self.tidy().await { QUIET_LONG } else { QUIET };
                    continue;
                }
                Collected::Stopped => return Ok(Left::Stopped),
            };
            patience = QUIET;
            self.took = true;
            crash::point("collected");
            self.pulse.is_at(Doing::Applying);
            let turn = give_way.begin(self.partition.low).await;
            let suspects = self.suspects(&deliveries).await?;
            for some in suspects.apart(&deliveries) {
                let settled = self.settle(some, &suspects, stop).await;
                if settled.is_err() && self.solitude.is_some() {
                    self.acquit().await;
                }
                // Nobody else's try may begin before this one is acknowledged and forgotten.
                self.solitude = None;
                if let Some(left) = settled? {
                    return Ok(left);
                }
            }
            heard = Instant::now();
            turn.end(leave).await;
        }
    }

    /// Takes some messages of a batch to their end, and acknowledges them. `None` if the rest may be taken.
    async fn settle(
        &mut self,
        deliveries: &[Delivery],
        suspects: &Suspects,
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        self.pulse.is_at(Doing::Applying);
        (self.held_by, self.through) = (None, 0);
        if let Some(left) = self.take(deliveries, suspects, stop).await? {
            return Ok(Some(left));
        }
        // What is behind a command of a paused type goes back when the channel is closed.
        let deliveries = &deliveries[..self.through];
        let Some(last) = deliveries.last() else {
            self.acquit().await;
            return Ok(Some(Left::Stopped));
        };
        if let Some(journal) = &self.context.stores.journal {
            journal.keep(self.partition.low, deliveries).await;
        }
        crash::point("kept");
        let start = Instant::now();
        last.ack_through().await?;
        observe_step("ack", start);
        crash::point("acknowledged");
        self.forget().await?;
        self.pulse.finished(last.accepted_at().map(|at| at.min(clock::now())));
        if self.held_by.is_none() {
            return Ok(None);
        }
        // Those behind it were noted, and are not tried.
        self.acquit().await;
        Ok(Some(Left::Stopped))
    }

    /// Decode, apply, hand over, up to the first command of a paused type. The caller acknowledges.
    async fn batch(
        &mut self,
        deliveries: &[Delivery],
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let context = self.context;
        let held = pause::first_held(deliveries, &context.pauses.borrow());
        let (deliveries, held_by) = match held {
            Some((place, scope)) => (&deliveries[..place], Some(scope)),
            None => (deliveries, None),
        };
        let left = if deliveries.is_empty() { None } else { self.unheld(deliveries, stop).await? };
        if left.is_none() {
            self.through += deliveries.len();
            self.held_by = held_by;
        }
        Ok(left)
    }

    async fn unheld(
        &mut self,
        deliveries: &[Delivery],
        stop: &CancellationToken,
    ) -> Result<Option<Left>, StoreError> {
        let context = self.context;
        let start = Instant::now();
        let mut decoded = decode(deliveries, &context.settings.patience, clock::now());
        let messages = Messages { context, partition: self.partition, deliveries, origins: &decoded.origins };
        let nameless =
            decoded.nameless.iter().map(|(delivery, detail)| messages.send(*delivery, "malformed", detail));
        try_join_all(nameless).await?;
        bury_dead(&decoded.items, &messages).await?;
        observe_step("decode", start);
        if decoded.items.is_empty() {
            return Ok(None);
        }
        let mut lines = std::mem::take(&mut self.room.lines);
        let left = self.apply(&mut decoded.items, &mut lines, &messages, stop).await;
        self.room.lines = lines;
        // Sinks may be busy for a while, and with many partitions what waits for them meanwhile is memory.
        drop(decoded);
        self.hand_over().await;
        left
    }

    /// Gives the sinks what has lasted.
    async fn hand_over(&mut self) {
        for batch in std::mem::take(&mut self.lasted) {
            self.relay.hand_over(batch).await;
        }
    }

    /// Applies items of either source. What has lasted is to be handed over.
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
        let taken = (!lone).then(|| self.relay.take_relayed());
        let relayed = taken.as_ref().map_or(&[][..], |taken| &taken.relayed);
        let fence = Fence { partition: &self.name, epoch: self.epoch, answers: &self.answers };
        let end = apply_all(self.context, fence, items, lines, relayed, source, stop).await;
        let batches = match end? {
            End::Applied(batches) => batches,
            End::Fenced => return Ok(Some(Left::Fenced)),
        };
        if let Some(taken) = taken {
            taken.tidied();
        }
        for (first, applied) in batches {
            self.finish(first, applied, items, source).await?;
        }
        Ok(None)
    }

    /// After the commit: tell who waits, bury what bears a foreign id, count, and keep what the sinks are to be told.
    async fn finish(
        &mut self,
        first: usize,
        applied: Applied,
        items: &[Item],
        source: &impl Source,
    ) -> Result<(), StoreError> {
        let Applied { number, folded, payload, refresh, settled } = applied;
        let (mut announcements, mut foreigners, mut duplicates) = (Vec::new(), Vec::new(), 0);
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
                Verdict::Duplicate => duplicates += 1,
                Verdict::Mismatch => foreigners.push(index),
                Verdict::Held(held) => report::held(&self.name, &items[index], &folded.held[*held]),
                Verdict::Stays => {}
            }
        }
        for (result, count) in [("same", duplicates), ("mismatch", foreigners.len() as u64)] {
            if count > 0 {
                observe::counter(&metric::COMMAND_DUPLICATES, &[("result", result)]).increment(count);
            }
        }
        let somebody_waits = !announcements.is_empty();
        self.context.announcer.announce(announcements);
        let burials = foreigners.into_iter().map(|index| async move {
            source.bury(index, "idempotency_mismatch", &foreign(items[index].id)).await
        });
        report::receipts(&folded.receipts);
        report::new_users(&folded.new_users);
        self.room.note(&settled);
        self.newest = number;
        self.lasted.push(Batch { number, payload, refresh: Some(refresh) });
        if somebody_waits {
            // The answer is written now, before the sinks are woken: on one thread it would wait behind all of them.
            tokio::task::yield_now().await;
        }
        // They are acknowledged with their batch: their letters come before that.
        try_join_all(burials).await?;
        Ok(())
    }

    /// Removes what is relayed from the outbox. Returns whether everything is relayed.
    async fn tidy(&self) -> bool {
        self.relay.nudge(self.newest);
        let taken = self.relay.take_relayed();
        if taken.relayed.is_empty() {
            return self.relay.is_idle();
        }
        let tidied = transaction::tidy(&self.context.stores.postgres, &self.name, &taken.relayed);
        match self.answers.wait("tidy the outbox", tidied).await {
            Ok(()) => taken.tidied(),
            Err(error) => tracing::debug!(partition = self.name, %error, "The outbox will be tidied later."),
        }
        false
    }
}
