//! One message of a batch, read.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::command::{Command, Fingerprint};
use crate::wait::{Patience, Waited, Why};

/// Why a command of a type that nobody has come to know is dead.
pub const UNKNOWN_TYPE: &str = "unknown_type";

/// One message of a batch, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub id: Uuid,
    pub fingerprint: Fingerprint,
    /// When an intake took it.
    pub accepted_at: DateTime<Utc>,
    pub content: Content,
    /// How it has waited, if it comes from the waiting room and not from the broker.
    pub waited: Option<Waited>,
}

/// What there is to do about a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Command(Box<Command>),
    /// It can't be applied for a technical reason: it gets its receipt and goes to the dead letters.
    Dead(Dead),
    /// A command of a type that this version does not know: a newer one may.
    Unknown(Unknown),
}

/// What can be read of a command of an unknown type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    pub kind: String,
    pub subject: Uuid,
    pub actor: Option<Uuid>,
}

/// Why a message is dead.
#[derive(Debug, Clone, PartialEq)]
pub struct Dead {
    /// One word: `malformed`, `wrong_slot`, `failing`, `unknown_type`, `poison`.
    pub reason: &'static str,
    pub detail: String,
    pub kind: Option<&'static str>,
    pub subject: Option<Uuid>,
    pub actor: Option<Uuid>,
    pub source: Option<String>,
}

impl Dead {
    /// What can't be read: nothing is known but why.
    pub fn unread(reason: &'static str, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), kind: None, subject: None, actor: None, source: None }
    }
}

impl Item {
    pub fn command(command: Command, accepted_at: DateTime<Utc>) -> Self {
        Self {
            id: command.id,
            fingerprint: command.fingerprint(),
            accepted_at,
            content: Content::Command(Box::new(command)),
            waited: None,
        }
    }

    /// The ordering key, where it could be read.
    pub fn subject(&self) -> Option<Uuid> {
        match &self.content {
            Content::Command(command) => Some(command.subject),
            Content::Unknown(unknown) => Some(unknown.subject),
            Content::Dead(dead) => dead.subject,
        }
    }

    /// The same item, which its `expirytime` does not end: it was applied in time once, and that is undone.
    #[must_use]
    pub fn applied_in_time(mut self) -> Self {
        if let Content::Command(command) = &mut self.content {
            command.expires_at = None;
        }
        self
    }

    /// Whether its `expirytime` was taken away. What it asks for is as it came, so its fingerprint tells.
    pub fn was_applied_in_time(&self) -> bool {
        let Content::Command(command) = &self.content else { return false };
        command.expires_at.is_none() && command.fingerprint() != self.fingerprint
    }

    /// The same item, given up for a technical reason.
    #[must_use]
    pub fn into_dead(self, reason: &'static str, detail: String) -> Self {
        let dead = match self.content {
            Content::Command(command) => Dead {
                reason,
                detail,
                kind: Some(command.kind()),
                subject: Some(command.subject),
                actor: Some(command.actor),
                source: Some(command.source),
            },
            Content::Unknown(Unknown { subject, actor, .. }) => {
                Dead { subject: Some(subject), actor, ..Dead::unread(reason, detail) }
            }
            Content::Dead(dead) => dead,
        };
        Self { content: Content::Dead(dead), ..self }
    }

    /// Whether it waited in vain for a version that knows its type.
    pub fn is_given_up(&self, patience: &Patience, now: DateTime<Utc>) -> bool {
        let Content::Unknown(_) = self.content else { return false };
        // One that waited for its time was known to whoever let it wait, and begins to be unknown now.
        let waited = self.waited.filter(|waited| waited.why != Why::Scheduled);
        let (attempts, since) = waited.map_or((1, now), |waited| (waited.attempts, waited.since));
        patience.next_try(patience.unknown_type_ms, self.id, attempts, since, now).is_none()
    }
}
