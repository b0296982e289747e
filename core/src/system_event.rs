//! Events that no command causes: what people and the system itself do to TaskFlow. They go into the same audit trail,
//! with the entity type `system`.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::command::Metadata;
use crate::dead_letter::shown::audited;
use crate::event::{Class, Data, Event, EventId, Retention};

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
            expires_at: retention.expires_at(Class::of(&self.kind), self.at),
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
