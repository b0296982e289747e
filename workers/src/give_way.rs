//! Low priority gives way: while normal commands come, low ones are worked on in small batches, one at a time, begun
//! when no normal one is at work, with rests between them. So what is shared (cores, stores, disks) is mostly free when a
//! normal one comes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// So long after the last normal command low ones still give way.
const REMEMBERED: Duration = Duration::from_secs(3);
/// Most low commands in a batch meanwhile: what a normal one may find in its way.
const BATCH: usize = 10;
/// How long the stores are left to what follows a normal batch: acknowledgement, audit trail, caches.
const CLEAR: Duration = Duration::from_millis(3);
/// How long a low batch waits for a moment without normal ones: under a steady load there is none.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// Rests, as multiples of the work.
const REST: u32 = 4;
/// Longest rest: a batch that took long had a store to wait for.
const REST_MAX: Duration = Duration::from_secs(1);

/// What the partitions of a process tell each other.
pub(crate) struct GiveWay {
    start: Instant,
    /// Milliseconds from the start to the last beginning or end of a normal batch, plus one; 0 before the first.
    last_normal_ms: AtomicU64,
    /// Normal batches at work.
    normal: AtomicUsize,
    turn: Semaphore,
}

impl Default for GiveWay {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last_normal_ms: AtomicU64::new(0),
            normal: AtomicUsize::new(0),
            turn: Semaphore::new(1),
        }
    }
}

impl GiveWay {
    /// Whether there were normal commands a moment ago.
    pub(crate) fn is_busy(&self) -> bool {
        self.since_normal().is_some_and(|since| since < REMEMBERED)
    }

    fn since_normal(&self) -> Option<Duration> {
        let last = self.last_normal_ms.load(Ordering::Relaxed).checked_sub(1)?;
        Some(self.start.elapsed().saturating_sub(Duration::from_millis(last)))
    }

    fn note_normal(&self) {
        self.last_normal_ms.store(self.start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    /// Waits for a moment in which no normal batch is at work, nor was just now.
    async fn clear(&self) {
        let deadline = Instant::now() + WAIT_MAX;
        let is_clear = || {
            self.normal.load(Ordering::Relaxed) == 0 && self.since_normal().is_none_or(|since| since > CLEAR)
        };
        while !is_clear() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// How many commands may be in a batch now; `None` for as many as ever.
    pub(crate) fn limit(&self, low: bool) -> Option<usize> {
        (low && self.is_busy()).then_some(BATCH)
    }

    /// Begins a batch; one of low priority waits for its turn.
    pub(crate) async fn begin(&self, low: bool) -> Turn<'_> {
        let mut permit = None;
        if !low {
            self.note_normal();
            self.normal.fetch_add(1, Ordering::Relaxed);
        } else if self.is_busy() {
            permit = self.turn.acquire().await.ok();
            self.clear().await;
        }
        Turn { give_way: self, low, begun: Instant::now(), permit }
    }
}

/// A batch at work.
pub(crate) struct Turn<'g> {
    give_way: &'g GiveWay,
    low: bool,
    begun: Instant,
    permit: Option<SemaphorePermit<'g>>,
}

/// Also where a batch ends in an error.
impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.low {
            self.give_way.note_normal();
            self.give_way.normal.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Turn<'_> {
    /// Ends the batch; one of low priority rests.
    pub(crate) async fn end(mut self, stop: &CancellationToken) {
        let work = self.begun.elapsed();
        self.permit = None;
        if self.low && self.give_way.is_busy() {
            tokio::select! {
                () = tokio::time::sleep((work * REST).min(REST_MAX)) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}
