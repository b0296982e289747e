//! The bytes of an event that its leaf is made of.
//!
//! They follow from the event as a worker made it and, equally, from its document in MongoDB: times are milliseconds,
//! what is not kept there is not in them. Both parts are JSON without spaces, so that a person can read what was
//! proved. What can be about a person — payload, address, browser, session — goes into the leaf through a salted
//! digest. When the salt is forgotten, the digest tells nothing of what it was made of, and the leaf is still the same.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Hash;
use crate::event::EventId;

/// Chance that keeps a digest from being tried out.
pub type Salt = [u8; 16];

/// What stays of an event when what it tells of a person is erased. The names are those of its document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fields<'e> {
    pub id: EventId,
    #[serde(rename = "type")]
    pub kind: &'e str,
    pub actor_id: Uuid,
    pub entity_id: Uuid,
    pub entity_type: &'e str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i32>,
    pub correlation_id: Uuid,
    pub command_id: Uuid,
    /// When the command was issued, in milliseconds since 1970.
    pub issued_at: i64,
    /// When the command was applied, in milliseconds since 1970.
    pub created_at: i64,
    /// The retention class by itself, whatever the settings say.
    pub class: &'e str,
    /// Its place in the batch.
    pub index: u32,
}

/// What may be erased.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Personal<'e> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<&'e str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<&'e str>,
    pub payload: Cow<'e, RawValue>,
}

fn text(part: &impl Serialize, buffer: &mut Vec<u8>) {
    buffer.clear();
    // Writing texts and numbers into memory does not fail.
    let _ = serde_json::to_writer(buffer, part);
}

impl Fields<'_> {
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Personal<'_> {
    pub fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The digest that goes into the leaf. `buffer` is room to write in.
    pub fn digest(&self, salt: &Salt, buffer: &mut Vec<u8>) -> Hash {
        text(self, buffer);
        data_digest(salt, buffer)
    }
}

/// The digest of an event's data.
pub fn data_digest(salt: &Salt, text: &[u8]) -> Hash {
    Hash::of(&[&[2], salt, text])
}

/// An event's leaf. `buffer` is room to write in.
pub fn leaf(fields: &Fields<'_>, data: &Hash, buffer: &mut Vec<u8>) -> Hash {
    text(fields, buffer);
    leaf_of(buffer, data)
}

/// The leaf of these fields and this data.
pub fn leaf_of(fields: &[u8], data: &Hash) -> Hash {
    Hash::of(&[&[0], &data.0, fields])
}
