//! How long events are kept, and which of them may go.
//!
//! An event bears the time until which it is kept (`expiresAt`), stamped when it is made. The stamp is what MongoDB's own
//! reaper goes by; whoever removes events for us asks [`verdict`], which believes nobody's stamp: not that of an older
//! policy, not that of an event that came while its entity was held.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::event::TYPES;
use crate::system_event::{ABOUT_ACCESS, SENSITIVE};

/// Event types that no command causes.
pub const SYSTEM_TYPES: [&str; 27] = [
    "system.dead_letter_replayed",
    "system.dead_letter_edited",
    "system.dead_letter_discarded",
    "system.role_changed",
    "system.password_changed",
    "system.api_key_created",
    "system.api_key_revoked",
    "system.logins_failed",
    "system.restored",
    "system.data_erased",
    "system.audit_findings",
    "system.audit_restored",
    "system.maintenance.started",
    "system.maintenance.completed",
    "system.maintenance.failed",
    "system.retention.started",
    "system.retention.completed",
    "system.retention.failed",
    "system.audit.started",
    "system.audit.completed",
    "system.audit.failed",
    "system.backup.started",
    "system.backup.completed",
    "system.backup.failed",
    "system.recovery_drill.started",
    "system.recovery_drill.completed",
    "system.recovery_drill.failed",
];

/// How long events are kept. Each event type is in one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    UserActivity,
    TaskEvents,
    SystemEvents,
    AuditLogs,
}

impl Class {
    pub const ALL: [Self; 4] = [Self::UserActivity, Self::TaskEvents, Self::SystemEvents, Self::AuditLogs];

    /// The class of an event type, unless the settings say otherwise.
    pub fn of(kind: &str) -> Self {
        match kind {
            "user.login" | "user.logout" => Self::UserActivity,
            kind if kind.starts_with("task.") => Self::TaskEvents,
            // What the trail tells of itself.
            "system.audit_findings" | "system.data_erased" | "system.audit_restored" => Self::AuditLogs,
            // Who may do what, and who tried: kept as long as the law asks.
            kind if SENSITIVE[..ABOUT_ACCESS].iter().any(|(about, _)| *about == kind) => Self::AuditLogs,
            kind if kind.starts_with("system.") => Self::SystemEvents,
            // Who exists and what is known of them: kept as long as the law asks.
            _ => Self::AuditLogs,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::UserActivity => "user_activity",
            Self::TaskEvents => "task_events",
            Self::SystemEvents => "system_events",
            Self::AuditLogs => "audit_logs",
        }
    }
}

/// Days by law, below which no setting goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LegalMinimum {
    pub user_activity_days: u16,
    pub task_events_days: u16,
    pub system_events_days: u16,
    pub audit_logs_days: u16,
}

impl Default for LegalMinimum {
    /// The specification calls the audit log's seven years a legal requirement.
    fn default() -> Self {
        Self { user_activity_days: 0, task_events_days: 0, system_events_days: 0, audit_logs_days: 2555 }
    }
}

/// Event types that the settings put into another class, in the order of [`TYPES`] and [`SYSTEM_TYPES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classes([Option<Class>; TYPES.len() + SYSTEM_TYPES.len()]);

impl Default for Classes {
    fn default() -> Self {
        Self([None; TYPES.len() + SYSTEM_TYPES.len()])
    }
}

fn known_types() -> impl Iterator<Item = &'static str> {
    TYPES.into_iter().chain(SYSTEM_TYPES)
}

impl Classes {
    /// Puts an event type into a class.
    ///
    /// # Errors
    /// There is no such type; the text names those there are.
    pub fn set(&mut self, kind: &str, class: Class) -> Result<(), String> {
        let Some(place) = known_types().position(|known| known == kind) else {
            let known = known_types().collect::<Vec<_>>().join(", ");
            return Err(format!("{kind:?} is no type of event; there are {known}"));
        };
        self.0[place] = Some(class);
        Ok(())
    }

    fn get(&self, kind: &str) -> Option<Class> {
        known_types().position(|known| known == kind).and_then(|place| self.0[place])
    }
}

impl Serialize for Classes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(known_types().zip(self.0).filter_map(|(kind, class)| Some((kind, class?))))
    }
}

impl<'de> Deserialize<'de> for Classes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut classes = Self::default();
        for (kind, class) in BTreeMap::<String, Class>::deserialize(deserializer)? {
            classes.set(&kind, class).map_err(serde::de::Error::custom)?;
        }
        Ok(classes)
    }
}

/// How long each class is kept, in days, and other things that are not kept for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    pub user_activity_days: u16,
    pub task_events_days: u16,
    pub system_events_days: u16,
    pub audit_logs_days: u16,
    /// Dead letters, counted from their last death or what was decided about them.
    pub dead_letters_days: u16,
    /// Receipts: for so long a command's id takes effect at most once.
    pub receipts_days: u16,
    /// Tasks, counted from their deletion.
    pub deleted_tasks_days: u16,
    /// The scheduler's ledger.
    pub job_runs_days: u16,
    pub legal_minimum: LegalMinimum,
    /// Event types that are in another class than by themselves.
    pub classes: Classes,
}

impl Default for Retention {
    /// The specification's times; seven years count their leap days.
    fn default() -> Self {
        Self {
            user_activity_days: 365,
            task_events_days: 180,
            system_events_days: 90,
            audit_logs_days: 2557,
            dead_letters_days: 90,
            receipts_days: 30,
            deleted_tasks_days: 30,
            job_runs_days: 90,
            legal_minimum: LegalMinimum::default(),
            classes: Classes::default(),
        }
    }
}

impl Retention {
    /// The class of an event type.
    pub fn class_of(&self, kind: &str) -> Class {
        self.classes.get(kind).unwrap_or_else(|| Class::of(kind))
    }

    fn set_days(&self, class: Class) -> u16 {
        match class {
            Class::UserActivity => self.user_activity_days,
            Class::TaskEvents => self.task_events_days,
            Class::SystemEvents => self.system_events_days,
            Class::AuditLogs => self.audit_logs_days,
        }
    }

    fn legal_days(&self, class: Class) -> u16 {
        match class {
            Class::UserActivity => self.legal_minimum.user_activity_days,
            Class::TaskEvents => self.legal_minimum.task_events_days,
            Class::SystemEvents => self.legal_minimum.system_events_days,
            Class::AuditLogs => self.legal_minimum.audit_logs_days,
        }
    }

    /// For how many days a class is kept: never fewer than the law asks.
    pub fn days(&self, class: Class) -> u16 {
        self.set_days(class).max(self.legal_days(class))
    }

    /// For how many days an event of a type is kept: never fewer than the law asks of the class that it is of by itself,
    /// into whichever class the settings put it.
    pub fn days_of(&self, kind: &str) -> u16 {
        self.days(self.class_of(kind)).max(self.legal_days(Class::of(kind)))
    }

    /// The fewest days for which an event that is of this class by itself is kept: the settings may have put its type
    /// into another one.
    pub fn least_days(&self, class: Class) -> u16 {
        let moved = known_types().filter(|kind| Class::of(kind) == class).map(|kind| self.days_of(kind));
        moved.chain([self.days(class)]).min().unwrap_or(0)
    }

    /// When an event of a type may be removed.
    pub fn expires_at(&self, kind: &str, created_at: DateTime<Utc>) -> DateTime<Utc> {
        created_at + TimeDelta::days(i64::from(self.days_of(kind)))
    }

    /// Looks for settings that can't be meant.
    ///
    /// # Errors
    /// Each that is wrong, a line each.
    pub fn check(&self) -> Result<(), String> {
        let mut faults = Vec::new();
        for class in Class::ALL {
            let (days, least) = (self.set_days(class), self.legal_days(class));
            let name = class.as_str();
            if days < least {
                faults.push(format!(
                    "retention.{name}_days: {days} is below the legal minimum of {least} days \
                     (retention.legal_minimum.{name}_days)"
                ));
            }
            if days == 0 {
                faults.push(format!("retention.{name}_days: 0 would remove events as soon as they are made"));
            }
        }
        for kind in known_types() {
            let (own, class) = (Class::of(kind), self.class_of(kind));
            let (days, least) = (self.set_days(class), self.legal_days(own));
            if own != class && days < least {
                faults.push(format!(
                    "retention.classes.\"{kind}\": {} is kept for {days} days, and the legal minimum of {}, which this \
                     type is of by itself, is {least} days (retention.legal_minimum.{}_days)",
                    class.as_str(),
                    own.as_str(),
                    own.as_str()
                ));
            }
        }
        let others = [
            ("dead_letters_days", self.dead_letters_days),
            ("receipts_days", self.receipts_days),
            ("job_runs_days", self.job_runs_days),
        ];
        for (name, _) in others.into_iter().filter(|(_, days)| *days == 0) {
            faults.push(format!("retention.{name}: 0 would keep nothing"));
        }
        if faults.is_empty() { Ok(()) } else { Err(faults.join("\n")) }
    }

    /// What stamps follow from, as a text: another text means that events are stamped again.
    pub fn policy(&self) -> String {
        let days = Class::ALL.map(|class| format!("{} {}", class.as_str(), self.days(class)));
        let moved = known_types().filter(|kind| self.class_of(kind) != Class::of(kind)).map(|kind| {
            let (class, days) = (self.class_of(kind), self.days_of(kind));
            let longer = if days > self.days(class) { format!(" for {days} days") } else { String::new() };
            format!("{kind} is {}{longer}", class.as_str())
        });
        days.into_iter().chain(moved).collect::<Vec<_>>().join(", ")
    }
}

/// The least stamp of what is held: far beyond any policy.
pub fn held_until() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(9999, 1, 1, 0, 0, 0).single().unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// The mark that a hold puts on its events. A newer hold's is a later one, so that it changes also what an older hold has
/// marked: whoever still wants to lift the older one's mark, and knows nothing of the newer one, finds another.
pub fn mark(since: DateTime<Utc>) -> DateTime<Utc> {
    // A tenth of a second is a millisecond of the year 9999, which so has room for a hundred years.
    let tenths = (since - Utc.timestamp_nanos(0)).num_milliseconds() / 100;
    held_until() + TimeDelta::milliseconds((tenths - MARKS_BEGIN).clamp(0, MARKS_MAX))
}

/// Tenths of seconds from 1970 to November 2023, before the first hold, and those that the year 9999 has room for.
const MARKS_BEGIN: i64 = 17_000_000_000;
const MARKS_MAX: i64 = 31_000_000_000;

/// What must not be removed while a matter lasts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Everything about these.
    pub entities: HashSet<Uuid>,
    /// Everything that these did.
    pub actors: HashSet<Uuid>,
}

impl Holds {
    pub fn holds(&self, event: &Kept<'_>) -> bool {
        self.entities.contains(&event.entity) || self.actors.contains(&event.actor)
    }
}

/// An event, as far as its removal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept<'e> {
    pub kind: &'e str,
    pub entity: Uuid,
    pub actor: Uuid,
    pub created_at: DateTime<Utc>,
    /// Its stamp, whoever set it.
    pub expires_at: DateTime<Utc>,
}

/// What is done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// It stays, with another stamp.
    Stamp(DateTime<Utc>),
    Remove,
}

/// The stamp that an event should bear. What is held keeps the mark that a hold has put on it.
pub fn stamp(retention: &Retention, holds: &Holds, event: &Kept<'_>) -> DateTime<Utc> {
    if holds.holds(event) {
        event.expires_at.max(held_until())
    } else {
        retention.expires_at(event.kind, event.created_at)
    }
}

/// Decides about an event: it goes when its stamp, today's policy and the law all say so, and nobody holds it.
pub fn verdict(retention: &Retention, holds: &Holds, event: &Kept<'_>, now: DateTime<Utc>) -> Verdict {
    let right = stamp(retention, holds, event);
    if right <= now && event.expires_at <= now {
        return Verdict::Remove;
    }
    // MongoDB keeps milliseconds.
    let differs = right.timestamp_millis() != event.expires_at.timestamp_millis();
    if differs { Verdict::Stamp(right) } else { Verdict::Keep }
}
