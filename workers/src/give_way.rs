//! Low priority gives way: while normal commands come, low ones are worked on in small batches, one at a time, with
//! rests between them, so that what is shared (cores, stores) is free when a normal one comes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

/// So long after the last normal command low ones still give way.
const REMEMBERED: Duration = Duration::from_secs(3);
/// Most low commands in a batch meanwhile: what a normal one may find in its way.
const BATCH: usize = 20;
/// Rests, as multiples of the work.
const REST: u32 = 4;

/// What the partitions of a process tell each other.
pub(crate) struct GiveWay {
    start: Instant,
    /// Milliseconds from the start to the last normal batch, plus one; 0 before the first.
    last_normal_ms: AtomicU64,
    turn: Semaphore,
}

impl Default for GiveWay {
    fn default() -> Self {
        Self { start: Instant::now(), last_normal_ms: AtomicU64::new(0), turn: Semaphore::new(1) }
    }
}

impl GiveWay {
    fn is_busy(&self) -> bool {
        let last = self.last_normal_ms.load(Ordering::Relaxed);
        let now = self.start.elapsed().as_millis() as u64;
        last > 0 && now.saturating_sub(last) < REMEMBERED.as_millis() as u64
    }

    /// How many commands may be in a batch now; `None` for as many as ever.
    pub(crate) fn limit(&self, low: bool) -> Option<usize> {
        (low && self.is_busy()).then_some(BATCH)
    }

    /// Begins a batch; one of low priority waits for its turn.
    pub(crate) async fn begin(&self, low: bool) -> Turn<'_> {
        let begun = Instant::now();
        if !low {
            self.last_normal_ms.store(self.start.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
        }
        let permit = if low && self.is_busy() { self.turn.acquire().await.ok() } else { None };
        Turn { give_way: self, low, begun, permit }
    }
}

/// A batch at work.
pub(crate) struct Turn<'g> {
    give_way: &'g GiveWay,
    low: bool,
    begun: Instant,
    permit: Option<SemaphorePermit<'g>>,
}

impl Turn<'_> {
    /// Ends the batch; one of low priority rests.
    pub(crate) async fn end(self, stop: &CancellationToken) {
        let work = self.begun.elapsed();
        drop(self.permit);
        if self.low && self.give_way.is_busy() {
            tokio::select! {
                () = tokio::time::sleep(work * REST) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}
