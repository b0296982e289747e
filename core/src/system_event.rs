//! Events that no command causes: what people and the system itself do to TaskFlow. They go into the same audit trail,
//! with the entity type `system`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api_key::ApiKey;
use crate::command::{Metadata, digest};
use crate::dead_letter::shown::audited;
use crate::event::{Data, Event, EventId, Retention};
use crate::state::Role;

/// Who acts where no user does: the nil UUID, which is nobody's id.
pub const SYSTEM: Uuid = Uuid::nil();

/// Something that happened, as it is written with the change that it tells of. How long it is kept is decided when it
/// is delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Occurrence {
    /// New for each occurrence: the event's id follows from it.
    pub id: Uuid,
    /// Such as `system.dead_letter_edited`.
    #[serde(rename = "type")]
    pub kind: String,
    pub actor: Uuid,
    /// What it happened to.
    pub entity: Uuid,
    pub correlation: Uuid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    pub payload: Data,
    pub at: DateTime<Utc>,
}

impl Occurrence {
    /// The event, the same however often it is made.
    pub fn to_event(&self, retention: &Retention) -> Event {
        Event {
            id: EventId::new(self.at, self.id, 0),
            kind: self.kind.clone().into(),
            actor: self.actor,
            entity: self.entity,
            entity_type: "system".into(),
            version: None,
            payload: self.payload.clone(),
            metadata: Metadata::default(),
            issued_at: self.at,
            correlation: self.correlation,
            command: self.id,
            traceparent: self.traceparent.clone(),
            created_at: self.at,
            expires_at: retention.expires_at(&self.kind, self.at),
        }
    }
}

/// Who did something to a dead letter, when, and why.
#[derive(Debug, Clone, Copy)]
pub struct Deed<'d> {
    /// The occurrence's id.
    pub id: Uuid,
    pub author: Uuid,
    pub why: Option<&'d str>,
    pub at: DateTime<Utc>,
}

/// The dead letter that something was done to.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'l> {
    pub letter: Uuid,
    pub command: Option<Uuid>,
    pub correlation: Option<Uuid>,
    pub traceparent: Option<&'l str>,
    pub reason: &'l str,
    pub detail: &'l str,
}

/// A dead letter is published again; `replay` is the replay of many that it belongs to.
pub fn dead_letter_replayed(
    deed: Deed<'_>,
    subject: Subject<'_>,
    attempt: i32,
    replay: Option<Uuid>,
) -> Occurrence {
    occurrence(
        "system.dead_letter_replayed",
        deed,
        subject,
        &[("attempt", json!(attempt)), ("replayId", json!(replay))],
    )
}

/// Who changed something about access, from where, and when.
#[derive(Debug, Clone)]
pub struct Change<'c> {
    /// The occurrence's id.
    pub id: Uuid,
    pub author: Uuid,
    /// The author's address, and the digest of the session or the name of the key that was used.
    pub address: Option<&'c str>,
    pub session: Option<&'c str>,
    pub at: DateTime<Utc>,
}

/// What a new admin is counted as. Its event is that of any registration.
pub const ADMIN_REGISTRATION: &str = "admin_registration";

/// Operations that somebody should look at: a series of `taskflow_sensitive_operations_total` each, and the alerts
/// that stand on it. Those that are about who may do what come first, [`ABOUT_ACCESS`] of them.
pub const SENSITIVE: [(&str, &str); 9] = [
    ("system.role_changed", "role_change"),
    ("system.password_changed", "password_change"),
    ("system.api_key_created", "key_creation"),
    ("system.api_key_revoked", "key_revocation"),
    ("system.logins_failed", "failed_logins"),
    ("system.dead_letter_edited", "dead_letter_edit"),
    ("system.dead_letter_discarded", "dead_letter_discard"),
    ("system.restored", "restore"),
    ("system.data_erased", "erasure"),
];
/// How many of them, from the first, are about who may do what.
pub(crate) const ABOUT_ACCESS: usize = 5;

/// The operation of a sensitive event; `None` for the others.
pub fn operation(kind: &str) -> Option<&'static str> {
    SENSITIVE.iter().find(|(known, _)| *known == kind).map(|(_, operation)| *operation)
}

/// A user has another role now.
pub fn role_changed(change: &Change<'_>, user: Uuid, previous: Role, role: Role) -> Occurrence {
    about_access(SENSITIVE[0].0, change, user, json!({ "role": role, "previous": { "role": previous } }))
}

/// A user has another password now. Nothing of either is told.
pub fn password_changed(change: &Change<'_>, user: Uuid) -> Occurrence {
    about_access(SENSITIVE[1].0, change, user, json!({}))
}

/// There is a new API key. Nothing of its secret is told.
pub fn api_key_created(change: &Change<'_>, key: &ApiKey) -> Occurrence {
    let payload = json!({
        "name": key.name, "scopes": key.scopes, "sourcePrefix": key.source_prefix, "expiresAt": key.expires_at,
    });
    about_access(SENSITIVE[2].0, change, key.id, payload)
}

/// An API key opens nothing any more.
pub fn api_key_revoked(change: &Change<'_>, key: &ApiKey) -> Occurrence {
    about_access(SENSITIVE[3].0, change, key.id, json!({ "name": key.name }))
}

/// So many logins failed that somebody has to wait: those to an account (`user`, where there is such a user), or those
/// from an address. The email that was typed is not told: people type passwords there.
pub fn logins_failed(change: &Change<'_>, user: Option<Uuid>, scope: &str, locked_s: u64) -> Occurrence {
    let payload = json!({ "scope": scope, "lockedSeconds": locked_s });
    about_access(SENSITIVE[4].0, change, user.unwrap_or(SYSTEM), payload)
}

fn about_access(kind: &str, change: &Change<'_>, entity: Uuid, mut payload: Value) -> Occurrence {
    for (name, value) in [("ipAddress", change.address), ("sessionId", change.session)] {
        if let Some(value) = value {
            payload[name] = value.into();
        }
    }
    Occurrence {
        id: change.id,
        kind: kind.to_owned(),
        actor: change.author,
        entity,
        correlation: change.id,
        traceparent: None,
        payload: Data::new(&payload),
        at: change.at,
    }
}

/// Somebody has put other bytes in the place of a dead letter's.
pub fn dead_letter_edited(deed: Deed<'_>, subject: Subject<'_>, before: &[u8], after: &[u8]) -> Occurrence {
    let versions = [("previous", audited(before)), ("edited", audited(after))];
    occurrence("system.dead_letter_edited", deed, subject, &versions)
}

/// Somebody has decided that a dead letter is not needed.
pub fn dead_letter_discarded(deed: Deed<'_>, subject: Subject<'_>, body: &[u8]) -> Occurrence {
    occurrence("system.dead_letter_discarded", deed, subject, &[("discarded", audited(body))])
}

fn occurrence(kind: &str, deed: Deed<'_>, subject: Subject<'_>, more: &[(&str, Value)]) -> Occurrence {
    let mut payload = json!({ "reason": subject.reason, "detail": subject.detail });
    let own = [("commandId", json!(subject.command)), ("why", json!(deed.why))];
    for (name, value) in own.iter().chain(more).filter(|(_, value)| !value.is_null()) {
        payload[*name] = value.clone();
    }
    Occurrence {
        id: deed.id,
        kind: kind.to_owned(),
        actor: deed.author,
        entity: subject.letter,
        correlation: subject.correlation.or(subject.command).unwrap_or(subject.letter),
        traceparent: subject.traceparent.map(str::to_owned),
        payload: Data::new(&payload),
        at: deed.at,
    }
}

/// A verification of the audit trail has found something.
pub fn audit_findings(id: Uuid, at: DateTime<Utc>, findings: &Value) -> Occurrence {
    about_trail("system.audit_findings", id, SYSTEM, job_entity("audit.verify"), at, findings)
}

/// Somebody has ordered that what events tell of a subject is erased.
pub fn data_erased(
    id: Uuid,
    author: &str,
    scope: &str,
    subject: Uuid,
    why: &str,
    at: DateTime<Utc>,
) -> Occurrence {
    let payload = json!({ "scope": scope, "author": author, "why": why });
    about_trail("system.data_erased", id, SYSTEM, subject, at, &payload)
}

/// Somebody says that Postgres was set back on purpose.
pub fn audit_restored(id: Uuid, author: &str, why: &str, at: DateTime<Utc>) -> Occurrence {
    let payload = json!({ "author": author, "why": why });
    about_trail("system.audit_restored", id, SYSTEM, job_entity("audit.seal"), at, &payload)
}

fn about_trail(
    kind: &str,
    id: Uuid,
    actor: Uuid,
    entity: Uuid,
    at: DateTime<Utc>,
    payload: &Value,
) -> Occurrence {
    Occurrence {
        id,
        kind: kind.to_owned(),
        actor,
        entity,
        correlation: id,
        traceparent: None,
        payload: Data::new(payload),
        at,
    }
}

/// Postgres was brought back to an earlier state, and the other stores to agree with it.
pub fn restored(id: Uuid, epoch: i64, author: &str, figures: &Value, at: DateTime<Utc>) -> Occurrence {
    Occurrence {
        id,
        kind: "system.restored".to_owned(),
        actor: SYSTEM,
        entity: Uuid::from_bytes(digest(format!("restore epoch {epoch}").as_bytes())),
        correlation: id,
        traceparent: None,
        payload: Data::new(&json!({ "epoch": epoch, "author": author, "figures": figures })),
        at,
    }
}

/// A backup took the place of what was live, by the same kind as [`restored`]: whoever watches for one sees the other.
pub fn replaced(id: Uuid, backup: &str, saved: &str, author: &str, at: DateTime<Utc>) -> Occurrence {
    Occurrence {
        id,
        kind: "system.restored".to_owned(),
        actor: SYSTEM,
        entity: Uuid::from_bytes(digest(format!("backup {backup}").as_bytes())),
        correlation: id,
        traceparent: None,
        payload: Data::new(&json!({ "backup": backup, "saved": saved, "author": author })),
        at,
    }
}

/// A run of a job of which the audit trail tells.
#[derive(Debug, Clone, Copy)]
pub struct JobDeed<'r> {
    pub job: &'r str,
    pub schedule: &'r str,
    pub run: i64,
    pub attempt: i16,
    pub due_at: DateTime<Utc>,
    pub at: DateTime<Utc>,
}

/// The id under which the audit trail knows a job.
pub fn job_entity(job: &str) -> Uuid {
    Uuid::from_bytes(digest(format!("job {job}").as_bytes()))
}

/// A job of upkeep begins: `system.maintenance.started`, say.
pub fn job_begun(word: &str, deed: JobDeed<'_>, host: &str) -> Occurrence {
    job_event(word, "started", deed, &[("host", json!(host))])
}

/// A job of upkeep has ended, with what it counted.
pub fn job_ended(
    word: &str,
    deed: JobDeed<'_>,
    outcome: &str,
    detail: Option<&str>,
    figures: Option<&Value>,
) -> Occurrence {
    let how = if outcome == "completed" { "completed" } else { "failed" };
    let more = [("outcome", json!(outcome)), ("detail", json!(detail)), ("figures", json!(figures))];
    job_event(word, how, deed, &more)
}

fn job_event(word: &str, how: &str, deed: JobDeed<'_>, more: &[(&str, Value)]) -> Occurrence {
    let JobDeed { job, schedule, run, attempt, due_at, at } = deed;
    let mut payload =
        json!({ "job": job, "schedule": schedule, "run": run, "attempt": attempt, "dueAt": due_at });
    for (name, value) in more.iter().filter(|(_, value)| !value.is_null()) {
        payload[*name] = value.clone();
    }
    let id = |text: String| Uuid::from_bytes(digest(text.as_bytes()));
    Occurrence {
        id: id(format!("job {schedule} run {run} try {attempt} {how} {}", at.timestamp_micros())),
        kind: format!("system.{word}.{how}"),
        actor: SYSTEM,
        entity: job_entity(job),
        correlation: id(format!("job {schedule} run {run}")),
        traceparent: None,
        payload: Data::new(&payload),
        at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Class;

    #[test]
    fn an_event_is_the_same_however_often_it_is_made() {
        let deed = Deed {
            id: Uuid::from_u128(7),
            author: SYSTEM,
            why: Some("not needed"),
            at: DateTime::from_timestamp(1_900_000_000, 0).unwrap(),
        };
        let subject = Subject {
            letter: Uuid::from_u128(1),
            command: Some(Uuid::from_u128(2)),
            correlation: None,
            traceparent: None,
            reason: "failing",
            detail: "it failed",
        };
        let occurrence = dead_letter_discarded(deed, subject, b"{}");
        let again: Occurrence = serde_json::from_slice(&serde_json::to_vec(&occurrence).unwrap()).unwrap();
        let event = occurrence.to_event(&Retention::default());
        assert_eq!(again.to_event(&Retention::default()), event);
        assert_eq!((event.class(), event.entity_type.as_ref()), (Class::SystemEvents, "system"));
        let payload = event.payload.object();
        assert_eq!(payload["why"], "not needed");
        assert_eq!(payload["discarded"]["bytes"], 2);
        assert_eq!(event.correlation, Uuid::from_u128(2));
    }

    #[test]
    fn who_may_do_what_is_kept_as_long_as_the_law_asks() {
        for (nth, (kind, _)) in SENSITIVE.iter().enumerate() {
            // An erasure is about the trail itself: what shows it stays as long as what is about access.
            let by_law = nth < ABOUT_ACCESS || *kind == "system.data_erased";
            let class = if by_law { Class::AuditLogs } else { Class::SystemEvents };
            assert_eq!(Class::of(kind), class, "{kind}");
        }
    }
}
