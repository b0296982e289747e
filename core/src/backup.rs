//! Backups, as far as they can be decided without touching one: which are kept, and how the log of writes is counted.

pub mod journal;
pub mod keeping;
pub mod wal;
