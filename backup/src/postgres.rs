//! Postgres: dumps by the server's own programs.

pub mod dump;
pub mod programs;
