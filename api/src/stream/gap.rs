//! What somebody missed who comes back: read from the outbox and the audit trail, without a hole and without a double.
//!
//! The seat is taken first: what is committed from now on comes live. Then one statement says how far each partition has
//! got; everything up to there is filled in here, and left out of what comes live. What the outbox still keeps may not be
//! in MongoDB yet, and what it does not keep is there: so the outbox is read before.

use std::collections::HashSet;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use taskflow_core::stream::{About, Cursor, Filter, Positions};
use taskflow_stores::mongo::gap::{Kept, SYSTEM, Wanted};
use taskflow_stores::postgres::{leases, outbox};
use taskflow_stores::{StoreError, mongo};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::hub::End;
use crate::Stores;

/// Outbox rows that are read at once: each may have hundreds of events, of some megabytes.
const ROWS: i64 = 4;
/// Outbox rows that are looked through for one reader: with more, the audit trail is far behind.
const ROWS_MAX: usize = 2_000;
/// Events that one batch may have.
const FIRST: usize = 2_000;
/// What has no place in a partition is looked for from so long before the cursor was given: it may come a second time.
const OVERLAP: TimeDelta = TimeDelta::seconds(30);

/// Events bear the time of their batch by the clock of its worker: where a partition has changed hands, a later batch may
/// bear an earlier time. By so much clocks may differ.
const CLOCKS: TimeDelta = TimeDelta::seconds(5);

/// An event that was missed.
pub(crate) struct Missed {
    pub about: About,
    /// Partition, batch, place in it; none for what no command causes.
    pub place: Option<(String, i64, u32)>,
    /// As a CloudEvent.
    pub json: Vec<u8>,
}

/// Readers whose gap is read at a time, in this process …
static READING: Semaphore = Semaphore::const_new(4);
/// … and how long the others wait before they are told to come again.
const TURN: Duration = Duration::from_secs(20);

/// What was missed, and up to where.
pub(crate) struct Gap {
    pub missed: Vec<Missed>,
    pub until: Positions,
}

/// Whose events, and which of them.
pub(crate) struct Reader<'r> {
    /// None for all.
    pub user: Option<Uuid>,
    pub filter: &'r Filter,
    /// Events that are filled in …
    pub most: usize,
    /// … and bytes of them.
    pub most_bytes: usize,
    /// The time of the cursors that are given now: while something waits to be told, it stands still, and so does their age.
    pub told: DateTime<Utc>,
    /// How old the cursor may be: what is older may have left the trail, and its reader must not believe that there is no
    /// hole.
    pub oldest: Duration,
}

/// How far each partition has got: what is committed later comes live.
pub(crate) async fn newest(stores: &Stores) -> Result<Positions, StoreError> {
    Ok(Positions::of_batches(leases::newest_batches(&stores.postgres).await?))
}

/// Reads what was missed since a cursor. A few at a time: after a restart all readers come back together, and what each of
/// them reads may be much.
pub(crate) async fn read(stores: &Stores, cursor: &Cursor, reader: &Reader<'_>) -> Result<Gap, End> {
    if (reader.told - cursor.at).to_std().is_ok_and(|age| age > reader.oldest) {
        return Err(End::GapTooLarge);
    }
    let turn = tokio::time::timeout(TURN, READING.acquire()).await;
    let Ok(Ok(_turn)) = turn else { return Err(End::Unavailable) };
    let until = newest(stores).await.map_err(away)?;
    let behind = cursor.positions.behind(&until);
    let mut found =
        Found { reader, cursor, until: &until, ids: HashSet::new(), missed: Vec::new(), bytes: 0 };
    let mut looked_through = 0;
    for (partition, whole, last) in &behind {
        let mut after = *whole;
        loop {
            let rows =
                outbox::read(&stores.postgres, partition, after, last + 1, ROWS).await.map_err(away)?;
            let complete = (rows.len() as i64) < ROWS;
            looked_through += rows.len();
            if looked_through > ROWS_MAX {
                return Err(End::GapTooLarge);
            }
            for (number, payload) in rows {
                after = number;
                for (index, event) in payload.events.iter().enumerate() {
                    let json = event.to_cloud_event();
                    let kept = Kept {
                        id: event.id.to_string(),
                        partition: (*partition).to_owned(),
                        number,
                        index: index as u32,
                        json,
                    };
                    found.add(kept)?;
                }
            }
            if complete {
                break;
            }
        }
    }
    let applied = leases::applied_after(&stores.postgres, &behind).await.map_err(away)?;
    let wanted = Wanted {
        batches: &behind,
        applied_since: applied.map(|at| at - CLOCKS),
        system_since: cursor.at - OVERLAP,
        user: reader.user,
        filter: reader.filter,
        // Of the first batch of each partition some may have been had.
        most: reader.most + found.missed.len() + behind.len() * FIRST,
    };
    let all = mongo::gap::read(&stores.mongo, &wanted, |kept| found.add(kept).is_ok()).await;
    // Too much to look through is too much.
    if !all.map_err(away)? {
        return Err(End::GapTooLarge);
    }
    let mut missed = found.missed;
    sort(&mut missed);
    Ok(Gap { missed, until })
}

fn away(error: StoreError) -> End {
    tracing::warn!(%error, "What a reader has missed can't be read.");
    End::Unavailable
}

struct Found<'f> {
    reader: &'f Reader<'f>,
    cursor: &'f Cursor,
    until: &'f Positions,
    ids: HashSet<String>,
    missed: Vec<Missed>,
    bytes: usize,
}

impl Found<'_> {
    /// Takes an event that was missed and is wanted; once.
    fn add(&mut self, kept: Kept) -> Result<(), End> {
        let Kept { id, partition, number, index, json } = kept;
        let is_system = partition == SYSTEM;
        if !is_system
            && (self.cursor.positions.has(&partition, number, index)
                || !self.until.has(&partition, number, index))
        {
            return Ok(());
        }
        let Some(about) = About::read(&json) else { return Ok(()) };
        let owned = self.reader.user.is_none_or(|user| about.owners().contains(&user));
        if !owned || !self.reader.filter.takes(&about) || !self.ids.insert(id) {
            return Ok(());
        }
        self.bytes += json.len();
        if self.missed.len() >= self.reader.most || self.bytes > self.reader.most_bytes {
            return Err(End::GapTooLarge);
        }
        let place = (!is_system).then_some((partition, number, index));
        self.missed.push(Missed { about, place, json });
        Ok(())
    }
}

/// By time, and in each partition by its own order: the clocks of two workers may differ where it changed hands.
fn sort(missed: &mut [Missed]) {
    missed.sort_by(|a, b| a.place.cmp(&b.place));
    let mut times: Vec<(DateTime<Utc>, usize)> = Vec::with_capacity(missed.len());
    let mut before: Option<(&str, DateTime<Utc>)> = None;
    for (at, one) in missed.iter().enumerate() {
        let mut time = one.about.time;
        if let Some((partition, _, _)) = &one.place {
            if let Some((same, newest)) = before
                && same == partition.as_str()
            {
                time = time.max(newest);
            }
            before = Some((partition.as_str(), time));
        }
        times.push((time, at));
    }
    times.sort_unstable();
    let mut rank = vec![0; times.len()];
    for (place, (_, at)) in times.iter().enumerate() {
        rank[*at] = place;
    }
    // Where each has to go is known: put them there.
    for at in 0..rank.len() {
        while rank[at] != at {
            let to = rank[at];
            missed.swap(at, to);
            rank.swap(at, to);
        }
    }
}
