//! Scheduled jobs: when they are due, what becomes of a due time, what happens when two runs would overlap.
//!
//! All of it follows from its arguments, so that every scheduler process decides alike, and a leader that takes over
//! decides as the one before would have.

pub mod expression;
pub mod outage;
pub mod window;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::command::digest;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.as_str() == word)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// What happens when a run is due while an earlier one of its schedule is not over.
    Overlap {
        /// The due time is written down as skipped.
        Skip = "skip",
        /// It waits for the earlier one.
        Queue = "queue",
        /// The earlier one is cancelled.
        CancelPrevious = "cancel_previous",
    }
}

words! {
    /// What becomes of due times at which no scheduler was there.
    Missed {
        /// They are written down as missed.
        Skip = "skip",
        /// One run for all of them.
        Once = "once",
        /// A run for each, in order; only so many of the newest.
        Each = "each",
    }
}

words! {
    /// How a due time was met.
    Met {
        OnTime = "on_time",
        /// Some seconds late: the leader changed, or Postgres was away for a moment.
        Late = "late",
        /// Nobody was there, and the run is made up for.
        CaughtUp = "caught_up",
        /// Nobody was there, and it stays so.
        Missed = "missed",
        /// Nobody was there; one later run stands for it too.
        Coalesced = "coalesced",
        /// An earlier run was not over.
        Overlapped = "overlapped",
        /// It was due outside the maintenance window.
        OutsideWindow = "outside_window",
        /// A person asked for it.
        ByHand = "by_hand",
    }
}

impl Met {
    /// Whether the due time gets a run.
    pub fn runs(self) -> bool {
        matches!(self, Self::OnTime | Self::Late | Self::CaughtUp | Self::ByHand)
    }
}

words! {
    /// Where a run stands.
    State {
        /// It is to be run: at once, when an earlier one is over, or after a pause (a retry).
        Waiting = "waiting",
        Running = "running",
        Completed = "completed",
        Failed = "failed",
        TimedOut = "timed_out",
        Cancelled = "cancelled",
        /// Its due time got no run; how it was met says why.
        NotRun = "not_run",
    }
}

impl State {
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// Runs of one schedule that may wait behind each other.
pub const QUEUE_MAX: usize = 100;

/// What is done about a due time while earlier runs of its schedule are not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlapping {
    /// It gets its run, behind those that wait.
    Run,
    Skip,
    CancelPrevious,
}

impl Overlap {
    /// Decides about one due time; `unfinished` counts the runs of its schedule that wait or run. What is made up for
    /// always lines up: it was due one after the other.
    pub fn decide(self, met: Met, unfinished: usize) -> Overlapping {
        if unfinished == 0 {
            return Overlapping::Run;
        }
        if unfinished >= QUEUE_MAX {
            return if self == Self::CancelPrevious {
                Overlapping::CancelPrevious
            } else {
                Overlapping::Skip
            };
        }
        match self {
            _ if met == Met::CaughtUp => Overlapping::Run,
            Self::Skip => Overlapping::Skip,
            Self::Queue => Overlapping::Run,
            Self::CancelPrevious => Overlapping::CancelPrevious,
        }
    }
}

/// How often a failed run is tried again, and after what pauses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// Tries after the first.
    pub most: u16,
    /// The first pause, in seconds; each is twice the one before …
    pub first_s: u32,
    /// … up to this.
    pub longest_s: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self { most: 0, first_s: 30, longest_s: 1_800 }
    }
}

impl Retries {
    /// The pause after the try with this number (1 is the first); `None` if it was the last. Pauses differ from run to
    /// run, between half and all of their length.
    pub fn pause(&self, run: i64, attempt: u16) -> Option<TimeDelta> {
        if attempt > self.most {
            return None;
        }
        let doublings = u32::from(attempt.saturating_sub(1)).min(20);
        let whole =
            (u64::from(self.first_s.max(1)) << doublings).min(u64::from(self.longest_s.max(1))) * 1_000;
        let draw = draw(&[run.to_be_bytes().as_slice(), &attempt.to_be_bytes()].concat());
        Some(TimeDelta::milliseconds((whole / 2 + whole / 2 * u64::from(draw) / u64::from(u32::MAX)) as i64))
    }
}

/// How much later than its due time a run begins, so that many schedules with the same time do not begin together: the
/// same in every process, another one for each due time.
pub fn jitter(schedule: &str, due: DateTime<Utc>, most_s: u32) -> TimeDelta {
    let most = u64::from(most_s) * 1_000;
    let draw = draw(&[schedule.as_bytes(), &due.timestamp().to_be_bytes()].concat());
    TimeDelta::milliseconds((most * u64::from(draw) / (u64::from(u32::MAX) + 1)) as i64)
}

fn draw(of: &[u8]) -> u32 {
    let digest = digest(of);
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}
