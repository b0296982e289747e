//! One error for all stores. Its [`Kind`] says what to do; nobody decides by an error's text.

/// What an error means for the one who called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The store is gone, full, or too slow: not the caller's fault. Wait and try again.
    Unavailable,
    /// Somebody else was there first (deadlock, serialization, a twin): run the whole transaction again.
    Conflict,
    /// The store refuses this data; trying again changes nothing.
    Data,
    /// The store and this program do not fit (a missing table, a wrong privilege). Nothing goes on until a person
    /// has mended it, so nothing may be given up for it either.
    Bug,
}

/// A call to a store that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{store}: {call}: {detail}")]
pub struct StoreError {
    /// `postgres`, `rabbitmq`, `mongodb` or `redis`.
    pub store: &'static str,
    /// What was being done, in the domain's words.
    pub call: &'static str,
    pub kind: Kind,
    /// The store's own words, and the way out where there is one.
    pub detail: String,
}

impl StoreError {
    pub fn new(store: &'static str, call: &'static str, kind: Kind, detail: impl std::fmt::Display) -> Self {
        Self { store, call, kind, detail: detail.to_string() }
    }

    pub fn unavailable(store: &'static str, call: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::new(store, call, Kind::Unavailable, detail)
    }
}
