//! Commands that wait: for their time, for another command, or behind one of their subject that waits.
//!
//! While a command is parked, later commands of its subject line up behind it, so that a retry never changes the order.
//! A scheduled command holds nobody up: it joins its subject's commands when its time has come.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::digest;

/// What a command waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// Its `notbefore`.
    Scheduled,
    /// Something that may come soon: a user who is not there yet, a version that knows its type.
    Parked,
    /// An earlier command of its subject that waits.
    Behind,
}

impl Why {
    pub const ALL: [Self; 3] = [Self::Scheduled, Self::Parked, Self::Behind];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Parked => "parked",
            Self::Behind => "behind",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.as_str() == word)
    }

    /// Whether later commands of the subject wait too.
    pub fn blocks(self) -> bool {
        self != Self::Scheduled
    }
}

/// How a command has waited before it is tried (again).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waited {
    pub why: Why,
    /// How often it was tried.
    pub attempts: u16,
    /// When it was tried first; for one that was never tried, when it began to wait.
    pub since: DateTime<Utc>,
}

/// A command that waits on, or begins to.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Its index among the batch's items.
    pub item: usize,
    pub why: Why,
    pub code: Option<&'static str>,
    pub detail: Option<String>,
    /// When it is to be tried; who waits behind another has no time of its own.
    pub due_at: Option<DateTime<Utc>>,
    pub attempts: u16,
    pub since: DateTime<Utc>,
}

/// How long is waited for what may come, and how often it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Patience {
    /// For a user whom a command names and who is not there, in milliseconds; 0 rejects at once.
    pub unknown_user_ms: u32,
    /// For a worker that knows a command's type (a deployment in progress), in milliseconds; 0 gives up at once.
    pub unknown_type_ms: u32,
    /// The first pause between two tries, in milliseconds; each is twice the one before …
    pub first_ms: u32,
    /// … up to this.
    pub longest_ms: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { unknown_user_ms: 30_000, unknown_type_ms: 600_000, first_ms: 200, longest_ms: 5_000 }
    }
}

impl Patience {
    /// None at all.
    pub const NONE: Self = Self { unknown_user_ms: 0, unknown_type_ms: 0, first_ms: 1, longest_ms: 1 };

    /// When a command is tried next, after `attempts` tries, the first of them at `since`; `None` if it was waited for
    /// `limit_ms`. The last try is at the end of that time.
    ///
    /// The pauses differ from command to command, so that those parked together are not tried together for ever; what
    /// they differ by follows from the command, so that a decision depends on nothing outside its arguments.
    pub fn next_try(
        &self,
        limit_ms: u32,
        id: Uuid,
        attempts: u16,
        since: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<DateTime<Utc>> {
        let end = since + TimeDelta::milliseconds(i64::from(limit_ms));
        if now >= end {
            return None;
        }
        let doublings = u32::from(attempts.saturating_sub(1)).min(20);
        let pause = u64::from(self.first_ms.max(1)) << doublings;
        let pause = pause.min(u64::from(self.longest_ms.max(1)));
        let draw = u64::from(digest(&[id.as_bytes(), attempts.to_be_bytes().as_slice()].concat())[0]);
        // Between half of it and all.
        let pause = pause / 2 + pause * draw / 512;
        Some((now + TimeDelta::milliseconds(pause.max(1) as i64)).min(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tries_grow_rarer_and_end_with_the_patience() {
        let patience = Patience::default();
        let since = DateTime::from_timestamp(1_900_000_000, 0).unwrap();
        for number in 0..50 {
            let id = Uuid::from_u128(number);
            let (mut now, mut attempts) = (since, 1);
            while let Some(next) = patience.next_try(patience.unknown_user_ms, id, attempts, since, now) {
                let pause = (next - now).num_milliseconds();
                assert!((1..=5_000).contains(&pause), "{pause}");
                (now, attempts) = (next, attempts + 1);
            }
            assert_eq!(now - since, TimeDelta::seconds(30), "the last try is at the end");
            assert!((8..20).contains(&attempts), "{attempts} tries");
        }
    }
}
