//! A task's recent changes, as its readers see them: what happened, by whom, when. Where from (address, program,
//! session) is for the audit trail's readers.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::event::{Event, EventId};

/// How many of a task are kept and shown.
pub const KEPT: usize = 20;

/// One change. `version` comes first in JSON: the caches' fence reads it there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// The task's version after it.
    pub version: i32,
    pub id: EventId,
    #[serde(rename = "type")]
    pub kind: String,
    pub actorid: Uuid,
    pub createdat: DateTime<Utc>,
    /// The new values, and under `previous` the old ones.
    pub data: Box<RawValue>,
}

impl Change {
    /// What an event has changed; `None` if it has no version.
    pub fn of(event: &Event) -> Option<Self> {
        let ms = event.created_at.timestamp_millis();
        Some(Self {
            version: event.version?,
            id: event.id,
            kind: event.kind.to_string(),
            actorid: event.actor,
            // As the audit trail keeps it.
            createdat: DateTime::from_timestamp_millis(ms).unwrap_or(event.created_at),
            data: event.payload.text().to_owned(),
        })
    }
}

/// The newest first, none twice, no more than are kept.
pub fn newest(mut changes: Vec<Change>) -> Vec<Change> {
    // Events of one command have one version; their ids have no order of their own, but always the same.
    changes.sort_by(|a, b| b.version.cmp(&a.version).then(a.id.cmp(&b.id)));
    changes.dedup_by_key(|change| change.id);
    changes.truncate(KEPT);
    changes
}
