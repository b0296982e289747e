//! Postgres: one file a table, or a thing that is done with several; how it is connected to, waited for and migrated.
//!
//! SQL is written for batches: each statement takes arrays, so that its number does not grow with the batch.

pub mod api_keys;
pub mod audit_chain;
pub mod audit_seals;
pub mod backup;
pub mod batch;
pub mod canaries;
pub mod dead_letter_deeds;
pub mod dead_letter_intake;
pub mod dead_letter_replays;
pub mod dead_letters;
pub mod health;
pub mod job_history;
pub mod job_runs;
pub mod job_schedules;
pub mod layout;
pub mod leader;
pub mod leases;
pub mod legal_holds;
pub mod load;
pub mod migrate;
pub mod moment;
pub mod outbox;
pub mod pauses;
mod pool;
#[cfg(feature = "crash-points")]
pub mod probe;
pub mod pruning;
pub mod receipts;
pub mod rehearse;
pub mod restore_epochs;
pub mod seed;
pub mod silence;
pub mod statements;
pub mod statistics;
pub mod suspects;
pub mod system_events;
pub mod task_lists;
pub mod task_search;
pub mod tasks;
mod transaction;
pub mod upkeep;
pub mod user_activity;
pub mod user_deeds;
pub mod users;
pub mod waiting;
pub mod wal;

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
pub use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;

pub use self::pool::{Connection, PgPool, connect_alone};
pub use self::transaction::{Transaction, begin};

use crate::{Kind, StoreError};

const STORE: &str = "postgres";

/// How to reach Postgres.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `postgres://user:password@host:port/database`
    pub url: String,
    /// Connections of one process. All processes together must stay below the server's `max_connections`.
    pub connections_max: u32,
    /// How long a call waits for a connection, in milliseconds.
    pub acquire_timeout_ms: u64,
    /// After which the server ends a statement, in milliseconds.
    pub statement_timeout_ms: u64,
    /// After which the server ends a wait for a lock, in milliseconds.
    pub lock_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "postgres://127.0.0.1:5432/taskflow".into(),
            connections_max: 20,
            acquire_timeout_ms: 5_000,
            statement_timeout_ms: 30_000,
            lock_timeout_ms: 10_000,
        }
    }
}

/// Opens a pool. Connections are made when they are needed, so this succeeds while the server is away.
///
/// # Errors
/// [`Kind::Bug`] when the URL can't be understood.
pub fn connect(settings: &Settings, application: &str) -> Result<PgPool, StoreError> {
    let options = PgConnectOptions::from_str(&settings.url)
        .map_err(|error| {
            StoreError::new(
                STORE,
                "read postgres.url",
                Kind::Bug,
                format!("{error}; expected postgres://user:password@host:port/database"),
            )
        })?
        .application_name(application)
        .options([
            ("statement_timeout", settings.statement_timeout_ms.to_string()),
            ("lock_timeout", settings.lock_timeout_ms.to_string()),
            // A worker that hangs inside a transaction must not hold its locks for ever.
            ("idle_in_transaction_session_timeout", settings.statement_timeout_ms.to_string()),
            // What was given up with its connection ends soon, and not when it would have been done.
            ("client_connection_check_interval", "1s".to_owned()),
            // Rows are found by key: compiling plans costs more than running them.
            ("jit", "off".to_owned()),
            // A statement's plan is kept. One that was made while a table was nearly empty would read the whole table
            // for ever after: on a new deployment, until somebody analyzes it.
            ("enable_seqscan", "off".to_owned()),
        ]);
    Ok(PgPool::new(settings, options))
}

/// Asks the server for a sign of life.
pub async fn probe(pool: &PgPool) -> Result<(), StoreError> {
    let probe = sqlx::query("SELECT 1").execute(pool);
    let probed = async { probe.await.map(drop).map_err(failed("probe")) };
    silence::within(Duration::from_secs(3), "probe", probed).await
}

/// The server's version, such as `15.18`.
pub async fn version(pool: &PgPool) -> Result<String, StoreError> {
    sqlx::query_scalar("SHOW server_version").fetch_one(pool).await.map_err(failed("read the version"))
}

/// Says what a failed call means.
pub(crate) fn failed(call: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| StoreError::new(STORE, call, kind(&error), explain(&error))
}

fn kind(error: &sqlx::Error) -> Kind {
    use sqlx::Error as E;
    match error {
        E::Io(_) | E::Tls(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Protocol(_) => {
            Kind::Unavailable
        }
        E::Database(database) => kind_of_code(database.code().as_deref().unwrap_or_default()),
        _ => Kind::Bug,
    }
}

/// By SQLSTATE (PostgreSQL documentation, appendix A).
fn kind_of_code(code: &str) -> Kind {
    match code {
        // Serialization, deadlock, lock or statement time-out; a key or a database's name that a twin has just taken.
        "40001" | "40P01" | "55P03" | "57014" | "23505" | "42P04" => Kind::Conflict,
        // Larger than the server bears: a value in an index, say.
        "54000" => Kind::Data,
        // A standby that was not promoted yet; a transaction that was ended since nothing was heard of it.
        "25006" | "25P03" => Kind::Unavailable,
        _ => match code.get(..2) {
            // Connection, resources (disk, memory, connections), operator's intervention, system.
            Some("08" | "53" | "57" | "58" | "XX") => Kind::Unavailable,
            Some("22" | "23") => Kind::Data,
            _ => Kind::Bug,
        },
    }
}

/// Whether the role may not do what it wanted to.
fn lacks_privilege(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(database) if database.code().as_deref() == Some("42501"))
}

fn explain(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            let hint = match code.as_ref() {
                "42P01" | "42703" => "; is the schema current? `taskflow migrate up`",
                "28P01" | "28000" => "; check the user and password in postgres.url",
                "3D000" => "; create the database, then `taskflow migrate up`",
                "42501" => "; the role lacks a privilege, see ops/roles/postgres.sql",
                "53100" => "; the server's disk is full",
                _ => "",
            };
            format!("{} (SQLSTATE {code}){hint}", database.message())
        }
        sqlx::Error::PoolTimedOut => {
            "no connection within postgres.acquire_timeout_ms: the server is away, or connections_max is too low".into()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_commands_fault_is_never_data() {
        for code in ["08006", "53100", "53300", "57P01", "57P03", "58030", "25006", "25P03"] {
            assert_eq!(kind_of_code(code), Kind::Unavailable, "{code}");
        }
        for code in ["42P01", "42501", "28P01", "3D000", "0A000"] {
            assert_eq!(kind_of_code(code), Kind::Bug, "{code}");
        }
        for code in ["22P05", "22003", "23514", "23503", "54000"] {
            assert_eq!(kind_of_code(code), Kind::Data, "{code}");
        }
    }
}
