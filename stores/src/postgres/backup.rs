//! What backups and restores ask of Postgres: one moment that several sessions see, checksums of all tables, and
//! databases that are made, renamed and removed.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use super::pool::connect_alone;
use super::{PgPool, failed};
use crate::backoff::Backoff;
use crate::{Kind, StoreError};

/// How often those who are in a database that is renamed are sent away.
const EMPTY_EVERY: Duration = Duration::from_millis(100);

/// What is read of a whole database at one moment.
pub struct Moment {
    connection: PgConnection,
}

/// What a database says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Such as `15.18`.
    pub server: String,
    pub database: String,
    /// The newest version of the schema.
    pub schema: Option<i64>,
    pub bytes: i64,
    /// The server's clock at the moment.
    pub at: DateTime<Utc>,
    /// The place in the log of writes, as Postgres writes it; `None` on a standby.
    pub lsn: Option<String>,
    /// The cluster's own number.
    pub system: Option<String>,
    pub newest_receipt: Option<DateTime<Utc>>,
}

/// A table's rows: how many, and a checksum that does not depend on their order.
pub type Sums = BTreeMap<String, (i64, String)>;

impl Moment {
    /// Begins a transaction that sees one moment, for as long as it takes. It holds vacuum up meanwhile.
    pub async fn begin(pool: &PgPool) -> Result<Self, StoreError> {
        let options = long(pool);
        let mut connection = connect_alone(&options).await.map_err(failed("connect for a backup"))?;
        sqlx::query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .execute(&mut connection)
            .await
            .map_err(failed("begin a backup's moment"))?;
        Ok(Self { connection })
    }

    /// The moment's name, under which other sessions see it too.
    pub async fn export(&mut self) -> Result<String, StoreError> {
        sqlx::query_scalar("SELECT pg_export_snapshot()")
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed("export a backup's moment"))
    }

    pub async fn facts(&mut self) -> Result<Facts, StoreError> {
        let call = "look at the database";
        let (server, database, bytes, at, lsn): (String, String, i64, DateTime<Utc>, Option<String>) = sqlx::query_as(
            "SELECT current_setting('server_version'), current_database()::text, pg_database_size(current_database()),
                    now(), CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn()::text END",
        )
        .fetch_one(&mut self.connection)
        .await
        .map_err(failed(call))?;
        let system = system(&mut self.connection).await?;
        let schema = if self.has("_sqlx_migrations").await? {
            sqlx::query_scalar("SELECT max(version) FROM _sqlx_migrations WHERE success")
                .fetch_one(&mut self.connection)
                .await
                .map_err(failed(call))?
        } else {
            None
        };
        let newest_receipt = if self.has("receipts").await? {
            sqlx::query_scalar("SELECT max(finished_at) FROM receipts")
                .fetch_one(&mut self.connection)
                .await
                .map_err(failed(call))?
        } else {
            None
        };
        Ok(Facts { server, database, schema, bytes, at, lsn, system, newest_receipt })
    }

    async fn has(&mut self, table: &str) -> Result<bool, StoreError> {
        sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
            .bind(table)
            .fetch_one(&mut self.connection)
            .await
            .map_err(failed("look for a table"))
    }

    /// Rows and checksum of every table. Reads all of them.
    pub async fn sums(&mut self) -> Result<Sums, StoreError> {
        let call = "sum up the tables";
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_class c
             WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' ORDER BY 1",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(failed(call))?;
        let mut sums = Sums::new();
        for table in tables {
            let statement = format!(
                "SELECT count(*), COALESCE(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM {} t",
                quoted(&table)
            );
            let sum = sqlx::query_as(AssertSqlSafe(statement))
                .fetch_one(&mut self.connection)
                .await
                .map_err(failed(call))?;
            sums.insert(table, sum);
        }
        Ok(sums)
    }

    /// What is wrong with the database's own rules: constraints that were not checked, indexes that are not whole.
    pub async fn faults(&mut self) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT format('constraint %s of %s is not validated', conname, conrelid::regclass) FROM pg_constraint
             WHERE connamespace = current_schema()::regnamespace AND NOT convalidated
             UNION ALL
             SELECT format('index %s is not valid', indexrelid::regclass) FROM pg_index i
             JOIN pg_class c ON c.oid = i.indexrelid
             WHERE c.relnamespace = current_schema()::regnamespace AND NOT (i.indisvalid AND i.indisready)",
        )
        .fetch_all(&mut self.connection)
        .await
        .map_err(failed("check constraints and indexes"))
    }

    /// Ends the moment.
    pub async fn end(self) {
        // It has changed nothing.
        let _ = self.connection.close().await;
    }
}

/// Tables that are written all the time and say only who is there now: not even for a moment may they stand still.
const ALIVE: [&str; 3] = ["partition_leases", "scheduler_leader", "workers"];

/// For one lock, shorter than the time after which Postgres looks for deadlocks (1 s) and ends one of those concerned:
/// others take these locks in another order, and it is us who give up …
const LOCK_LONGEST: [&str; 3] =
    ["SET LOCAL lock_timeout = 300", "SET LOCAL statement_timeout = 800", ABANDONED];
/// … but each fifth time: only who waits for so long makes an autovacuum give way.
const LOCK_PATIENT: [&str; 3] =
    ["SET LOCAL lock_timeout = 1500", "SET LOCAL statement_timeout = 2500", ABANDONED];
/// Where this machine is lost with the locks in its hand, the server takes them back.
const ABANDONED: &str = "SET LOCAL idle_in_transaction_session_timeout = 3000";
/// Tries to have all the locks at once, and the pauses between them.
const LOCK_TRIES: u32 = 30;
const LOCK_AGAIN: Duration = Duration::from_millis(50);
const LOCK_AGAIN_MAX: Duration = Duration::from_secs(2);

/// A moment in which nobody was writing.
pub struct Quiet {
    pub moment: Moment,
    /// The place in the log of writes at which exactly what the moment sees of these tables was committed.
    pub lsn: String,
    pub tables: Vec<String>,
    /// Tables that this role may not lock, so that of them nothing is sure.
    pub others: Vec<String>,
}

/// Takes a moment of all tables but [`ALIVE`]. Writers wait for some tenths of a second at a time.
///
/// # Errors
/// Somebody holds one of the tables for a minute, or Postgres is away.
pub async fn quiet_moment(pool: &PgPool) -> Result<Quiet, StoreError> {
    let mut backoff = Backoff::new(LOCK_AGAIN, LOCK_AGAIN_MAX);
    loop {
        let longest = if backoff.tries() % 5 == 4 { LOCK_PATIENT } else { LOCK_LONGEST };
        match try_quiet_moment(pool, longest).await {
            Err(error) if error.kind == Kind::Conflict && backoff.tries() < LOCK_TRIES => {
                backoff.wait(&CancellationToken::new()).await;
            }
            done => return done,
        }
    }
}

async fn try_quiet_moment(pool: &PgPool, longest: [&'static str; 3]) -> Result<Quiet, StoreError> {
    let call = "take a quiet moment";
    let mut lock = connect_alone(&long(pool)).await.map_err(failed(call))?;
    let mut moment = Moment::begin(pool).await?;
    let taken = async {
        // What this role may only add to it can't lock. The heads come first: each batch begins with its partition's.
        let found: Vec<(String, bool)> = sqlx::query_as(
            "SELECT relname::text, has_table_privilege(oid, 'UPDATE') FROM pg_class
             WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' AND relpersistence = 'p'
               AND relname <> ALL ($1)
             ORDER BY relname <> 'partition_heads', relname",
        )
        .bind(ALIVE)
        .fetch_all(&mut lock)
        .await
        .map_err(failed(call))?;
        let (tables, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, may)| *may);
        let names = |found: Vec<(String, bool)>| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let (tables, others) = (names(tables), names(others));
        if tables.is_empty() {
            let way = "the role may update no table, and so lock none; see ops/roles/postgres.sql";
            return Err(StoreError::new("postgres", call, Kind::Bug, way));
        }
        let quoted: Vec<String> = tables.iter().map(|name| quoted(name)).collect();
        for statement in ["BEGIN"].into_iter().chain(longest) {
            sqlx::query(statement).execute(&mut lock).await.map_err(failed(call))?;
        }
        let all = AssertSqlSafe(format!("LOCK TABLE {} IN EXCLUSIVE MODE", quoted.join(", ")));
        sqlx::query(all).execute(&mut lock).await.map_err(not_quiet(call))?;
        // Its first statement fixes what it sees; it names no table, whose lock somebody else may wait for.
        sqlx::query("SELECT 1").execute(&mut moment.connection).await.map_err(failed(call))?;
        let lsn = sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text")
            .fetch_one(&mut lock)
            .await
            .map_err(failed(call))?;
        Ok((lsn, tables, others))
    };
    let taken = taken.await;
    // The end of the session gives the locks back.
    let _ = lock.close().await;
    match taken {
        Ok((lsn, tables, others)) => Ok(Quiet { moment, lsn, tables, others }),
        Err(error) => {
            moment.end().await;
            Err(error)
        }
    }
}

/// A statement that was ended for its time has met others too.
fn not_quiet(call: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let is_late = code.is_some_and(|code| code == "57014");
        let error = failed(call)(error);
        if is_late { StoreError::new("postgres", call, Kind::Conflict, error) } else { error }
    }
}

/// Sessions that work for long, and write rows as text in one way wherever they are.
fn long(pool: &PgPool) -> PgConnectOptions {
    pool.connect_options().as_ref().clone().application_name("taskflow backup").options([
        ("statement_timeout", "0"),
        ("lock_timeout", "10000"),
        ("idle_in_transaction_session_timeout", "0"),
        ("enable_seqscan", "on"),
        ("timezone", "UTC"),
        ("datestyle", "ISO"),
        ("intervalstyle", "iso_8601"),
        ("extra_float_digits", "1"),
        ("bytea_output", "hex"),
    ])
}

/// The cluster's own number; `None` where the role may not read it.
async fn system(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    let call = "read the cluster's number";
    let may: bool = sqlx::query_scalar("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
        .fetch_one(&mut *connection)
        .await
        .map_err(failed(call))?;
    if !may {
        return Ok(None);
    }
    sqlx::query_scalar("SELECT system_identifier::text FROM pg_control_system()")
        .fetch_one(&mut *connection)
        .await
        .map(Some)
        .map_err(failed(call))
}

/// A name as SQL takes it.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A pool like this one for another database of the server.
pub fn other_database(pool: &PgPool, database: &str) -> PgPool {
    pool.of_other(database, 2)
}

/// Whether there is a database of this name.
pub async fn has_database(pool: &PgPool, name: &str) -> Result<bool, StoreError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
        .bind(name)
        .fetch_one(pool)
        .await
        .map_err(failed("look for a database"))
}

/// Makes an empty database.
pub async fn create_database(pool: &PgPool, name: &str) -> Result<(), StoreError> {
    alone(pool, "create a database", format!("CREATE DATABASE {} TEMPLATE template0", quoted(name))).await
}

/// Removes a database, if it is there; sessions in it are ended.
pub async fn drop_database(pool: &PgPool, name: &str) -> Result<(), StoreError> {
    alone(pool, "remove a database", format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
}

/// Gives databases other names, `(from, to)`, all of them or none, whatever dies meanwhile; sessions in them are ended.
///
/// The server refuses while somebody is in the database, for five seconds, and lets nobody else in meanwhile: so those
/// within are ended from beside, and no database is ever closed by a setting that would outlast this process.
pub async fn rename_databases(pool: &PgPool, names: &[(&str, &str)]) -> Result<(), StoreError> {
    let call = "rename a database";
    let mut connection = connect_alone(&long(pool)).await.map_err(failed(call))?;
    let rename = async {
        #[expect(clippy::disallowed_methods, reason = "its connection is closed with it")]
        let mut transaction = connection.begin().await?;
        for (from, to) in names {
            let statement = format!("ALTER DATABASE {} RENAME TO {}", quoted(from), quoted(to));
            sqlx::query(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
            crate::crash::point("renamed");
        }
        transaction.commit().await
    };
    let from: Vec<&str> = names.iter().map(|(from, _)| *from).collect();
    // It ends with the rename, which waits for five seconds a database at most.
    let empty = async {
        let mut beside = connect_alone(&long(pool)).await?;
        loop {
            sqlx::query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = ANY($1)")
                .bind(&from)
                .execute(&mut beside)
                .await?;
            tokio::time::sleep(EMPTY_EVERY).await;
        }
    };
    let renamed: Result<(), sqlx::Error> = tokio::select! {
        biased;
        renamed = rename => renamed,
        failed = empty => failed,
    };
    let _ = connection.close().await;
    renamed.map_err(failed(call)).map_err(needs_owner)
}

/// A statement that is no part of a transaction, with as much time as it takes.
async fn alone(pool: &PgPool, call: &'static str, statement: String) -> Result<(), StoreError> {
    let mut connection = connect_alone(&long(pool)).await.map_err(failed(call))?;
    let done = sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await.map_err(failed(call));
    let _ = connection.close().await;
    done.map(|_| ()).map_err(needs_owner)
}

fn needs_owner(error: StoreError) -> StoreError {
    match error.kind {
        Kind::Bug => StoreError {
            detail: format!("{}; it takes a role with CREATEDB that owns the database", error.detail),
            ..error
        },
        _ => error,
    }
}

/// The folder of the server's data, as it calls it; `None` where the role may not read it.
pub async fn data_directory(pool: &PgPool) -> Result<Option<String>, StoreError> {
    let may: bool = sqlx::query_scalar("SELECT pg_has_role('pg_read_all_settings', 'USAGE')")
        .fetch_one(pool)
        .await
        .map_err(failed("read a role"))?;
    if !may {
        return Ok(None);
    }
    sqlx::query_scalar("SHOW data_directory")
        .fetch_one(pool)
        .await
        .map(Some)
        .map_err(failed("read a setting"))
}
