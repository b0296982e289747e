//! Receipts: how each command ended, and why.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::Fingerprint;
use crate::event::EventId;

/// How a command ended. Every accepted command ends in exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It took effect (which may be: nothing had to change).
    Applied,
    /// It broke a rule; the code says which.
    Rejected,
    /// Its `expirytime` passed first.
    Expired,
    /// It was cancelled while it waited.
    Cancelled,
    /// It could not be understood, or kept failing for a technical reason; it is in the dead letters.
    Dead,
}

impl Outcome {
    pub const ALL: [Self; 5] = [Self::Applied, Self::Rejected, Self::Expired, Self::Cancelled, Self::Dead];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::Dead => "dead",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == word)
    }
}

/// Which rule a rejected command broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    ValidationFailed,
    NotFound,
    AlreadyExists,
    EmailTaken,
    UnknownUser,
    Forbidden,
    VersionConflict,
    DueDateInPast,
}

impl Code {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ValidationFailed => "validation_failed",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::EmailTaken => "email_taken",
            Self::UnknownUser => "unknown_user",
            Self::Forbidden => "forbidden",
            Self::VersionConflict => "version_conflict",
            Self::DueDateInPast => "due_date_in_past",
        }
    }
}

/// Why a command was rejected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub code: Code,
    /// For a person: names the thing and what to do.
    pub detail: String,
}

impl Rejection {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// How one command ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    pub id: Uuid,
    /// The command's type; unknown for what could not be understood.
    pub kind: Option<&'static str>,
    pub subject: Option<Uuid>,
    pub actor: Option<Uuid>,
    /// The upstream system that sent the command.
    pub source: Option<String>,
    pub outcome: Outcome,
    /// The rejection's code, or a word that says why a command is dead.
    pub code: Option<&'static str>,
    pub detail: Option<String>,
    /// The entity's version after an applied command.
    pub version: Option<i32>,
    /// How many events it caused: their ids follow from the id and `accepted_at` ([`EventId::new`]).
    pub events: u16,
    /// How often it was tried, the last time included.
    pub attempts: u16,
    pub accepted_at: DateTime<Utc>,
    pub finished_at: DateTime<Utc>,
    pub fingerprint: Fingerprint,
}

impl Receipt {
    /// The ids of the events that the command caused.
    pub fn event_ids(&self) -> Vec<EventId> {
        (0..self.events).map(|ordinal| EventId::new(self.accepted_at, self.id, ordinal)).collect()
    }
}
