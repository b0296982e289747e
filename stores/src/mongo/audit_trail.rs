//! The events of the trail as a verification and a proof see them: made back into the bytes of their leaves.
//!
//! It is strict: a document that is not exactly as events are written has no leaf, whatever a reader would make of it.

use std::borrow::Cow;

use futures_util::TryStreamExt;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::{RawBsonRef, RawDocument};
use mongodb::bson::{DateTime, RawDocumentBuf, doc};
use mongodb::options::Hint;
use mongodb::{Cursor, Database};
use serde_json::value::RawValue;
use taskflow_core::audit::Hash;
use taskflow_core::audit::apart::{self, Apart};
use taskflow_core::audit::canonical::{Fields, Personal, Salt, leaf};
use taskflow_core::audit::trail::{Place, Seen};
use taskflow_core::event::{Class, EventId};
use taskflow_core::hex;
use uuid::Uuid;

use super::events::COLLECTION;
use super::gap::SYSTEM;
use super::{failed, undone};
use crate::StoreError;

/// The fields of an event; a document with another one was not written by us.
const FIELDS: [&str; 17] = [
    "_id",
    "type",
    "actorId",
    "entityId",
    "entityType",
    "version",
    "payload",
    "metadata",
    "correlationId",
    "commandId",
    "run",
    "salt",
    "digest",
    "erasedAt",
    "createdAt",
    "expiresAt",
    undone::FIELD,
];
const METADATA: [&str; 4] = ["userAgent", "ipAddress", "sessionId", "timestamp"];
const RUN: [&str; 5] = ["p", "n", "i", "class", "leaf"];
const MARK: [&str; 5] = ["epoch", "at", "id", "n", "leaf"];
const READ: &str = "read the audit trail";
/// Events that come in one answer of the server.
const TOGETHER: u32 = 1_000;

/// An event with what a proof of it shows.
#[derive(Debug, Clone)]
pub struct Shown {
    pub seen: Seen,
    /// The text of its fields; `None` if it has not the form of an event.
    pub fields: Option<String>,
    /// The text of its data and its salt, unless they were erased.
    pub data: Option<(String, Salt)>,
    pub data_digest: Option<Hash>,
}

/// Events that were made between two times, in no order.
pub struct Window {
    events: Cursor<RawDocumentBuf>,
    buffer: Vec<u8>,
}

/// Begins to read the events that were made between two times (milliseconds since 1970, both included).
pub async fn window(database: &Database, from_ms: i64, to_ms: i64) -> Result<Window, StoreError> {
    let between = doc! { "$gte": DateTime::from_millis(from_ms), "$lte": DateTime::from_millis(to_ms) };
    let found = database
        .collection::<RawDocumentBuf>(COLLECTION)
        .find(doc! { "createdAt": between })
        .hint(Hint::Name("createdAt_id".to_owned()))
        .batch_size(TOGETHER)
        .await;
    Ok(Window { events: found.map_err(failed(READ))?, buffer: Vec::new() })
}

impl Window {
    /// The next one; none at the end.
    pub async fn next(&mut self) -> Result<Option<Seen>, StoreError> {
        let event = self.events.try_next().await.map_err(failed(READ))?;
        Ok(event.map(|event| seen(&event, &mut self.buffer)))
    }
}

/// Reads the events that no time finds, since what they have in the place of one is of another type: at most `limit`.
pub async fn undated(database: &Database, limit: usize) -> Result<Vec<Seen>, StoreError> {
    const CALL: &str = "look for events without a time";
    let (mut strange, mut buffer) = (Vec::new(), Vec::new());
    // The index has values of other types before the first time and behind the last one.
    for direction in [1, -1] {
        let found = database
            .collection::<RawDocumentBuf>(COLLECTION)
            .find(doc! {})
            .sort(doc! { "createdAt": direction, "_id": direction })
            .hint(Hint::Name("createdAt_id".to_owned()))
            .batch_size(10)
            .await;
        let mut found = found.map_err(failed(CALL))?;
        while strange.len() < limit
            && let Some(document) = found.try_next().await.map_err(failed(CALL))?
            && document.get_datetime("createdAt").is_err()
        {
            strange.push(seen(&document, &mut buffer));
        }
    }
    Ok(strange)
}

/// Reads one event.
pub async fn one(database: &Database, id: EventId) -> Result<Option<Shown>, StoreError> {
    let events = database.collection::<RawDocumentBuf>(COLLECTION);
    let found = events.find_one(doc! { "_id": ObjectId::from_bytes(id.0) }).await;
    Ok(found.map_err(failed("read an event"))?.as_deref().map(shown))
}

/// An event as a proof shows it.
pub(super) fn shown(document: &RawDocument) -> Shown {
    let seen = seen(document, &mut Vec::new());
    let parts = read(document);
    let data = parts.as_ref().and_then(|parts| match parts.data {
        Data::Kept { ref personal, salt } => Some((personal.text(), salt)),
        Data::Erased(_) => None,
    });
    let data_digest = parts.as_ref().map(|parts| parts.data.digest(&mut Vec::new()));
    Shown { seen, fields: parts.map(|parts| parts.fields.text()), data, data_digest }
}

/// An event that a restore has set apart, with the leaf that it has from then on; `None` if it is not in the form in
/// which events are written and marked.
pub(super) fn apart(document: &RawDocument) -> Option<Apart> {
    let (parts, mut buffer) = (read(document)?, Vec::new());
    Some(Apart {
        id: EventId(document.get_object_id("_id").ok()?.bytes()),
        class: class_of(parts.fields.class)?,
        created_ms: parts.fields.created_at,
        leaf: parts.mark.as_ref()?.leaf(&parts.leaf(&mut buffer)),
    })
}

/// What an event's leaf is made of.
struct Parts<'d> {
    /// With the id that it had before a restore has set it apart.
    fields: Fields<'d>,
    data: Data<'d>,
    mark: Option<Mark>,
}

impl Parts<'_> {
    /// The leaf that it had in its batch.
    fn leaf(&self, buffer: &mut Vec<u8>) -> Hash {
        let data = self.data.digest(buffer);
        leaf(&self.fields, &data, buffer)
    }

    /// The leaf that it must have where it stands; none while it is set apart and no link knows of it.
    fn hash(&self, buffer: &mut Vec<u8>) -> Option<Hash> {
        let leaf = self.leaf(buffer);
        match &self.mark {
            None => Some(leaf),
            Some(mark) => mark.is_linked.then(|| mark.leaf(&leaf)),
        }
    }
}

/// That a restore has set the event apart.
struct Mark {
    /// The id that it has since.
    id: EventId,
    epoch: i64,
    at_ms: i64,
    is_linked: bool,
}

impl Mark {
    fn leaf(&self, leaf: &Hash) -> Hash {
        apart::leaf(leaf, self.id, self.epoch, self.at_ms)
    }
}

enum Data<'d> {
    Kept { personal: Personal<'d>, salt: Salt },
    Erased(Hash),
}

impl Data<'_> {
    fn digest(&self, buffer: &mut Vec<u8>) -> Hash {
        match self {
            Self::Kept { personal, salt } => personal.digest(salt, buffer),
            Self::Erased(digest) => *digest,
        }
    }
}

/// An event, however it looks: what can't be read is nothing.
fn seen(document: &RawDocument, buffer: &mut Vec<u8>) -> Seen {
    let id = document.get_object_id("_id").map_or(EventId([0; 12]), |id| EventId(id.bytes()));
    let place_of = || {
        let run = document.get_document("run").ok()?;
        let class = class_of(run.get_str("class").ok()?)?;
        let leaf_of = |of: &RawDocument| of.get_i32("leaf").ok().and_then(|leaf| u32::try_from(leaf).ok());
        let link = document.get_document(undone::FIELD).ok().and_then(|mark| {
            Some(Place {
                partition: SYSTEM.to_owned(),
                number: mark.get_i64("n").ok()?,
                class,
                leaf: Some(leaf_of(mark)?),
            })
        });
        let undone = link.is_some();
        let own = || {
            let (partition, number) = (run.get_str("p").ok()?.to_owned(), run.get_i64("n").ok()?);
            Some(Place { partition, number, class, leaf: leaf_of(run) })
        };
        Some((link.or_else(own)?, undone))
    };
    // Without a place it belongs to no batch there is.
    let nowhere = || Place { partition: String::new(), number: 0, class: Class::AuditLogs, leaf: Some(0) };
    let uuid = |name| document.get_str(name).ok().and_then(uuid_of).unwrap_or_default();
    let parts = read(document);
    let (place, undone) = place_of().unwrap_or_else(|| (nowhere(), false));
    Seen {
        id,
        place,
        created_ms: document.get_datetime("createdAt").map_or(0, DateTime::timestamp_millis),
        hash: parts.as_ref().and_then(|parts| parts.hash(buffer)),
        erased: parts.is_some_and(|parts| matches!(parts.data, Data::Erased(_))),
        undone,
        entity: uuid("entityId"),
        actor: uuid("actorId"),
    }
}

fn class_of(word: &str) -> Option<Class> {
    Class::ALL.into_iter().find(|class| class.as_str() == word)
}

/// A UUID in the one form in which we write it.
fn uuid_of(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    let mut form = [0; uuid::fmt::Hyphenated::LENGTH];
    (*id.hyphenated().encode_lower(&mut form) == *text).then_some(id)
}

/// Whether a document has no other fields than these, and none twice.
fn has_only(document: &RawDocument, names: &[&str]) -> bool {
    let mut seen = 0_u32;
    document.iter().all(|field| {
        let place = field.ok().and_then(|(name, _)| names.iter().position(|one| *one == name.as_str()));
        place.is_some_and(|place| {
            let new = seen & (1 << place) == 0;
            seen |= 1 << place;
            new
        })
    })
}

/// A field has not the type in which it is written.
struct Odd;

/// The value of a field that may be missing, but is of the right type where it is there.
fn optional<T>(
    document: &RawDocument,
    name: &str,
    get: impl FnOnce() -> Option<T>,
) -> Result<Option<T>, Odd> {
    match document.get(name) {
        Ok(None) => Ok(None),
        Ok(Some(_)) => get().map(Some).ok_or(Odd),
        Err(_) => Err(Odd),
    }
}

fn read(document: &RawDocument) -> Option<Parts<'_>> {
    let (run, metadata) = (document.get_document("run").ok()?, document.get_document("metadata").ok()?);
    if !(has_only(document, &FIELDS) && has_only(run, &RUN) && has_only(metadata, &METADATA)) {
        return None;
    }
    let text = |name| document.get_str(name).ok();
    let id = |name| uuid_of(text(name)?);
    let told = |name| optional(metadata, name, || metadata.get_str(name).ok());
    let class = run.get_str("class").ok()?;
    let own = EventId(document.get_object_id("_id").ok()?.bytes());
    let mark = match document.get(undone::FIELD).ok()? {
        Some(value) => Some(mark_of(own, value.as_document()?)?),
        None => None,
    };
    let fields = Fields {
        id: mark.as_ref().map_or(own, |(was, _)| *was),
        kind: text("type")?,
        actor_id: id("actorId")?,
        entity_id: id("entityId")?,
        entity_type: text("entityType")?,
        version: optional(document, "version", || document.get_i32("version").ok()).ok()?,
        correlation_id: id("correlationId")?,
        command_id: id("commandId")?,
        issued_at: metadata.get_datetime("timestamp").ok()?.timestamp_millis(),
        created_at: document.get_datetime("createdAt").ok()?.timestamp_millis(),
        class,
        index: u32::try_from(run.get_i32("i").ok()?).ok()?,
    };
    let (ip_address, session_id, user_agent) =
        (told("ipAddress").ok()?, told("sessionId").ok()?, told("userAgent").ok()?);
    let payload = document.get_document("payload").ok()?;
    let binary = |name| document.get_binary(name).ok().map(|binary| binary.bytes);
    let data = match binary("salt") {
        Some(salt) => {
            if document.get("erasedAt").ok()?.is_some() || document.get("digest").ok()?.is_some() {
                return None;
            }
            let mut json = Vec::with_capacity(256);
            write_object(payload, &mut json)?;
            let payload = RawValue::from_string(String::from_utf8(json).ok()?).ok()?;
            let personal = Personal { ip_address, session_id, user_agent, payload: Cow::Owned(payload) };
            Data::Kept { personal, salt: salt.try_into().ok()? }
        }
        None => {
            let empty = ip_address.is_none() && session_id.is_none() && user_agent.is_none();
            if !empty || payload.iter().next().is_some() || document.get_datetime("erasedAt").is_err() {
                return None;
            }
            Data::Erased(Hash::from_slice(binary("digest")?)?)
        }
    };
    Some(Parts { fields, data, mark: mark.map(|(_, mark)| mark) })
}

/// Reads a mark, and the id that the event had before.
fn mark_of(id: EventId, mark: &RawDocument) -> Option<(EventId, Mark)> {
    let (epoch, text) = (mark.get_i64("epoch").ok()?, mark.get_str("id").ok()?);
    let was: [u8; 12] = hex::read(text)?.try_into().ok()?;
    if !has_only(mark, &MARK) || hex::of(&was) != text || undone::apart(epoch, was) != id.0 {
        return None;
    }
    let number = optional(mark, "n", || mark.get_i64("n").ok()).ok()?;
    let leaf = optional(mark, "leaf", || mark.get_i32("leaf").ok()).ok()?;
    if number.is_some() != leaf.is_some() {
        return None;
    }
    let at_ms = mark.get_datetime("at").ok()?.timestamp_millis();
    Some((EventId(was), Mark { id, epoch, at_ms, is_linked: number.is_some() }))
}

/// Writes the JSON that a payload was made from, its fields in the order in which they stand; `None` if it holds what we
/// never write.
fn write_object(document: &RawDocument, json: &mut Vec<u8>) -> Option<()> {
    json.push(b'{');
    for (index, field) in document.iter().enumerate() {
        let (name, value) = field.ok()?;
        if index > 0 {
            json.push(b',');
        }
        serde_json::to_writer(&mut *json, name.as_str()).ok()?;
        json.push(b':');
        write_value(value, json)?;
    }
    json.push(b'}');
    Some(())
}

fn write_value(value: RawBsonRef<'_>, json: &mut Vec<u8>) -> Option<()> {
    match value {
        RawBsonRef::Null => json.extend_from_slice(b"null"),
        RawBsonRef::Boolean(value) => serde_json::to_writer(json, &value).ok()?,
        RawBsonRef::Int64(whole) => serde_json::to_writer(json, &whole).ok()?,
        RawBsonRef::Double(float) if float.is_finite() => serde_json::to_writer(json, &float).ok()?,
        RawBsonRef::String(text) => serde_json::to_writer(json, text).ok()?,
        RawBsonRef::Array(items) => {
            json.push(b'[');
            for (index, item) in items.into_iter().enumerate() {
                if index > 0 {
                    json.push(b',');
                }
                write_value(item.ok()?, json)?;
            }
            json.push(b']');
        }
        RawBsonRef::Document(document) => write_object(document, json)?,
        _ => return None,
    }
    Some(())
}
