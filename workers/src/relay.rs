//! Carries what a partition's batches have to tell to the three sinks, off the critical path and in order.
//!
//! Each sink follows at its own pace: while MongoDB is away, the caches stay fresh. A sink takes batches from memory
//! while it keeps up, and from the outbox when it does not, after a crash, or for the former holder of the lease. It
//! knows by the numbers: a partition's batches are numbered without gaps by the fence.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;
use taskflow_stores::postgres::batch::Relayed;
use taskflow_stores::postgres::outbox;
use taskflow_stores::{StoreError, observe, seldom, supervise};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::answers::Answers;
use crate::apply::observe_step;
use crate::crash;
use crate::sink::{Batch, Sink, deliver};
use taskflow_stores::backoff::Backoff;

/// How long a batch waits for a sink that is busy. One that needs longer is left to the outbox.
const BUSY: Duration = Duration::from_secs(1);
/// Between two tries of a sink whose store is away: what comes back is used within a few seconds.
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// Outbox rows that are read at once.
const READ_MAX: i64 = 8;

/// The relay of one partition.
pub(crate) struct Relay {
    queues: Vec<Queue>,
    progress: Arc<Progress>,
    tasks: JoinSet<()>,
    /// Ends the sinks, wherever they are.
    abandon: CancellationToken,
}

/// The way to one sink.
struct Queue {
    sender: mpsc::Sender<Handover>,
    /// It fails or hangs: nobody waits for it.
    lagging: Arc<AtomicBool>,
}

/// A batch, or the news that there are batches up to this number in the outbox.
#[derive(Clone)]
struct Handover {
    number: i64,
    batch: Option<Arc<Batch>>,
}

/// Of so many batches that only some sinks have it is kept when they had them. Of those beyond it the others are said to
/// have them when the last one does: a store may be away for days.
const AHEAD_MAX: usize = 4_096;

/// Which sinks have which batches.
#[derive(Default)]
struct Progress(StdMutex<Had>);

#[derive(Default)]
struct Had {
    /// The newest batch of each sink. Each takes them in order, so it has all before.
    newest: [Option<i64>; Sink::ALL.len()],
    /// When they had the batches that are not tidied away.
    batches: BTreeMap<i64, [Option<DateTime<Utc>>; Sink::ALL.len()]>,
}

impl Had {
    /// The newest batch that all sinks have.
    fn by_all(&self) -> Option<i64> {
        self.newest.iter().copied().min().flatten()
    }
}

impl Progress {
    fn had(&self) -> std::sync::MutexGuard<'_, Had> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, number: i64, sink: Sink, at: DateTime<Utc>) {
        let mut had = self.had();
        let newest = &mut had.newest[sink as usize];
        *newest = (*newest).max(Some(number));
        let has_room = had.batches.len() < AHEAD_MAX || had.by_all() >= Some(number);
        if has_room || had.batches.contains_key(&number) {
            had.batches.entry(number).or_default()[sink as usize] = Some(at);
        }
    }

    /// Takes out the batches that all sinks have.
    fn take_relayed(&self) -> Vec<Relayed> {
        let mut had = self.had();
        let Some(newest) = had.by_all() else { return Vec::new() };
        let ahead = had.batches.split_off(&(newest + 1));
        let relayed = std::mem::replace(&mut had.batches, ahead);
        drop(had);
        let relayed = relayed.into_iter().filter_map(|(number, at)| {
            let last = at.into_iter().flatten().max()?;
            let [audited_at, cached_at, published_at] = at.map(|at| at.unwrap_or(last));
            Some(Relayed { number, audited_at, cached_at, published_at })
        });
        relayed.collect()
    }

    /// How many batches all sinks have that are not tidied away.
    fn relayed(&self) -> usize {
        let had = self.had();
        had.by_all().map_or(0, |newest| had.batches.range(..=newest).count())
    }

    /// Whether no sink has what another lacks, and nothing is to be tidied away.
    fn is_empty(&self) -> bool {
        self.had().batches.is_empty()
    }

    fn put_back(&self, relayed: Vec<Relayed>) {
        let mut had = self.had();
        for batch in relayed {
            let at = [batch.audited_at, batch.cached_at, batch.published_at].map(Some);
            had.batches.insert(batch.number, at);
        }
    }
}

/// Batches that are being tidied away. What is not comes back, also where whoever does so is broken off.
pub(crate) struct Taken {
    pub relayed: Vec<Relayed>,
    progress: Arc<Progress>,
}

impl Taken {
    /// They are gone from the outbox.
    pub(crate) fn tidied(mut self) {
        self.relayed.clear();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.progress.put_back(std::mem::take(&mut self.relayed));
    }
}

impl Relay {
    /// Starts the sinks. What is in the outbox up to batch `newest` goes first: former holders left it.
    pub(crate) fn start(context: &Arc<Context>, partition: &str, newest: i64) -> Self {
        let progress = Arc::new(Progress::default());
        let abandon = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let mut queues = Vec::new();
        for sink in Sink::ALL {
            let (sender, receiver) = mpsc::channel(context.settings.relay_queue.max(1));
            let lagging = Arc::new(AtomicBool::new(false));
            let follower = Follower {
                context: Arc::clone(context),
                partition: partition.to_owned(),
                sink,
                last: Arc::new(AtomicI64::new(-1)),
                lagging: Arc::clone(&lagging),
                progress: Arc::clone(&progress),
                abandon: abandon.clone(),
                calls: Arc::default(),
            };
            tasks.spawn(follow(follower, newest, receiver));
            queues.push(Queue { sender, lagging });
        }
        Self { queues, progress, tasks, abandon }
    }

    /// Hands a batch over. A sink that is busy is waited for, so that it works from memory; one that fails or hangs
    /// will find the batch in the outbox.
    pub(crate) async fn hand_over(&self, batch: Batch) {
        let handover = Handover { number: batch.number, batch: Some(Arc::new(batch)) };
        for Queue { sender, lagging } in &self.queues {
            if lagging.load(Ordering::Relaxed) {
                let _ = sender.try_send(handover.clone());
            } else if sender.send_timeout(handover.clone(), BUSY).await.is_err() {
                lagging.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Tells sinks that have fallen behind how far they have to go. For quiet times, when no batch tells it.
    pub(crate) fn nudge(&self, newest: i64) {
        for Queue { sender, .. } in self.queues.iter().filter(|queue| queue.is_empty()) {
            let _ = sender.try_send(Handover { number: newest, batch: None });
        }
    }

    /// Whether nothing waits: no batch in a queue, none that only some sinks have.
    pub(crate) fn is_idle(&self) -> bool {
        self.queues.iter().all(Queue::is_empty) && self.progress.is_empty()
    }

    /// How many batches can be tidied away.
    pub(crate) fn relayed(&self) -> usize {
        self.progress.relayed()
    }

    /// What can be tidied away.
    pub(crate) fn take_relayed(&self) -> Taken {
        Taken { relayed: self.progress.take_relayed(), progress: Arc::clone(&self.progress) }
    }

    /// Lets the sinks come to batch `newest`, for at most `patience`. Returns what they finished.
    pub(crate) async fn drain(mut self, newest: i64, patience: Duration) -> Vec<Relayed> {
        let finished = async {
            // A sink whose queue was full has missed a batch, and learns only from this that it has to go further.
            join_all(std::mem::take(&mut self.queues).into_iter().map(|queue| queue.close(newest))).await;
            while self.tasks.join_next().await.is_some() {}
        };
        if tokio::time::timeout(patience, finished).await.is_err() {
            tracing::info!("A sink has not caught up; the outbox keeps what it lacks.");
            self.abandon.cancel();
            while self.tasks.join_next().await.is_some() {}
        }
        self.progress.take_relayed()
    }
}

impl Queue {
    async fn close(self, newest: i64) {
        let _ = self.sender.send(Handover { number: newest, batch: None }).await;
    }

    fn is_empty(&self) -> bool {
        self.sender.capacity() == self.sender.max_capacity()
    }
}

/// Lets a sink follow to its end. After a panic it begins with what is in the outbox: it may have had some of that
/// already, which does no harm.
async fn follow(follower: Follower, newest: i64, queue: mpsc::Receiver<Handover>) {
    let queue = Mutex::new(queue);
    supervise::to_its_end("sink", || async {
        follower.clone().run(newest, &mut *queue.lock().await).await;
    })
    .await;
}

/// One sink on its way through a partition's batches.
#[derive(Clone)]
struct Follower {
    context: Arc<Context>,
    partition: String,
    sink: Sink,
    /// The newest batch that the sink has. It outlives a panic: what was noted is not noted again.
    last: Arc<AtomicI64>,
    lagging: Arc<AtomicBool>,
    progress: Arc<Progress>,
    abandon: CancellationToken,
    /// How long it waits for Postgres.
    calls: Arc<Answers>,
}

impl Follower {
    async fn run(self, newest: i64, queue: &mut mpsc::Receiver<Handover>) {
        self.catch_up(newest).await;
        while let Some(handover) = tokio::select! {
            handover = queue.recv() => handover,
            () = self.abandon.cancelled() => None,
        } {
            match handover.batch {
                Some(batch) => {
                    let keeps_up = self.last() >= handover.number - 1;
                    self.catch_up(handover.number - 1).await;
                    self.take(&batch).await;
                    if keeps_up && !self.abandon.is_cancelled() {
                        // Only now is it worth waiting for: one that catches up would hold up batch after batch.
                        self.lagging.store(false, Ordering::Relaxed);
                    }
                }
                None => self.catch_up(handover.number).await,
            }
        }
    }

    fn last(&self) -> i64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Takes from the outbox what is there up to batch `newest`.
    async fn catch_up(&self, newest: i64) {
        while self.last() < newest && !self.abandon.is_cancelled() {
            let (postgres, last) = (&self.context.stores.postgres, self.last());
            let read = || {
                let rows = outbox::read(postgres, &self.partition, last, newest + 1, READ_MAX);
                self.calls.wait("read the outbox", rows)
            };
            let Some(rows) = self.persist("read the outbox", read).await else { return };
            let complete = (rows.len() as i64) < READ_MAX;
            for (number, payload) in rows {
                self.take(&Batch { number, payload, refresh: None }).await;
            }
            if complete && !self.abandon.is_cancelled() {
                self.last.fetch_max(newest, Ordering::Relaxed);
            }
        }
    }

    async fn take(&self, batch: &Batch) {
        // What was given up before is not taken: a sink has all before the newest that it has.
        if self.abandon.is_cancelled() {
            return;
        }
        crash::point("sink");
        if !batch.payload.is_empty() {
            let start = std::time::Instant::now();
            let give = || deliver(&self.context, &self.partition, self.sink, batch, &self.calls);
            let Some(at) = self.persist("deliver a batch", give).await else { return };
            observe_step("relay", start);
            crash::point("relayed");
            self.progress.note(batch.number, self.sink, at);
        }
        self.last.fetch_max(batch.number, Ordering::Relaxed);
    }

    /// Tries until it succeeds: what is in the outbox must arrive. `None` if the relay was abandoned.
    async fn persist<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        what: &'static str,
        work: impl Fn() -> F,
    ) -> Option<T> {
        let mut backoff = Backoff::new(Duration::from_millis(50), AGAIN_MAX);
        let mut told = false;
        loop {
            let result = tokio::select! {
                result = work() => result,
                () = self.abandon.cancelled() => return None,
            };
            match result {
                Ok(value) => {
                    if backoff.tries() > 0 {
                        observe::store_up(self.sink.store(), true);
                    }
                    if told {
                        tracing::info!(
                            partition = self.partition,
                            sink = self.sink.as_str(),
                            "The sink follows again."
                        );
                    }
                    return Some(value);
                }
                Err(error) => {
                    self.lagging.store(true, Ordering::Relaxed);
                    observe::store_up(error.store, false);
                    // Once an outage, unless others have said it.
                    if !told && seldom::worth_a_line(&error) {
                        told = true;
                        tracing::warn!(partition = self.partition, sink = self.sink.as_str(), what, %error, "A sink can't follow; the outbox keeps its batches until it can.");
                    }
                    if !backoff.wait(&self.abandon).await {
                        return None;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use taskflow_stores::clock;

    use super::*;

    #[test]
    fn a_sink_that_is_away_for_long_costs_no_memory_and_loses_nothing() {
        let (progress, at) = (Progress::default(), clock::now());
        let batches = AHEAD_MAX as i64 + 1_000;
        for number in 0..batches {
            progress.note(number, Sink::Cache, at);
            progress.note(number, Sink::Exchange, at);
            assert_eq!(progress.relayed(), 0);
        }
        assert_eq!(progress.had().batches.len(), AHEAD_MAX);
        let mut tidied = Vec::new();
        for number in 0..batches {
            progress.note(number, Sink::Audit, at + chrono::TimeDelta::seconds(number));
            if number % 7 == 0 {
                tidied.extend(progress.take_relayed());
            }
        }
        tidied.extend(progress.take_relayed());
        assert!(tidied.iter().map(|batch| batch.number).eq(0..batches));
        assert!(tidied.iter().all(|batch| batch.audited_at == at + chrono::TimeDelta::seconds(batch.number)));
        assert_eq!(tidied[0].cached_at, at);
        assert!(progress.is_empty());
    }

    proptest! {
        /// However the sinks run ahead of each other, each batch is tidied away once, when the last one has it.
        #[test]
        fn each_batch_is_relayed_once(steps in prop::collection::vec((0..3_usize, any::<bool>(), any::<bool>()), 1..200)) {
            let progress = Progress::default();
            let mut next = [0_i64; 3];
            let mut tidied = 0..0_i64;
            for (sink, takes, keeps) in steps {
                progress.note(next[sink], Sink::ALL[sink], clock::now());
                next[sink] += 1;
                let by_all = *next.iter().min().expect("three");
                prop_assert_eq!(progress.relayed() as i64, by_all - tidied.end);
                if takes {
                    let relayed = progress.take_relayed();
                    prop_assert!(relayed.iter().map(|batch| batch.number).eq(tidied.end..by_all));
                    if keeps {
                        tidied.end = by_all;
                    } else {
                        progress.put_back(relayed);
                    }
                }
            }
        }
    }
}
