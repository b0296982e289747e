//! The table `legal_holds`: what must not be removed while a matter lasts.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::StoreError;

/// Characters of a reason.
pub const WHY_MAX: usize = 1_000;
/// Holds that may stand at a time: each is looked up in the audit trail at every run.
pub const HOLDS_MAX: i64 = 10_000;

/// One hold, as people see it.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Hold {
    pub id: Uuid,
    /// `entity` or `actor`.
    pub scope: String,
    pub subject: Uuid,
    pub why: String,
    pub author: String,
    pub since: DateTime<Utc>,
    /// When the audit trail's events were marked last; `None`: not yet.
    #[sqlx(rename = "applied_at")]
    pub appliedat: Option<DateTime<Utc>>,
    #[sqlx(rename = "released_at")]
    pub releasedat: Option<DateTime<Utc>>,
    #[sqlx(rename = "released_by")]
    pub releasedby: Option<String>,
    /// When the events had their own times again.
    #[sqlx(rename = "lifted_at")]
    pub liftedat: Option<DateTime<Utc>>,
}

/// What a hold is put on.
#[derive(Debug, Clone)]
pub struct New<'n> {
    pub id: Uuid,
    pub scope: &'n str,
    pub subject: Uuid,
    pub why: &'n str,
    pub author: &'n str,
}

/// Puts a hold; one that stands already stays as it is. `None` if there are too many.
pub async fn put(pool: &PgPool, new: &New<'_>) -> Result<Option<Hold>, StoreError> {
    let put: Option<Hold> = sqlx::query_as(
        "/* put_hold */
        INSERT INTO legal_holds (id, scope, subject, why, author, since)
        SELECT $1, $2, $3, $4, $5, now() WHERE (SELECT count(*) FROM legal_holds WHERE released_at IS NULL) < $6
        ON CONFLICT (scope, subject) WHERE released_at IS NULL DO NOTHING
        RETURNING *",
    )
    .bind(new.id)
    .bind(new.scope)
    .bind(new.subject)
    .bind(new.why)
    .bind(new.author)
    .bind(HOLDS_MAX)
    .fetch_optional(pool)
    .await
    .map_err(failed("put a legal hold"))?;
    match put {
        Some(put) => Ok(Some(put)),
        None => sqlx::query_as(
            "/* standing_hold */ SELECT * FROM legal_holds WHERE scope = $1 AND subject = $2 AND released_at IS NULL",
        )
        .bind(new.scope)
        .bind(new.subject)
        .fetch_optional(pool)
        .await
        .map_err(failed("put a legal hold")),
    }
}

/// Releases a hold; `None` if it does not stand.
pub async fn release(pool: &PgPool, id: Uuid, by: &str) -> Result<Option<Hold>, StoreError> {
    sqlx::query_as(
        "/* release_hold */
        UPDATE legal_holds SET released_at = now(), released_by = $2 WHERE id = $1 AND released_at IS NULL RETURNING *",
    )
    .bind(id)
    .bind(by)
    .fetch_optional(pool)
    .await
    .map_err(failed("release a legal hold"))
}

/// The holds that stand, or all that there ever were; the newest first, a bounded number.
pub async fn list(pool: &PgPool, all: bool) -> Result<Vec<Hold>, StoreError> {
    sqlx::query_as(
        "/* list_holds */
        SELECT * FROM legal_holds WHERE $1 OR released_at IS NULL ORDER BY since DESC, id DESC LIMIT $2",
    )
    .bind(all)
    .bind(HOLDS_MAX)
    .fetch_all(pool)
    .await
    .map_err(failed("list the legal holds"))
}

/// One hold.
pub async fn read(pool: &PgPool, id: Uuid) -> Result<Option<Hold>, StoreError> {
    sqlx::query_as("/* read_hold */ SELECT * FROM legal_holds WHERE id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await
        .map_err(failed("read a legal hold"))
}

/// Holds that were released, while their events still bear the stamp.
pub async fn unlifted(pool: &PgPool) -> Result<Vec<Hold>, StoreError> {
    sqlx::query_as(
        "/* unlifted_holds */
        SELECT * FROM legal_holds WHERE released_at IS NOT NULL AND lifted_at IS NULL ORDER BY released_at LIMIT 100",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("find released legal holds"))
}

/// Says that a hold's events are marked, or have their own times again.
pub async fn done(connection: &mut PgConnection, id: Uuid, lifted: bool) -> Result<(), StoreError> {
    sqlx::query(
        "/* hold_done */
        UPDATE legal_holds SET applied_at = CASE WHEN $2 THEN applied_at ELSE now() END,
            lifted_at = CASE WHEN $2 THEN now() ELSE lifted_at END
        WHERE id = $1",
    )
    .bind(id)
    .bind(lifted)
    .execute(connection)
    .await
    .map_err(failed("note a legal hold"))?;
    Ok(())
}
