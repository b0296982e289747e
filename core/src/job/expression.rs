//! A cron expression with seconds, read in a time zone.
//!
//! The expression names times on a clock on the wall. Twice a year many walls skip an hour or live through one twice:
//!
//! - An expression that names hours (`0 30 2 * * *`) means one run a day: a time that is skipped is due when the clocks
//!   have jumped, a time that comes twice is due the first time.
//! - One that holds in every hour (`0 */10 * * * *`) means a distance: it is due whenever the wall shows such a time,
//!   so nothing is due in what is skipped, and an hour that comes twice has its runs twice.

use std::fmt;

use chrono::{DateTime, LocalResult, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use cron::TimeUnitSpec;

/// The longest that a wall's clock was ever set forward or back: a whole day (Samoa, 2011).
const JUMP_MAX: TimeDelta = TimeDelta::hours(25);
/// Jumps of the wall's clock that are looked across before it is said that nothing is due any more.
const SEGMENTS_MAX: usize = 1_000;

/// When something is due.
#[derive(Clone, PartialEq, Eq)]
pub struct Expression {
    cron: cron::Schedule,
    zone: Tz,
    every_hour: bool,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.cron.source(), self.zone)
    }
}

impl Expression {
    /// Reads an expression: second, minute, hour, day of the month, month, day of the week, and a year if wanted.
    ///
    /// # Errors
    /// What is wrong and what was expected.
    pub fn new(cron: &str, zone: &str) -> Result<Self, String> {
        let fields = cron.split_whitespace().count();
        if !cron.starts_with('@') && !(6..=7).contains(&fields) {
            return Err(format!(
                "{cron:?} has {fields} fields; a cron expression has six (second, minute, hour, day of month, month, \
                 day of week), such as \"0 30 2 * * *\" for half past two each day, and a seventh for years if wanted"
            ));
        }
        let parsed: cron::Schedule = cron.parse().map_err(|error: cron::error::Error| {
            format!("{cron:?} is no cron expression: {error}; an example is \"0 30 2 * * Mon-Fri\"")
        })?;
        let zone: Tz = zone.parse().map_err(|_| {
            format!("{zone:?} is no time zone; an example is \"Europe/Berlin\", and \"UTC\" is always right")
        })?;
        let every_hour = parsed.hours().is_all();
        Ok(Self { cron: parsed, zone, every_hour })
    }

    pub fn zone(&self) -> Tz {
        self.zone
    }

    /// The first due time after a moment; `None` if there is none any more.
    pub fn after(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if self.every_hour { self.after_by_distance(moment) } else { self.after_by_wall(moment) }
    }

    /// All due times after a moment, in order.
    pub fn all_after(&self, moment: DateTime<Utc>) -> impl Iterator<Item = DateTime<Utc>> + '_ {
        std::iter::successors(self.after(moment), |due| self.after(*due))
    }

    fn wall(&self, moment: DateTime<Utc>) -> NaiveDateTime {
        moment.with_timezone(&self.zone).naive_local()
    }

    fn offset(&self, moment: DateTime<Utc>) -> TimeDelta {
        let offset = self.zone.offset_from_utc_datetime(&moment.naive_utc()).fix();
        TimeDelta::seconds(i64::from(offset.local_minus_utc()))
    }

    /// The times that the expression names after a time on the wall.
    fn named_after(&self, wall: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> + '_ {
        self.cron.after(&wall.and_utc()).map(|named| named.naive_utc())
    }

    fn after_by_wall(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut due =
            self.named_after(self.wall(moment)).map(|named| match self.zone.from_local_datetime(&named) {
                LocalResult::Single(due) | LocalResult::Ambiguous(due, _) => due.with_timezone(&Utc),
                LocalResult::None => self.jumped(named),
            });
        // What comes twice was due the first time, what was skipped when the clocks had jumped: both may be past.
        due.find(|due| *due > moment)
    }

    /// The moment at which the clocks jumped over a time on the wall.
    fn jumped(&self, skipped: NaiveDateTime) -> DateTime<Utc> {
        // Each end of this stretch shows a time on its own side of what was skipped.
        let (low, high) = (skipped.and_utc() - JUMP_MAX, skipped.and_utc() + JUMP_MAX);
        first_second(low, high, |moment| self.wall(moment) > skipped)
    }

    fn after_by_distance(&self, moment: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Between two jumps the wall and the world go alike.
        let mut offset = self.offset(moment);
        let mut from = moment;
        for _ in 0..SEGMENTS_MAX {
            let named = self.named_after(from.naive_utc() + offset).next()?;
            let due = (named - offset).and_utc();
            if self.offset(due) == offset {
                return Some(due);
            }
            let jump = first_second(from, due, |moment| self.offset(moment) != offset);
            offset = self.offset(jump);
            // The second of the jump itself counts.
            from = jump - TimeDelta::seconds(1);
        }
        None
    }
}

/// The first whole second after `low`, up to `high`, from which on something holds; it does at `high`.
fn first_second(
    low: DateTime<Utc>,
    high: DateTime<Utc>,
    holds: impl Fn(DateTime<Utc>) -> bool,
) -> DateTime<Utc> {
    let (mut low, mut high) = (low.timestamp(), high.timestamp());
    let at = |second| DateTime::from_timestamp(second, 0).unwrap_or_default();
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if holds(at(middle)) { high = middle } else { low = middle }
    }
    at(high)
}
