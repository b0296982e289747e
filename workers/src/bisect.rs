//! Applying a batch to its end, whatever fails: conflicts are run again, and a batch whose data the store refuses is
//! halved until the guilty command stands alone. That one is dead; its neighbours apply.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use taskflow_core::batch::Content;
use taskflow_core::{Item, metric};
use taskflow_stores::postgres::batch::Relayed;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{Kind, StoreError, clock, observe};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Context;
use crate::apply::{Applied, Fence, Range, apply};
use taskflow_stores::backoff::Backoff;

/// Conflicts in a row before the batch is halved: smaller batches meet fewer others.
const CONFLICTS_MAX: u32 = 8;
/// How long conflicts may take before it is halved. One that takes long is a row that somebody has locked: running the
/// whole batch again does not help those that could be applied.
const CONFLICTS_LONGEST: Duration = Duration::from_secs(5);
/// Times that a batch is run again at once while the store is away, before the partition lets go of its messages.
const UNAVAILABLE_MAX: u32 = 3;

static HALVED: Seldom = Seldom::new();

/// How a batch ended.
pub(crate) enum End {
    /// All of it lasted, in one transaction or several, in order. Each goes with the index of its first item.
    Applied(Vec<(usize, Applied)>),
    /// The partition belongs to another worker now.
    Fenced,
}

/// Where the items of a batch come from: the broker, or the waiting room.
pub(crate) trait Source {
    /// The message of an item, as it came.
    fn body(&self, index: usize) -> &[u8];

    /// The intake that waits for an item's receipt.
    fn intake(&self, index: usize) -> Option<Uuid>;

    /// Puts the message of an item into the dead letters.
    async fn bury(&self, index: usize, reason: &'static str, detail: &str) -> Result<(), StoreError>;
}

/// The letter comes before the receipt that speaks of it; a crash in between sends it again. All are on their way at
/// once: a flood of bad messages costs a batch one round trip, not one each.
pub(crate) async fn bury_dead(items: &[Item], source: &impl Source) -> Result<(), StoreError> {
    let dead = items.iter().enumerate().filter_map(|(index, item)| match &item.content {
        Content::Dead(dead) => Some(source.bury(index, dead.reason, &dead.detail)),
        _ => None,
    });
    try_join_all(dead).await.map(drop)
}

/// Applies all items, in order. `lines` are the subjects of which a command waits; it is kept up to date.
///
/// # Errors
/// Only what is not a command's fault: [`Kind::Unavailable`] and [`Kind::Bug`]. What was applied before it stays
/// applied; its receipts make a repetition harmless.
pub(crate) async fn apply_all(
    context: &Context,
    fence: Fence<'_>,
    items: &mut [Item],
    lines: &mut HashSet<Uuid>,
    mut relayed: &[Relayed],
    source: &impl Source,
    stop: &CancellationToken,
) -> Result<End, StoreError> {
    let mut applied = Vec::with_capacity(1);
    // Ranges still to be applied, the next one last.
    let mut ranges = vec![(0, items.len())];
    while let Some((from, to)) = ranges.pop() {
        let range = Range { items: &items[from..to], first: from };
        let error = match persist(context, fence, range, lines, relayed, source, stop).await {
            Ok(Some(batch)) => {
                lines.extend(&batch.settled.lines);
                applied.push((from, batch));
                relayed = &[];
                continue;
            }
            Ok(None) => return Ok(End::Fenced),
            Err(error) => error,
        };
        let splittable = error.kind == Kind::Data || error.kind == Kind::Conflict;
        if !splittable {
            return Err(error);
        }
        if to - from > 1 {
            observe::counter(&metric::BATCH_RETRIES, &[("reason", "split")]).increment(1);
            // Under a storm of conflicts every batch is.
            if let Some(held_back) = HALVED.due() {
                tracing::warn!(partition = fence.partition, commands = to - from, %error, held_back, "A batch was refused; it is halved.");
            }
            let middle = from + (to - from) / 2;
            ranges.push((middle, to));
            ranges.push((from, middle));
        } else if error.kind == Kind::Conflict {
            // It stands alone and still somebody is always faster: the store is the trouble, not the command.
            let detail = format!(
                "{}; it is command {}: does another session hold its row?",
                error.detail, items[from].id
            );
            return Err(StoreError { kind: Kind::Unavailable, detail, ..error });
        } else {
            give_up(&mut items[from], from, &error, source).await?;
            ranges.push((from, to));
        }
    }
    Ok(End::Applied(applied))
}

async fn give_up(
    item: &mut Item,
    index: usize,
    error: &StoreError,
    source: &impl Source,
) -> Result<(), StoreError> {
    if matches!(item.content, Content::Dead(_)) {
        // Its receipt holds nothing of the command any more: the fault is ours.
        return Err(StoreError { kind: Kind::Bug, ..error.clone() });
    }
    tracing::error!(command = %item.id, %error, "A command can't be applied; it goes to the dead letters.");
    let detail = error.to_string().replace('\0', "\u{fffd}");
    source.bury(index, "failing", &detail).await?;
    *item = item.clone().into_dead("failing", detail);
    Ok(())
}

/// Applies one range as one transaction, again and again while that may help.
async fn persist(
    context: &Context,
    fence: Fence<'_>,
    range: Range<'_>,
    lines: &HashSet<Uuid>,
    relayed: &[Relayed],
    source: &impl Source,
    stop: &CancellationToken,
) -> Result<Option<Applied>, StoreError> {
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(500));
    let started = Instant::now();
    loop {
        let error = match apply(context, fence, range, lines, relayed, source, clock::now()).await {
            Ok(applied) => return Ok(applied),
            Err(error) => error,
        };
        let (reason, most) = match error.kind {
            Kind::Conflict => ("conflict", CONFLICTS_MAX),
            Kind::Unavailable => ("unavailable", UNAVAILABLE_MAX),
            Kind::Data | Kind::Bug => return Err(error),
        };
        let is_long = error.kind == Kind::Conflict && started.elapsed() >= CONFLICTS_LONGEST;
        if backoff.tries() >= most || is_long {
            return Err(error);
        }
        observe::counter(&metric::BATCH_RETRIES, &[("reason", reason)]).increment(1);
        tracing::debug!(partition = fence.partition, %error, "A batch is run again.");
        if !backoff.wait(stop).await {
            return Err(error);
        }
    }
}
