//! Commands that were applied, on their way to a journal that does not lie in Postgres: who brings Postgres back to an
//! earlier state replays from it what was confirmed since.
//!
//! A batch costs one hand-over of what it has in its hands anyway, after it was acknowledged. Nobody waits for the
//! journal: what it can't take is left out and counted.

use taskflow_core::backup::journal::Record;
use taskflow_core::metric;
use taskflow_stores::rabbit::consume::Delivery;
use taskflow_stores::{clock, observe};
use tokio::sync::mpsc;

/// Batches that wait to be written.
const WAITING: usize = 64;

/// Where applied commands go.
#[derive(Clone)]
pub struct Journal(mpsc::Sender<Vec<Record>>);

impl Journal {
    /// A journal, and what is to be written into it.
    pub fn new() -> (Self, mpsc::Receiver<Vec<Record>>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Hands a batch over that is acknowledged.
    pub(crate) fn keep(&self, low: bool, deliveries: Vec<Delivery>) {
        let (at, count) = (clock::now(), deliveries.len());
        let record = |delivery: Delivery| {
            let accepted_at = delivery.accepted_at();
            Record { at, accepted_at, low, body: delivery.into_body() }
        };
        if self.0.try_send(deliveries.into_iter().map(record).collect()).is_err() {
            observe::counter(&metric::JOURNAL_DROPPED, &[]).increment(count as u64);
        }
    }
}
