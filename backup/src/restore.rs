//! Restores: into a new place, checked before anything is written and again at the end. What is not whole has another
//! name, or a mark, until it is.

pub mod agree;
pub mod chain;
pub mod cluster;
pub mod history;
pub mod live;
pub mod mongo;
pub mod postgres;
mod replay;
pub mod space;

use serde::Serialize;

/// What a restore has done.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The backups, in the order in which they were taken.
    pub backups: Vec<String>,
    /// The database that was made.
    pub database: String,
    /// Rows or documents, by table or collection.
    pub counts: std::collections::BTreeMap<String, u64>,
    /// What was checked at the end, in words.
    pub checked: Vec<String>,
    /// Seconds.
    pub took_s: f64,
}
