//! What the tests' job `test.probe` writes, into a table that the tests make.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::failed;
use crate::StoreError;

/// Writes one effect.
pub async fn effect(
    connection: &mut PgConnection,
    schedule: &str,
    due_at: DateTime<Utc>,
    epoch: i64,
) -> Result<(), StoreError> {
    sqlx::query("/* probe_effect */ INSERT INTO probe_effects (schedule, due_at, epoch) VALUES ($1, $2, $3)")
        .bind(schedule)
        .bind(due_at)
        .bind(epoch)
        .execute(connection)
        .await
        .map_err(failed("write a probe's effect"))?;
    Ok(())
}
