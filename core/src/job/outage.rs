//! What becomes of the due times since a schedule was looked at last: one as a rule, many after an outage.

use chrono::{DateTime, TimeDelta, Utc};

use super::expression::Expression;
use super::{Met, Missed, jitter};

/// Up to this a run counts as on time.
pub const LATE_AFTER: TimeDelta = TimeDelta::seconds(5);
/// Beyond this nobody was there: what the schedule says about missed runs decides.
pub const MISSED_AFTER: TimeDelta = TimeDelta::minutes(5);
/// Due times of one schedule that are written down one by one; older ones share a row.
pub const ROWS_MAX: usize = 1_000;

/// A schedule, as far as its due times go.
#[derive(Debug, Clone)]
pub struct Timing<'s> {
    pub name: &'s str,
    pub expression: &'s Expression,
    pub jitter_s: u32,
    pub missed: Missed,
    /// Runs that are made up for at most where each one is.
    pub catch_up_max: usize,
}

/// A due time and how it was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    pub at: DateTime<Utc>,
    pub met: Met,
    /// The last of the due times that share this row, if it stands for more than one.
    pub through: Option<DateTime<Utc>>,
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// In order.
    pub dues: Vec<Due>,
    /// The next due time; `None` if there is none any more.
    pub next: Option<DateTime<Utc>>,
}

impl Timing<'_> {
    /// When a due time's run begins: not after the next due time, or runs that wait for theirs would look like an outage.
    pub fn begins(&self, due: DateTime<Utc>) -> DateTime<Utc> {
        let jitter = jitter(self.name, due, self.jitter_s);
        if jitter == TimeDelta::zero() {
            return due;
        }
        due + self.expression.after(due).map_or(jitter, |next| jitter.min(next - due))
    }

    /// Says of all due times from `armed` (the first that nobody has looked at) to `now` how they are met.
    pub fn plan(&self, armed: DateTime<Utc>, now: DateTime<Utc>) -> Plan {
        let ripe = |due: &DateTime<Utc>| self.begins(*due) <= now;
        let (single, from) = self.rows_from(armed, now);
        let rows: Vec<DateTime<Utc>> = self.due_from(from).take_while(ripe).collect();
        let next = match rows.last() {
            Some(last) => self.expression.after(*last),
            None => Some(armed),
        };
        let Some(newest) = rows.last().copied() else { return Plan { dues: Vec::new(), next } };
        let lateness = now - self.begins(newest);
        let outage = rows.len() > 1 || single.is_some();
        let newest_met = match (self.missed, lateness) {
            (Missed::Skip, late) if late > MISSED_AFTER => Met::Missed,
            (Missed::Once, late) if outage || late > MISSED_AFTER => Met::CaughtUp,
            (Missed::Each, late) if late > MISSED_AFTER => Met::CaughtUp,
            (_, late) if late > LATE_AFTER => Met::Late,
            _ => Met::OnTime,
        };
        let made_up_from = rows.len().saturating_sub(self.catch_up_max.max(1));
        let met = |index: usize| match self.missed {
            _ if index + 1 == rows.len() => newest_met,
            Missed::Once => Met::Coalesced,
            Missed::Each if index >= made_up_from => Met::CaughtUp,
            Missed::Skip | Missed::Each => Met::Missed,
        };
        let shared = single.map(|through| Due {
            at: armed,
            met: if self.missed == Missed::Once { Met::Coalesced } else { Met::Missed },
            through: Some(through),
        });
        let own = rows.iter().enumerate().map(|(index, at)| Due { at: *at, met: met(index), through: None });
        Plan { dues: shared.into_iter().chain(own).collect(), next }
    }

    /// Due times from one that is due itself.
    fn due_from(&self, due: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> + '_ {
        std::iter::successors(Some(due), |due| self.expression.after(*due))
    }

    /// The first due time that gets a row of its own, and the last of those before it that share one.
    fn rows_from(&self, armed: DateTime<Utc>, now: DateTime<Utc>) -> (Option<DateTime<Utc>>, DateTime<Utc>) {
        let fits = |from: DateTime<Utc>| {
            self.due_from(from).take_while(|due| *due <= now).take(ROWS_MAX + 1).count() <= ROWS_MAX
        };
        if fits(armed) {
            return (None, armed);
        }
        // Halving the time rather than counting the due times: there may be millions.
        let (mut low, mut high) = (armed, now);
        while high - low > TimeDelta::seconds(1) {
            let middle = low + (high - low) / 2;
            match self.expression.after(middle) {
                Some(due) if due <= now && !fits(due) => low = middle,
                _ => high = middle,
            }
        }
        let Some(first) = self.expression.after(high).filter(|due| *due <= now) else { return (None, armed) };
        let before = self.expression.all_after(low).take_while(|due| *due < first).last();
        (Some(before.unwrap_or(armed)), first)
    }
}
