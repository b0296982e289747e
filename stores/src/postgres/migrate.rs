//! The schema's versions, both ways.
//!
//! One process migrates at a time: the lock is polled, since a blocked `pg_advisory_lock` holds a snapshot that
//! `CREATE INDEX CONCURRENTLY` of the other process waits for, for ever.

use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::{Connection, PgConnection};

use super::pool::connect_alone;
use super::{PgPool, failed, wal};
use crate::{Kind, StoreError};

static MIGRATOR: Migrator = sqlx::migrate!("../migrations/postgres");

/// Any number that nobody else uses for an advisory lock in this database.
const LOCK: i64 = 0x7461_736b_666c_6f77;
const LOCK_WAIT_S: u64 = 60;

/// One version of the schema.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Version {
    pub version: i64,
    pub description: String,
    pub applied: bool,
}

/// Every known version and whether the database has it.
pub async fn status(pool: &PgPool) -> Result<Vec<Version>, StoreError> {
    let mut connection = pool.acquire().await.map_err(failed("read the schema's version"))?;
    let applied = applied(&mut connection).await?;
    let versions = MIGRATOR.iter().filter(|migration| !migration.migration_type.is_down_migration());
    Ok(versions
        .map(|migration| Version {
            version: migration.version,
            description: migration.description.to_string(),
            applied: applied.contains(&migration.version),
        })
        .collect())
}

/// The newest version that this program knows.
pub fn newest() -> i64 {
    MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// What a migration has done.
#[derive(Debug)]
pub struct Migrated {
    /// The versions that were applied, or reverted.
    pub versions: Vec<i64>,
    /// The restore point of just before, where the role may note one.
    pub restore_point: Option<String>,
}

/// Brings the schema up to `target` (`None`: the newest).
pub async fn up(pool: &PgPool, target: Option<i64>) -> Result<Migrated, StoreError> {
    run(pool, async |connection| {
        drop_invalid_indexes(connection).await?;
        match target {
            Some(target) => MIGRATOR.run_to(target, connection).await,
            None => MIGRATOR.run(connection).await,
        }
        .map_err(broken)
    })
    .await
}

/// Takes the schema down to `target` (0: nothing is left).
pub async fn down(pool: &PgPool, target: i64) -> Result<Migrated, StoreError> {
    run(pool, async |connection| MIGRATOR.undo(connection, target).await.map_err(broken)).await
}

async fn run(
    pool: &PgPool,
    work: impl AsyncFnOnce(&mut PgConnection) -> Result<(), StoreError>,
) -> Result<Migrated, StoreError> {
    // A connection of its own: building an index may take longer than the pool's statements may.
    let mut connection = connect_alone(&pool.connect_options().as_ref().clone().options([
        ("statement_timeout", "0"),
        ("lock_timeout", "10000"),
        ("idle_in_transaction_session_timeout", "0"),
    ]))
    .await
    .map_err(failed("connect to migrate"))?;
    lock(&mut connection).await?;
    let before = applied(&mut connection).await?;
    let version = before.last().copied().unwrap_or(0);
    let restore_point = wal::note_place(&mut connection, &format!("schema_{version}")).await;
    let result = work(&mut connection).await;
    let after = applied(&mut connection).await;
    // Closing ends the session and with it the lock.
    let _ = connection.close().await;
    result.map_err(|error| match &restore_point {
        Some(point) => StoreError {
            detail: format!("{}; the restore point before it is {point}", error.detail),
            ..error
        },
        None => error,
    })?;
    let after = after?;
    let changed = |from: &[i64], to: &[i64]| -> Vec<i64> {
        to.iter().filter(|version| !from.contains(version)).copied().collect()
    };
    let mut versions = changed(&before, &after);
    versions.extend(changed(&after, &before));
    Ok(Migrated { versions, restore_point })
}

async fn lock(connection: &mut PgConnection) -> Result<(), StoreError> {
    for _ in 0..LOCK_WAIT_S * 10 {
        let got: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(LOCK)
            .fetch_one(&mut *connection)
            .await
            .map_err(failed("lock the schema"))?;
        if got {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(StoreError::unavailable(
        "postgres",
        "lock the schema",
        format!("another process has been migrating for {LOCK_WAIT_S} s; wait for it, then try again"),
    ))
}

/// A `CREATE INDEX CONCURRENTLY` that failed leaves an invalid index, which `IF NOT EXISTS` would then skip.
async fn drop_invalid_indexes(connection: &mut PgConnection) -> Result<(), StoreError> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i
         JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE NOT i.indisvalid AND n.nspname = current_schema() AND c.relname LIKE 'idx\\_%'",
    )
    .fetch_all(&mut *connection)
    .await
    .map_err(failed("look for invalid indexes"))?;
    for name in names {
        tracing::warn!(index = name, "An index that was not built to its end is dropped and built anew.");
        sqlx::query(sqlx::AssertSqlSafe(format!("DROP INDEX CONCURRENTLY IF EXISTS {name}")))
            .execute(&mut *connection)
            .await
            .map_err(failed("drop an invalid index"))?;
    }
    Ok(())
}

async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, StoreError> {
    let table = "_sqlx_migrations";
    connection.ensure_migrations_table(table).await.map_err(broken)?;
    let applied = connection.list_applied_migrations(table).await.map_err(broken)?;
    Ok(applied.into_iter().map(|migration| migration.version).collect())
}

fn broken(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) => failed("migrate")(error),
        MigrateError::ExecuteMigration(error, version) => {
            let error = failed("migrate")(error);
            StoreError { detail: format!("version {version}: {}", error.detail), ..error }
        }
        other => StoreError::new("postgres", "migrate", Kind::Bug, other),
    }
}
