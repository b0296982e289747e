//! A partition's chain: a link for each batch that has events.

use serde::{Deserialize, Serialize};

use super::Hash;
use crate::event::{Class, EventId};

/// The events of one class in a batch: `[class, count, first, last, root]`, and the id where there is but one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Parts", into = "Parts")]
pub struct ClassRoot {
    pub class: Class,
    pub count: u32,
    /// Between which times they were made, in milliseconds since 1970.
    pub first_ms: i64,
    pub last_ms: i64,
    pub root: Hash,
    /// Of a single event: nothing else tells who it was once it is gone.
    pub only: Option<EventId>,
}

/// Both forms, as serde reads and writes them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Parts {
    One(Class, u32, i64, i64, Hash, EventId),
    Many(Class, u32, i64, i64, Hash),
}

impl From<Parts> for ClassRoot {
    fn from(parts: Parts) -> Self {
        match parts {
            Parts::One(class, count, first_ms, last_ms, root, only) => {
                Self { class, count, first_ms, last_ms, root, only: Some(only) }
            }
            Parts::Many(class, count, first_ms, last_ms, root) => {
                Self { class, count, first_ms, last_ms, root, only: None }
            }
        }
    }
}

impl From<ClassRoot> for Parts {
    fn from(of: ClassRoot) -> Self {
        let ClassRoot { class, count, first_ms, last_ms, root, only } = of;
        match only {
            Some(only) => Self::One(class, count, first_ms, last_ms, root, only),
            None => Self::Many(class, count, first_ms, last_ms, root),
        }
    }
}

/// The text of a link: the classes in the order of [`Class::ALL`].
pub fn text(classes: &[ClassRoot]) -> String {
    serde_json::to_string(classes).unwrap_or_default()
}

/// Reads a link's text; `None` if it is none of ours.
pub fn read(text: &str) -> Option<Vec<ClassRoot>> {
    serde_json::from_str(text).ok()
}

/// Where a partition's chain begins.
pub fn genesis(partition: &str) -> Hash {
    Hash::of(&[&[4], partition.as_bytes()])
}

/// The digest of a link. Postgres computes the same in the statement that records a batch.
pub fn hash(previous: &Hash, number: i64, text: &str) -> Hash {
    Hash::of(&[&[3], &previous.0, &number.to_be_bytes(), text.as_bytes()])
}
