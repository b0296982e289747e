//! Waiting for receipts, and for stores that are away.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use taskflow_stores::StoreError;
use taskflow_stores::postgres::receipts::{self, View};
use taskflow_stores::postgres::silence::{self, ANSWER};
use uuid::Uuid;

use super::stream::Sent;
use crate::connect::Stores;

/// Ids that are asked for at once.
pub(super) const IDS_AT_ONCE: usize = 5_000;
/// Between two looks for receipts.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The time in which Postgres gives no answer is no time in which nothing happens. But it ends, after so many times the
/// patience.
const AWAY_PARTS: u32 = 5;
/// Before a store that gave no answer is asked again.
const AGAIN: Duration = Duration::from_millis(500);

/// What is known of some commands.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub found: HashMap<Uuid, View>,
    /// Why the last look failed: what was not found may have its receipt all the same.
    pub unread: Option<StoreError>,
}

/// Reads receipts until all are there and audited, or nothing has changed for `patience`.
pub(super) async fn settle(
    stores: &Stores,
    ids: impl Iterator<Item = Uuid>,
    patience: Duration,
    tell: impl Fn(usize),
) -> Settled {
    let mut settled = Settled::default();
    let mut open: HashSet<Uuid> = ids.collect();
    // Since something has changed: for how long Postgres has answered, and for how long it has not.
    let (mut quiet, mut away) = (Duration::ZERO, Duration::ZERO);
    while !open.is_empty() && quiet < patience && away < AWAY_PARTS * patience {
        let start = Instant::now();
        let before = (open.len(), settled.found.len());
        let wanted: Vec<Uuid> = open.iter().copied().collect();
        settled.unread = read(stores, &wanted, &mut settled.found).await.err();
        open.retain(|id| settled.found.get(id).is_none_or(|receipt| !is_told(receipt)));
        tell(settled.found.len());
        tokio::time::sleep(LOOK_EVERY).await;
        if (open.len(), settled.found.len()) != before {
            (quiet, away) = (Duration::ZERO, Duration::ZERO);
        } else if settled.unread.is_some() {
            away += start.elapsed();
        } else {
            quiet += start.elapsed();
        }
    }
    settled
}

/// Adds the receipts that these commands have.
pub(super) async fn read(
    stores: &Stores,
    ids: &[Uuid],
    found: &mut HashMap<Uuid, View>,
) -> Result<(), StoreError> {
    for some in ids.chunks(IDS_AT_ONCE) {
        let asked = receipts::read_many(&stores.postgres, some);
        let views = silence::within(ANSWER, "read receipts", asked).await?;
        found.extend(views.into_iter().map(|receipt| (receipt.id, receipt)));
    }
    Ok(())
}

/// Whether a command has ended and its events are in the audit trail.
pub(super) fn is_told(receipt: &View) -> bool {
    receipt.events.is_empty() || receipt.auditedat.is_some()
}

/// A subject's commands that were accepted and have no receipt.
pub(super) fn missing(one: &Sent, found: &HashMap<Uuid, View>) -> impl Iterator<Item = Uuid> {
    one.accepted.iter().filter(|id| !found.contains_key(id)).copied()
}

/// Asks a store until it answers, for `patience` at most: one that is away now may be back soon.
pub(super) async fn persist<T, E>(patience: Duration, ask: impl AsyncFn() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + patience;
    loop {
        match ask().await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
}
