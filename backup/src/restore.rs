//! Restores: into a new place, checked before anything is written and again at the end. What is not whole has another
//! name, or a mark, until it is.

pub mod agree;
pub mod chain;
pub mod cluster;
mod course;
mod end;
mod fits;
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
    /// What the seals of the audit trail have shown; filled by who can verify them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seals: Option<Seals>,
    /// Seconds.
    pub took_s: f64,
}

/// What came of the audit trail's seals after a restore.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Seals {
    /// Verified up to a seal.
    Verified(Verified),
    /// Why they were not.
    NotVerified(String),
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Verified {
    /// The newest seal that was looked at.
    pub through: i64,
    /// Events that are as they were sealed.
    pub proved: u64,
    /// Seconds that the look took.
    pub took_s: f64,
    /// By kind, what is wrong.
    pub found: std::collections::BTreeMap<String, u64>,
    /// In words; the first ones.
    pub findings: Vec<String>,
}
