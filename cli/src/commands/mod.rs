//! One file a subcommand.

pub(crate) mod api_keys;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod dead_letters;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod holds;
pub(crate) mod jobs;
pub(crate) mod migrate;
pub(crate) mod partitions;
pub(crate) mod pause;
pub(crate) mod receipt;
pub(crate) mod restore;
pub(crate) mod role;
pub(crate) mod schema;
pub(crate) mod seed;
pub(crate) mod send;
pub(crate) mod verify;
