//! An answer that is made of many rows, as it is kept: with the position that it has seen and the time that it has.
//! Readers make most of them; the scheduler makes some in advance.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use taskflow_core::etag;
use taskflow_core::window::Position;

use super::cache::Entry;

/// Bytes of an answer that is kept: a page of very long tasks would push out thousands of others.
const KEPT_MAX: usize = 512 * 1024;

/// Times are in milliseconds since 1970.
#[derive(Debug, Clone)]
pub struct Document {
    pub position: Position,
    pub ends_ms: i64,
    /// What making it has taken.
    pub took_ms: f64,
    pub etag: String,
    pub body: Bytes,
}

/// The stored form. `version` comes first: the caches' fence reads it there.
#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    version: Position,
    ends: i64,
    took: f64,
    etag: &'a str,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// How long an answer lasts.
#[derive(Debug, Clone, Copy)]
pub struct Life {
    pub ttl_s: u64,
    /// It does not hold longer than this, whatever its time to live.
    pub holds_until: Option<DateTime<Utc>>,
}

impl Document {
    pub fn new(position: Position, ends_ms: i64, took_ms: f64, body: Vec<u8>) -> Self {
        let etag = etag::of(&body);
        Self { position, ends_ms, took_ms, etag, body: body.into() }
    }

    /// An answer that was just made. It lasts for its time to live, unless it holds for less.
    pub fn made(position: Position, body: Vec<u8>, took: Duration, now: DateTime<Utc>, life: Life) -> Self {
        let ends = now + TimeDelta::seconds(life.ttl_s.cast_signed());
        let ends = life.holds_until.map_or(ends, |until| ends.min(until));
        Self::new(position, ends.timestamp_millis(), took.as_secs_f64() * 1_000.0, body)
    }

    /// As it is kept under a key; `None` if it is too large for that.
    pub fn entry(&self, key: String, ttl_s: u64) -> Option<Entry> {
        let value = (self.body.len() <= KEPT_MAX).then(|| self.to_stored()).flatten()?;
        Some(Entry { key, value, ttl_s })
    }

    fn to_stored(&self) -> Option<String> {
        let body = serde_json::from_slice(&self.body).ok()?;
        let stored =
            Stored { version: self.position, ends: self.ends_ms, took: self.took_ms, etag: &self.etag, body };
        serde_json::to_string(&stored).ok()
    }

    /// `None`: what is there is none of ours.
    pub fn of_stored(bytes: &[u8]) -> Option<Self> {
        let stored: Stored<'_> = serde_json::from_slice(bytes).ok()?;
        Some(Self {
            position: stored.version,
            ends_ms: stored.ends,
            took_ms: stored.took,
            etag: stored.etag.to_owned(),
            body: Bytes::copy_from_slice(stored.body.get().as_bytes()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_comes_back_as_it_was_and_begins_with_its_version() {
        let document = Document::new(7, 1_000, 2.5, br#"{"items":[{"title":"\u00e9 \"x\""}]}"#.to_vec());
        let stored = document.to_stored().expect("a stored form");
        assert!(stored.starts_with("{\"version\":7,"), "{stored}");
        let back = Document::of_stored(stored.as_bytes()).expect("a document");
        assert_eq!((back.position, back.ends_ms, &back.etag), (7, 1_000, &document.etag));
        assert_eq!(back.body, document.body);
        assert!(Document::of_stored(b"[]").is_none());
    }
}
