//! Commands that were applied, on their way to a journal that does not lie in Postgres: who brings Postgres back to an
//! earlier state replays from it what was confirmed since.
//!
//! A batch is on this machine's disk before it is acknowledged: one write of what the worker has in its hands anyway, which
//! outlives the process. The journal is made from there. What can't be written is left out and counted; commands never
//! wait for the journal's own place.

use std::borrow::Cow;
use std::sync::Arc;

use taskflow_core::backup::journal::Record;
use taskflow_core::metric;
use taskflow_stores::rabbit::consume::Delivery;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::spool::Spool;
use taskflow_stores::{clock, observe};

static DROPPED: Seldom = Seldom::new();

/// Where applied commands go.
#[derive(Clone)]
pub struct Journal(Result<Arc<Spool>, Arc<str>>);

impl Journal {
    pub fn new(spool: Arc<Spool>) -> Self {
        Self(Ok(spool))
    }

    /// There should be one, and can't: everything is left out and counted, until somebody mends it and starts the worker
    /// anew.
    pub fn missing(why: &str) -> Self {
        Self(Err(why.into()))
    }

    /// Takes a batch over that is applied and not yet acknowledged.
    pub(crate) async fn keep(&self, low: bool, deliveries: &[Delivery]) {
        let written = match &self.0 {
            Ok(spool) => write(Arc::clone(spool), low, deliveries).await,
            Err(why) => Err(std::io::Error::other(why.to_string())),
        };
        if let Err(error) = written {
            observe::counter(&metric::JOURNAL_DROPPED, &[]).increment(deliveries.len() as u64);
            if DROPPED.due().is_some() {
                tracing::warn!(%error, "Commands are applied and left out of the journal: they can't be written down.");
            }
        }
    }
}

async fn write(spool: Arc<Spool>, low: bool, deliveries: &[Delivery]) -> std::io::Result<()> {
    let at = clock::now();
    let mut bytes = Vec::new();
    for delivery in deliveries {
        let body = Cow::Borrowed(delivery.body());
        Record { at, accepted_at: delivery.accepted_at(), low, body }.encode(&mut bytes);
    }
    let written = tokio::task::spawn_blocking(move || spool.append(&bytes)).await;
    written.unwrap_or_else(|error| Err(error.into()))
}
