//! Postgres: dumps and base backups by the server's own programs, and its log of writes without a pause.

pub mod archive;
pub mod base;
pub mod dump;
pub mod programs;
pub mod receive;
pub mod timeline;
