//! The table `users`.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};
use taskflow_core::User;
use taskflow_core::state::{Role, email_key};
use uuid::Uuid;

use super::tasks::{all_there, unknown_word};
use super::{PgPool, failed};
use crate::{Kind, StoreError};

const COLUMNS: &str = "id, email, password_hash, role::text, profile, created_at, updated_at, version";

/// Loads users and locks them until the transaction ends. `ids` must be sorted.
pub async fn load_for_update(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<User>, StoreError> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* load_users */ SELECT {COLUMNS} FROM users WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE"
    )))
    .bind(ids)
    .try_map(read)
    .fetch_all(connection)
    .await
    .map_err(failed("load users"))
}

/// The roles of users. Who is missing does not exist. A batch learns them with its claim ([`super::batch::claim`]).
pub(super) async fn roles(
    connection: &mut PgConnection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Role>, StoreError> {
    let rows: Vec<(Uuid, bool)> =
        sqlx::query_as("/* user_roles */ SELECT id, role = 'admin' FROM users WHERE id = ANY($1)")
            .bind(ids)
            .fetch_all(connection)
            .await
            .map_err(failed("load roles"))?;
    Ok(rows.into_iter().map(|(id, admin)| (id, if admin { Role::Admin } else { Role::User })).collect())
}

/// Who holds which of these addresses (in lower case).
pub async fn holders(
    connection: &mut PgConnection,
    emails: &[String],
) -> Result<HashMap<String, Uuid>, StoreError> {
    if emails.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(String, Uuid)> =
        sqlx::query_as("/* email_holders */ SELECT lower(email), id FROM users WHERE lower(email) = ANY($1)")
            .bind(emails)
            .fetch_all(connection)
            .await
            .map_err(failed("look up addresses"))?;
    Ok(rows.into_iter().collect())
}

/// The user with an address, whatever its capitals.
pub async fn by_email(pool: &PgPool, email: &str) -> Result<Option<User>, StoreError> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* user_by_email */ SELECT {COLUMNS} FROM users WHERE lower(email) = $1"
    )))
    .bind(email_key(email))
    .try_map(read)
    .fetch_optional(pool)
    .await
    .map_err(failed("look up a user"))
}

/// The user with an id.
pub async fn by_id(pool: &PgPool, id: Uuid) -> Result<Option<User>, StoreError> {
    sqlx::query(sqlx::AssertSqlSafe(format!("/* user_by_id */ SELECT {COLUMNS} FROM users WHERE id = $1")))
        .bind(id)
        .try_map(read)
        .fetch_optional(pool)
        .await
        .map_err(failed("look up a user"))
}

/// Reads users as they are, outside a transaction.
pub async fn read_all(pool: &PgPool, ids: &[Uuid]) -> Result<Vec<User>, StoreError> {
    let mut connection = pool.acquire().await.map_err(failed("read users"))?;
    read_many(&mut connection, ids).await
}

/// Reads users as they are.
pub async fn read_many(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<User>, StoreError> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "/* read_users */ SELECT {COLUMNS} FROM users WHERE id = ANY($1) ORDER BY id"
    )))
    .bind(ids)
    .try_map(read)
    .fetch_all(connection)
    .await
    .map_err(failed("read users"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn read(row: PgRow) -> Result<User, sqlx::Error> {
    let role: &str = row.try_get(3)?;
    let profile: Option<Json<Value>> = row.try_get(4)?;
    Ok(User {
        id: row.try_get(0)?,
        email: row.try_get(1)?,
        password_hash: row.try_get(2)?,
        role: Role::from_word(role).ok_or_else(|| unknown_word("role", role))?,
        profile: profile.and_then(|Json(value)| match value {
            Value::Object(map) => Some(map),
            _ => None,
        }),
        created_at: row.try_get(5)?,
        updated_at: row.try_get(6)?,
        version: row.try_get(7)?,
    })
}

/// Inserts new users in one statement.
///
/// # Errors
/// [`Kind::Conflict`] when somebody else has taken an address or an id meanwhile. The other one has committed by
/// then, so the next load sees it and the decision is made anew.
pub async fn insert(connection: &mut PgConnection, users: &[User]) -> Result<(), StoreError> {
    if users.is_empty() {
        return Ok(());
    }
    // In the order of the address: two batches that want the same ones wait for each other in one direction.
    let mut users: Vec<&User> = users.iter().collect();
    users.sort_by_key(|user| email_key(&user.email));
    let inserted = sqlx::query(
        "/* insert_users */
        INSERT INTO users (id, email, password_hash, role, profile, created_at, updated_at, version)
        SELECT * FROM UNNEST($1::uuid[], $2::text[], $3::text[], $4::text[]::user_role[], $5::jsonb[],
                             $6::timestamptz[], $7::timestamptz[], $8::integer[])
        ON CONFLICT DO NOTHING",
    )
    .bind(users.iter().map(|u| u.id).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.email.as_str()).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.password_hash.as_str()).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.role.as_str()).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.profile.as_ref().map(Json)).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.created_at).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.updated_at).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.version).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("insert users"))?
    .rows_affected();
    if inserted == users.len() as u64 {
        return Ok(());
    }
    Err(StoreError::new("postgres", "insert users", Kind::Conflict, "an address was taken meanwhile"))
}

/// Writes the final states of changed users in one statement.
pub async fn update(connection: &mut PgConnection, users: &[User]) -> Result<(), StoreError> {
    if users.is_empty() {
        return Ok(());
    }
    let done = sqlx::query(
        "/* update_users */
        UPDATE users u SET profile = n.profile, updated_at = n.updated_at, version = n.version
        FROM UNNEST($1::uuid[], $2::jsonb[], $3::timestamptz[], $4::integer[]) AS n (id, profile, updated_at, version)
        WHERE u.id = n.id",
    )
    .bind(users.iter().map(|u| u.id).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.profile.as_ref().map(Json)).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.updated_at).collect::<Vec<_>>())
    .bind(users.iter().map(|u| u.version).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("update users"))?;
    all_there("update users", done.rows_affected(), users.len())
}
