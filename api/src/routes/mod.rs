//! One file a resource: its types, its handlers.

pub(crate) mod api_keys;
pub(crate) mod commands;
mod dead_letter_replays;
pub(crate) mod dead_letters;
pub(crate) mod health;
mod ndjson;
pub(crate) mod pauses;
pub(crate) mod sessions;
pub(crate) mod stream;
pub(crate) mod users;

use crate::problem::Problem;

pub(crate) async fn unknown() -> Problem {
    Problem::not_found("there is nothing at this path")
}

pub(crate) async fn wrong_method() -> Problem {
    Problem::wrong_method()
}
