//! Keeps a runtime listening while something holds one of its threads, and ends the process if it runs nothing any more.
//!
//! Of the runtime's threads one listens for what the network and the clock bring. If it is handed a task that never
//! rests, nobody listens until something else wakes another thread: then no lease can be renewed, and nothing else goes
//! on, although threads are free. So one is woken now and then from outside; it listens from then on. Where no thread is
//! free, nobody inside can say so: not a watchdog that is a task itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tokio::runtime::Handle;

/// Well below the shortest lease.
const EVERY: Duration = Duration::from_millis(250);
/// How long the log may take for the last line.
const TELL: Duration = Duration::from_secs(1);

/// Goes on for as long as it is held.
pub struct RuntimePulse(
    #[expect(dead_code, reason = "its end is what the thread waits for")] mpsc::Sender<()>,
);

impl RuntimePulse {
    /// Starts it for the runtime that this is called in. A runtime that has run nothing for `patience` ends the process:
    /// it aborts, since nothing in it could still end in order.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(patience: Option<Duration>) -> std::io::Result<Self> {
        let (held, ended) = mpsc::channel();
        let runtime = Handle::current();
        std::thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            let beats = Arc::new(AtomicU64::new(0));
            let (mut seen, mut missed) = (0, Duration::ZERO);
            while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                // By what this thread has waited, not by a clock: a process that was stopped for an hour has not hung.
                let now = beats.load(Ordering::Relaxed);
                missed = if now == seen { missed + EVERY } else { Duration::ZERO };
                seen = now;
                if patience.is_some_and(|patience| missed > patience) {
                    tell(missed);
                    if beats.load(Ordering::Relaxed) == seen {
                        std::process::abort();
                    }
                }
                let beat = Arc::clone(&beats);
                drop(runtime.spawn(async move { beat.fetch_add(1, Ordering::Relaxed) }));
            }
        })?;
        Ok(Self(held))
    }
}

/// From a thread of its own: what hangs may be what takes the log, and then it never returns.
fn tell(missed: Duration) {
    let telling = std::thread::Builder::new().spawn(move || {
        tracing::error!(
            waited_s = missed.as_secs(),
            "All threads hang: something does not come to its end. The process ends, to be started again."
        );
    });
    drop(telling);
    std::thread::sleep(TELL);
}
