//! One file a resource: its types, its handlers.

pub(crate) mod api_keys;
pub(crate) mod backups;
pub(crate) mod commands;
mod dead_letter_replays;
pub(crate) mod dead_letters;
pub(crate) mod docs;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod holds;
pub(crate) mod jobs;
mod ndjson;
pub(crate) mod pauses;
pub(crate) mod schemas;
pub(crate) mod sessions;
pub(crate) mod stream;
pub(crate) mod tasks;
pub(crate) mod user_reads;
pub(crate) mod users;

use crate::problem::Problem;

pub(crate) async fn unknown() -> Problem {
    Problem::not_found("there is nothing at this path")
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::wrong_method()
}
