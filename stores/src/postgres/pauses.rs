//! The table `pauses`: what operators hold back. Workers learn of it with their heartbeat.

use chrono::{DateTime, Utc};
use serde::Serialize;
use taskflow_core::pause::Scope;

use super::{PgPool, failed};
use crate::StoreError;

/// Characters of a reason.
pub const REASON_MAX: usize = 500;

/// One pause, as people see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Pause {
    /// `all`, `partition:03` or `type:task.create`.
    pub scope: String,
    pub reason: String,
    pub author: String,
    pub since: DateTime<Utc>,
}

/// Every pause, in the order of their scopes.
pub async fn list(pool: &PgPool) -> Result<Vec<Pause>, StoreError> {
    sqlx::query_as("/* list_pauses */ SELECT scope, reason, author, since FROM pauses ORDER BY scope")
        .fetch_all(pool)
        .await
        .map_err(failed("list the pauses"))
}

/// Pauses a scope. One that is paused already keeps its beginning and gets the new reason and author.
pub async fn put(pool: &PgPool, scope: &Scope, reason: &str, author: &str) -> Result<Pause, StoreError> {
    sqlx::query_as(
        "/* put_pause */
        INSERT INTO pauses (scope, reason, author) VALUES ($1, $2, $3)
        ON CONFLICT (scope) DO UPDATE SET reason = excluded.reason, author = excluded.author
        RETURNING scope, reason, author, since",
    )
    .bind(scope.to_string())
    .bind(reason)
    .bind(author)
    .fetch_one(pool)
    .await
    .map_err(failed("pause"))
}

/// Resumes a scope. Returns what was paused; `None` if it was not.
pub async fn remove(pool: &PgPool, scope: &Scope) -> Result<Option<Pause>, StoreError> {
    sqlx::query_as(
        "/* remove_pause */ DELETE FROM pauses WHERE scope = $1 RETURNING scope, reason, author, since",
    )
    .bind(scope.to_string())
    .fetch_optional(pool)
    .await
    .map_err(failed("resume"))
}
