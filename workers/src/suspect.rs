//! Finding the message that kills: one that makes the process abort, or exhausts its memory.
//!
//! When a worker dies, the broker's count of returns rises for everything that it held, so the count can't tell the
//! culprit. It only says of whom to take note: messages that came back are written down before they are tried together,
//! and whoever was among them when a worker died once more is tried alone, which is written down too, the last time while
//! nobody else in this process is. Who was alone so often and never came to an end is dead; nobody else is charged.
//!
//! A command that has waited is not the broker's any more. There the lease tells: a holder that dies leaves it to run
//! out, and after two of those what is due is taken one by one ([`crate::partition`]).

use std::time::Duration;

use taskflow_core::Item;
use taskflow_core::batch::{Content, Dead};
use taskflow_core::command::{Fingerprint, digest};
use taskflow_stores::postgres::{PgPool, suspects};
use taskflow_stores::rabbit::consume::Delivery;
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, clock};
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use uuid::Uuid;

/// Returns after which a message is taken note of: it may be a deployment, and costs two statements a batch.
const RETURNS: i64 = 1;
/// Deaths in a row after which commands that have waited are tried alone.
pub(crate) const DEATHS: i16 = 2;
/// Tries alone before a message is given up.
const TRIES: i16 = 3;
const REASON: &str = "poison";
/// How long others wait for one that is tried while nobody else is.
const PATIENCE: Duration = Duration::from_secs(10);

static BROKEN_OFF: Seldom = Seldom::new();

/// Sees to it that the last try before a message is given up is its own. Others are tried beside it in other partitions,
/// and a death tells nothing of who among them it was; whoever happens to be tried whenever the culprit is must not be
/// condemned with it.
#[derive(Default)]
pub(crate) struct Solitude(RwLock<()>);

/// Ends with the try.
pub(crate) enum Entered<'s> {
    Beside { _others: RwLockReadGuard<'s, ()> },
    Alone { _guard: RwLockWriteGuard<'s, ()> },
}

impl Solitude {
    /// Waits until a message may be tried that was tried so often before.
    pub(crate) async fn enter(&self, tries: i16) -> Entered<'_> {
        if tries + 1 < TRIES {
            Entered::Beside { _others: self.0.read().await }
        } else {
            Entered::Alone { _guard: self.0.write().await }
        }
    }

    /// Waits until nobody else is tried, nor will be.
    pub(crate) async fn enter_alone(&self) -> Entered<'_> {
        self.enter(TRIES).await
    }
}

impl Entered<'_> {
    /// Tries; `None` if others would have to wait for longer than [`PATIENCE`]. What kills does not wait for a lock.
    pub(crate) async fn run<T>(&self, partition: Partition, trial: impl Future<Output = T>) -> Option<T> {
        let Self::Alone { .. } = self else { return Some(trial.await) };
        let tried = tokio::time::timeout(PATIENCE, trial).await.ok();
        if tried.is_none()
            && let Some(held_back) = BROKEN_OFF.due()
        {
            tracing::warn!(
                %partition,
                held_back,
                "A command that may kill workers and is tried alone waits for something; others are tried first."
            );
        }
        tried
    }
}

/// How a message is to be taken.
pub(crate) enum Trial {
    /// As any other: it is under no suspicion.
    None,
    /// Alone; the try is written down.
    Alone(Fingerprint),
    /// Not at all.
    Condemned(Fingerprint),
}

/// Whether a message may have killed somebody.
pub(crate) fn is_suspicious(delivery: &Delivery) -> bool {
    delivery.returns() >= RETURNS
}

/// Writes down that a message is tried alone, and says whether it still may be.
pub(crate) async fn try_alone(
    pool: &PgPool,
    partition: &str,
    epoch: i64,
    body: &[u8],
) -> Result<Trial, StoreError> {
    let digest = digest(body);
    let tries = suspects::note_try(pool, digest, partition, epoch).await?;
    Ok(if tries > TRIES { Trial::Condemned(digest) } else { Trial::Alone(digest) })
}

/// What is said of a message that kills.
pub(crate) fn dead(subject: Option<Uuid>) -> Dead {
    let detail = format!("the worker died {TRIES} times while it worked on this message alone");
    Dead { subject, ..Dead::unread(REASON, detail) }
}

/// What is left of a message that kills. It is not read: its id is known if its publisher named it beside the bytes.
pub(crate) fn remains(delivery: &Delivery) -> (Option<Item>, &'static str, String) {
    let dead = dead(None);
    let detail = dead.detail.clone();
    let item = delivery.message_id().map(|id| Item {
        id,
        fingerprint: digest(delivery.body()),
        accepted_at: delivery.accepted_at().unwrap_or_else(clock::now).min(clock::now()),
        content: Content::Dead(dead),
        waited: None,
    });
    (item, REASON, detail)
}
