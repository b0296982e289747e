//! The table `api_keys`. Making and revoking one is one transaction with its event in the audit trail.

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use taskflow_core::api_key::{ApiKey, Scope};
use taskflow_core::system_event::{self, Change};
use uuid::Uuid;

use super::tasks::unknown_word;
use super::{PgPool, begin, failed, system_events};
use crate::StoreError;

const COLUMNS: &str =
    "id, name, scopes, source_prefix, created_at, created_by, expires_at, last_used_at, revoked_at, digest";

/// A key with the digest that its holder's is compared with.
#[derive(Debug, Clone)]
pub struct Stored {
    pub key: ApiKey,
    pub digest: Vec<u8>,
}

/// Keeps a new key.
pub async fn create(
    pool: &PgPool,
    key: &ApiKey,
    digest: &[u8; 32],
    change: &Change<'_>,
) -> Result<(), StoreError> {
    let call = "create an API key";
    let mut transaction = begin(pool).await.map_err(failed(call))?;
    sqlx::query(
        "/* create_api_key */
        INSERT INTO api_keys (id, name, digest, scopes, source_prefix, created_at, created_by, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(key.id)
    .bind(&key.name)
    .bind(digest.as_slice())
    .bind(key.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>())
    .bind(key.source_prefix.as_deref())
    .bind(key.created_at)
    .bind(key.created_by)
    .bind(key.expires_at)
    .execute(&mut *transaction)
    .await
    .map_err(failed(call))?;
    system_events::insert(&mut transaction, &[system_event::api_key_created(change, key)]).await?;
    transaction.commit().await.map_err(failed(call))
}

/// A key by its id, good or not.
pub async fn find(pool: &PgPool, id: Uuid) -> Result<Option<Stored>, StoreError> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* find_api_key */ SELECT {COLUMNS} FROM api_keys WHERE id = $1"
    )))
    .bind(id)
    .try_map(read)
    .fetch_optional(pool)
    .await
    .map_err(failed("look up an API key"))
}

/// Keys, the newest first, at most `limit`; those made before `before` alone, if it is given.
pub async fn list(pool: &PgPool, before: Option<Uuid>, limit: i64) -> Result<Vec<ApiKey>, StoreError> {
    // Ids sort by time.
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* list_api_keys */
        SELECT {COLUMNS} FROM api_keys WHERE $1::uuid IS NULL OR id < $1 ORDER BY id DESC LIMIT $2"
    )))
    .bind(before)
    .bind(limit)
    .try_map(read)
    .fetch_all(pool)
    .await
    .map_err(failed("list API keys"))?;
    Ok(rows.into_iter().map(|stored| stored.key).collect())
}

/// Revokes a key. One that is revoked already stays as it is; `None` if there is none.
pub async fn revoke(pool: &PgPool, id: Uuid, change: &Change<'_>) -> Result<Option<ApiKey>, StoreError> {
    let call = "revoke an API key";
    let mut transaction = begin(pool).await.map_err(failed(call))?;
    let revoked = sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* revoke_api_key */
        UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL RETURNING {COLUMNS}"
    )))
    .bind(id)
    .bind(change.at)
    .try_map(read)
    .fetch_optional(&mut *transaction)
    .await
    .map_err(failed(call))?;
    let Some(Stored { key, .. }) = revoked else {
        return Ok(find(pool, id).await?.map(|stored| stored.key));
    };
    system_events::insert(&mut transaction, &[system_event::api_key_revoked(change, &key)]).await?;
    transaction.commit().await.map_err(failed(call))?;
    Ok(Some(key))
}

/// Notes when keys were used last, in one statement.
pub async fn note_use(pool: &PgPool, uses: &[(Uuid, DateTime<Utc>)]) -> Result<(), StoreError> {
    if uses.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "/* note_api_key_use */
        UPDATE api_keys k SET last_used_at = u.at
        FROM UNNEST($1::uuid[], $2::timestamptz[]) AS u (id, at)
        WHERE k.id = u.id AND (k.last_used_at IS NULL OR k.last_used_at < u.at)",
    )
    .bind(uses.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .bind(uses.iter().map(|(_, at)| *at).collect::<Vec<_>>())
    .execute(pool)
    .await
    .map_err(failed("note the use of API keys"))?;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn read(row: PgRow) -> Result<Stored, sqlx::Error> {
    let words: Vec<String> = row.try_get(2)?;
    let scopes = words.iter().map(|word| Scope::from_word(word).ok_or_else(|| unknown_word("scope", word)));
    let key = ApiKey {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        scopes: scopes.collect::<Result<_, _>>()?,
        source_prefix: row.try_get(3)?,
        created_at: row.try_get(4)?,
        created_by: row.try_get(5)?,
        expires_at: row.try_get(6)?,
        last_used_at: row.try_get(7)?,
        revoked_at: row.try_get(8)?,
    };
    Ok(Stored { key, digest: row.try_get(9)? })
}
