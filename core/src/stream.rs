//! The live stream: where an event stands, what a reader has had, whose an event is, and which ones a reader wants.
//!
//! Every event of a command stands in one partition, in one of its batches, at one place of it. Batches of a partition
//! are numbered without gaps and told in that order, so "all up to here", a place for each partition, says exactly what a
//! reader has had: [`Cursor`]. Events that no command causes have no such order; they carry no place.

pub mod order;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use uuid::Uuid;

/// Bytes of a cursor's text: enough for a thousand partitions.
pub const CURSOR_MAX: usize = 32 * 1024;
/// Types that one filter may name.
pub const TYPES_MAX: usize = 20;
/// Every place of a batch.
const WHOLE: u32 = u32::MAX;

/// Where an event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub partition: String,
    /// The batch's number.
    pub number: i64,
    /// The event's place among those of its batch, from 0.
    pub index: u32,
    /// How many events the batch has.
    pub count: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { partition, number, index, count } = self;
        write!(f, "{partition} {number} {index} {count}")
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        let partition = next()?.to_owned();
        let number = next()?.parse().map_err(drop)?;
        let index = next()?.parse().map_err(drop)?;
        let count = next()?.parse().map_err(drop)?;
        if partition.is_empty() || index >= count {
            Err(())
        } else {
            Ok(Self { partition, number, index, count })
        }
    }
}

/// How far a reader has come in each partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions(BTreeMap<String, (i64, u32)>);

impl Positions {
    /// Everything up to these batches.
    pub fn of_batches(newest: impl IntoIterator<Item = (String, i64)>) -> Self {
        Self(newest.into_iter().map(|(partition, number)| (partition, (number, WHOLE))).collect())
    }

    /// Whether an event is among what was had.
    pub fn has(&self, partition: &str, number: i64, index: u32) -> bool {
        self.0.get(partition).is_some_and(|had| (number, index) <= *had)
    }

    /// Goes on to an event; never back.
    pub fn advance(&mut self, partition: &str, number: i64, index: u32) {
        match self.0.get_mut(partition) {
            Some(had) => *had = (*had).max((number, index)),
            None => drop(self.0.insert(partition.to_owned(), (number, index))),
        }
    }

    /// Goes on to the end of a batch.
    pub fn advance_past(&mut self, partition: &str, number: i64) {
        self.advance(partition, number, WHOLE);
    }

    /// Goes on to wherever the other is further.
    pub fn merge(&mut self, other: &Self) {
        for (partition, (number, index)) in &other.0 {
            self.advance(partition, *number, *index);
        }
    }

    /// Whether this has everything that the other has.
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(partition, (number, index))| self.has(partition, *number, *index))
    }

    /// The partitions in which `newest` has something that this has not: each with the last batch that this has whole,
    /// and the last one there is.
    pub fn behind<'n>(&self, newest: &'n Self) -> Vec<(&'n str, i64, i64)> {
        let gap = |(partition, (last, _)): (&'n String, &(i64, u32))| {
            let (number, index) = self.0.get(partition).copied().unwrap_or((0, WHOLE));
            let whole = if index == WHOLE { number } else { number - 1 };
            (whole < *last).then_some((partition.as_str(), whole, *last))
        };
        newest.0.iter().filter_map(gap).collect()
    }
}

/// What a reader has had: it begins there again when it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    pub positions: Positions,
    /// When it was given: what has no place in a partition is looked for from a little before.
    pub at: DateTime<Utc>,
}

/// As text that a URL carries as it is.
impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "1~{}", self.at.timestamp_millis())?;
        for (partition, (number, index)) in &self.positions.0 {
            write!(f, "~{partition}-{number}")?;
            if *index != WHOLE {
                write!(f, "-{index}")?;
            }
        }
        f.write_char('~')
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "is no cursor of this stream: give back the newest `cursor` as it came";
        if text.len() > CURSOR_MAX {
            return Err(WRONG);
        }
        // The end is marked: a part of a cursor would say that less was had.
        let mut parts = text.strip_suffix('~').ok_or(WRONG)?.split('~');
        if parts.next() != Some("1") {
            return Err(WRONG);
        }
        let at =
            parts.next().and_then(|at| DateTime::from_timestamp_millis(at.parse().ok()?)).ok_or(WRONG)?;
        let mut positions = Positions::default();
        for part in parts {
            let mut words = part.split('-');
            let (partition, number) = (words.next().unwrap_or_default(), words.next());
            let number: i64 = number.and_then(|number| number.parse().ok()).ok_or(WRONG)?;
            let index = match words.next() {
                None => WHOLE,
                Some(index) => index.parse().map_err(|_| WRONG)?,
            };
            if partition.is_empty() || number < 0 || words.next().is_some() {
                return Err(WRONG);
            }
            positions.advance(partition, number, index);
        }
        Ok(Self { positions, at })
    }
}

/// What an event tells of itself, as far as it matters to whom it goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct About {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "subject")]
    pub entity: Uuid,
    #[serde(rename = "actorid")]
    pub actor: Uuid,
    pub time: DateTime<Utc>,
    #[serde(default)]
    data: AboutData,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct AboutData {
    #[serde(default, rename = "assigneeId")]
    assignee: Option<Uuid>,
    #[serde(default)]
    previous: AboutPrevious,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct AboutPrevious {
    #[serde(default, rename = "assigneeId")]
    assignee: Option<Uuid>,
}

impl About {
    /// Reads a CloudEvent.
    pub fn read(cloud_event: &[u8]) -> Option<Self> {
        serde_json::from_slice(cloud_event).ok()
    }

    /// The users whose event it is: who acted, who was changed, whom a task was given to or taken from. Who has created a
    /// task is the actor of its creation; other events of it do not tell.
    pub fn owners(&self) -> Vec<Uuid> {
        let mut owners = vec![self.actor, self.entity];
        owners.extend(self.data.assignee);
        owners.extend(self.data.previous.assignee);
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}

/// Which events a reader wants, of those that it may have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Types, such as `task.created` or `task.*`; none for all.
    pub types: Vec<String>,
    pub entity: Option<Uuid>,
    pub actor: Option<Uuid>,
}

impl Filter {
    pub fn takes(&self, about: &About) -> bool {
        let is_type = |wanted: &String| match wanted.strip_suffix('*') {
            Some(beginning) => about.kind.starts_with(beginning),
            None => about.kind == *wanted,
        };
        (self.types.is_empty() || self.types.iter().any(is_type))
            && self.entity.is_none_or(|entity| entity == about.entity)
            && self.actor.is_none_or(|actor| actor == about.actor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at() -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_900_000_000_123).unwrap()
    }

    #[test]
    fn a_part_of_a_cursor_is_none() {
        let mut positions = Positions::of_batches([("00".to_owned(), 12), ("low.01".to_owned(), 0)]);
        positions.advance("01", 7, 3);
        let text = Cursor { positions, at: at() }.to_string();
        assert_eq!(text, "1~1900000000123~00-12~01-7-3~low.01-0~");
        for end in 0..text.len() {
            let part = &text[..end];
            // Where a part ends as a whole one does, it says less: that is told twice, never left out.
            if let Ok(cursor) = part.parse::<Cursor>() {
                assert!(text.parse::<Cursor>().unwrap().positions.covers(&cursor.positions));
            }
        }
        for wrong in ["", "~", "1~", "2~1~", "1~x~", "1~1~00~", "1~1~00-x~", "1~1~00-1-2-3~", "1~1~-1~"] {
            assert!(wrong.parse::<Cursor>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn owners_are_who_acted_who_was_changed_and_assignees() {
        let id = |n: u128| Uuid::from_u128(n);
        let event = json!({
            "specversion": "1.0", "type": "task.assigned", "subject": id(1), "actorid": id(2), "time": at(),
            "data": { "assigneeId": id(3), "previous": { "assigneeId": id(4) } },
        });
        let about = About::read(event.to_string().as_bytes()).unwrap();
        assert_eq!(about.owners(), [1, 2, 3, 4].map(id));
        let filter = |types: &[&str], entity| Filter {
            types: types.iter().map(|kind| (*kind).to_owned()).collect(),
            entity,
            actor: None,
        };
        assert!(filter(&["user.*", "task.*"], None).takes(&about));
        assert!(filter(&["task.assigned"], Some(id(1))).takes(&about));
        assert!(!filter(&["task.assign"], None).takes(&about));
        assert!(!filter(&[], Some(id(2))).takes(&about));
    }
}
