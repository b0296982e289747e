//! Keeps the runtime listening while a job holds its thread.
//!
//! Of the runtime's threads one listens for what the network and the clock bring. If it is handed a task that never
//! rests, nobody listens until something else wakes another thread: then the lead can't be renewed, and no other run goes
//! on, although threads are free. So one is woken now and then from outside; it listens from then on.

use std::sync::mpsc;
use std::time::Duration;

use tokio::runtime::Handle;

/// Well below the shortest lead.
const EVERY: Duration = Duration::from_millis(250);

/// Goes on for as long as it is held.
pub(crate) struct Pulse(
    #[expect(dead_code, reason = "its end is what the thread waits for")] mpsc::Sender<()>,
);

impl Pulse {
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (held, ended) = mpsc::channel();
        let runtime = Handle::current();
        std::thread::Builder::new().name("pulse".to_owned()).spawn(move || {
            while ended.recv_timeout(EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                drop(runtime.spawn(async {}));
            }
        })?;
        Ok(Self(held))
    }
}
