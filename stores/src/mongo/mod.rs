//! MongoDB: the audit trail.

pub mod apart;
pub mod audit_leaves;
pub mod audit_seals;
pub mod audit_trail;
pub mod dump;
pub mod erasure;
pub mod event_query;
pub mod event_writer;
pub mod events;
pub mod fence;
pub mod gap;
pub mod load;
pub mod migrate;
pub mod refill;
pub mod retention;
pub mod undone;
mod updates;
pub mod upkeep;

use std::time::Duration;

use mongodb::Client;
pub use mongodb::Database;
pub use mongodb::bson::Document;
use mongodb::bson::doc;
use mongodb::options::ClientOptions;
use serde::{Deserialize, Serialize};

use crate::{Kind, StoreError};

const STORE: &str = "mongodb";

/// How to reach MongoDB.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `mongodb://user:password@host:port/database`; the database's name is part of it.
    pub url: String,
    /// Connections of one process.
    pub connections_max: u32,
    /// How long a call looks for a server, in milliseconds.
    pub server_selection_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "mongodb://127.0.0.1:27017/taskflow".into(),
            connections_max: 20,
            server_selection_timeout_ms: 3_000,
        }
    }
}

/// Prepares a client. Connections are made when they are needed, so this succeeds while the server is away.
///
/// # Errors
/// [`Kind::Bug`] when the URL can't be understood or names no database.
pub async fn connect(settings: &Settings, application: &str) -> Result<Database, StoreError> {
    let wrong = |detail: String| {
        StoreError::new(
            STORE,
            "read mongodb.url",
            Kind::Bug,
            format!("{detail}; expected mongodb://host:port/database"),
        )
    };
    let mut options = ClientOptions::parse(&settings.url).await.map_err(|error| wrong(error.to_string()))?;
    options.app_name = Some(application.to_owned());
    options.max_pool_size = Some(settings.connections_max);
    options.server_selection_timeout = Some(Duration::from_millis(settings.server_selection_timeout_ms));
    options.connect_timeout = Some(Duration::from_millis(settings.server_selection_timeout_ms));
    let client = Client::with_options(options).map_err(|error| wrong(error.to_string()))?;
    client.default_database().ok_or_else(|| wrong("it names no database".into()))
}

/// Asks the server for a sign of life.
pub async fn probe(database: &Database) -> Result<(), StoreError> {
    let ping = database.run_command(doc! { "ping": 1 });
    match tokio::time::timeout(Duration::from_secs(3), ping).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failed("probe")(error)),
        Err(_) => Err(StoreError::unavailable(STORE, "probe", "no answer within 3 s")),
    }
}

/// The server's version, such as `8.0.4`.
pub async fn version(database: &Database) -> Result<String, StoreError> {
    let info = database.run_command(doc! { "buildInfo": 1 }).await.map_err(failed("read the version"))?;
    Ok(info.get_str("version").unwrap_or("unknown").to_owned())
}

pub(crate) fn failed(call: &'static str) -> impl Fn(mongodb::error::Error) -> StoreError {
    move |error| StoreError::new(STORE, call, kind(&error), explain(&error))
}

/// The error in words, and what caused it: the client's own text ends with the server's answer as bytes.
fn explain(error: &mongodb::error::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{}: {cause}", error.kind),
        None => error.kind.to_string(),
    }
}

fn kind(error: &mongodb::error::Error) -> Kind {
    use mongodb::error::{ErrorKind as E, WriteFailure};
    match error.kind.as_ref() {
        E::Command(command) => match command.code {
            // Unauthorized, authentication failed, document validation, wrong type of a command's field.
            13 | 18 | 72 | 121 | 9 | 14 => Kind::Bug,
            112 | 251 => Kind::Conflict,
            // Not primary, shutting down, time-outs, no space: the server's state, not ours.
            _ => Kind::Unavailable,
        },
        E::InvalidArgument { .. } | E::BsonDeserialization(_) | E::BsonSerialization(_) => Kind::Bug,
        // Written, and not where it must be: a member of the set that takes over may not have it.
        E::Write(WriteFailure::WriteConcernError(_)) => Kind::Unavailable,
        E::InsertMany(failures) if failures.write_concern_error.is_some() => Kind::Unavailable,
        E::BulkWrite(failures) if !failures.write_concern_errors.is_empty() => Kind::Unavailable,
        E::Write(_) | E::InsertMany(_) | E::BulkWrite(_) => Kind::Data,
        _ => Kind::Unavailable,
    }
}

/// The replica set that the server belongs to; `None` for a single server.
pub async fn replica_set(database: &Database) -> Result<Option<String>, StoreError> {
    let hello = database.run_command(doc! { "hello": 1 }).await.map_err(failed("ask for the replica set"))?;
    Ok(hello.get_str("setName").ok().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use mongodb::bson::{Document, deserialize_from_document};
    use mongodb::error::{Error, ErrorKind, WriteFailure};

    use super::*;

    #[test]
    fn what_is_written_and_not_safe_may_be_tried_again_and_what_is_refused_not() {
        let unsafe_answer = || doc! { "code": 64, "errmsg": "waiting for replication timed out" };
        let refused = || doc! { "index": 0, "code": 121, "errmsg": "Document failed validation" };
        let one = |failure| kind(&Error::from(ErrorKind::Write(failure)));
        let read = "as the server tells it";
        let late = WriteFailure::WriteConcernError(deserialize_from_document(unsafe_answer()).expect(read));
        assert_eq!(one(late), Kind::Unavailable);
        let bad = WriteFailure::WriteError(deserialize_from_document(refused()).expect(read));
        assert_eq!(one(bad), Kind::Data);
        let many = |answer: Document| {
            kind(&Error::from(ErrorKind::InsertMany(deserialize_from_document(answer).expect(read))))
        };
        assert_eq!(many(doc! { "writeConcernError": unsafe_answer() }), Kind::Unavailable);
        assert_eq!(many(doc! { "writeErrors": [refused()] }), Kind::Data);
    }
}
