//! A maintenance window: the hours of a day in which heavy upkeep may be done.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveTime, Utc};
use chrono_tz::Tz;

/// From one time of the day to another, perhaps over midnight. The whole day where both are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from: NaiveTime,
    to: NaiveTime,
}

impl Window {
    pub fn contains(&self, moment: DateTime<Utc>, zone: Tz) -> bool {
        let time = moment.with_timezone(&zone).time();
        match self.from.cmp(&self.to) {
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Less => self.from <= time && time < self.to,
            std::cmp::Ordering::Greater => self.from <= time || time < self.to,
        }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = |part: &str| NaiveTime::parse_from_str(part.trim(), "%H:%M").ok();
        let window =
            text.split_once('-').and_then(|(from, to)| Some(Self { from: read(from)?, to: read(to)? }));
        window.ok_or_else(|| format!("{text:?} is no time of the day; an example is \"01:00-05:00\""))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.from.format("%H:%M"), self.to.format("%H:%M"))
    }
}
