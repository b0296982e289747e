//! Waiting before trying again: longer each time, up to a bound, and never in step with others.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Delays that double, each drawn between half and all of its length.
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Backoff {
    /// The first delay, and the longest.
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// How often it has been waited.
    #[must_use]
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Waits for the next delay; `false` if `stop` came first.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        let delay = self.first.saturating_mul(1 << self.tries.min(16)).min(self.longest);
        self.tries += 1;
        let delay = delay.mul_f64(rand::random_range(0.5..=1.0));
        tokio::select! {
            () = stop.cancelled() => false,
            () = tokio::time::sleep(delay) => true,
        }
    }
}
