//! What people do to a user beside its commands: another role, another password. Each is one transaction with its event
//! in the audit trail and the order to end that user's sessions.
//!
//! Ending them is Redis's part and follows: [`endings`] says what is to be done, [`ended`] that it was.

use taskflow_core::User;
use taskflow_core::state::Role;
use taskflow_core::system_event::{self, Change, Occurrence};
use uuid::Uuid;

use super::silence::{self, ANSWER};
use super::{PgPool, Transaction, begin, failed, system_events, users};
use crate::StoreError;

/// Any number that nobody else uses for an advisory lock in this database: roles change one after the other, or two
/// admins could each take the other's role away, and nobody would be left.
const ROLES: i64 = 0x7461_736b_726f_6c65;

/// Why something can't be done to a user.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("there is no user {0}")]
    Unknown(Uuid),
    #[error("this is the last admin; make another one first")]
    LastAdmin,
    #[error("the password was changed meanwhile")]
    ChangedMeanwhile,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gives a user another role. Returns the user as it is then; one who has the role already stays as it is.
pub async fn change_role(
    pool: &PgPool,
    user: Uuid,
    role: Role,
    change: &Change<'_>,
) -> Result<User, Refused> {
    let call = "change a role";
    let mut transaction = begin(pool).await.map_err(failed(call))?;
    sqlx::query("/* one_role_at_a_time */ SELECT pg_advisory_xact_lock($1)")
        .bind(ROLES)
        .execute(&mut *transaction)
        .await
        .map_err(failed(call))?;
    let before = lock(&mut transaction, user).await?;
    if before.role == role {
        return Ok(before);
    }
    if before.role == Role::Admin {
        let others: bool = sqlx::query_scalar(
            "/* other_admins */ SELECT EXISTS (SELECT FROM users WHERE role = 'admin' AND id <> $1)",
        )
        .bind(user)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed(call))?;
        if !others {
            return Err(Refused::LastAdmin);
        }
    }
    let after = User { role, updated_at: change.at, version: before.version + 1, ..before.clone() };
    sqlx::query(
        "/* change_role */
        UPDATE users SET role = $2::text::user_role, updated_at = $3, version = $4 WHERE id = $1",
    )
    .bind(user)
    .bind(role.as_str())
    .bind(after.updated_at)
    .bind(after.version)
    .execute(&mut *transaction)
    .await
    .map_err(failed(call))?;
    finish(transaction, &after, system_event::role_changed(change, user, before.role, role)).await?;
    Ok(after)
}

/// Gives a user another password, by its hash. Returns the user as it is then. Who had to know the old one names its hash,
/// `checked`: whoever has reset the password since is not overruled by it.
pub async fn change_password(
    pool: &PgPool,
    user: Uuid,
    hash: &str,
    checked: Option<&str>,
    change: &Change<'_>,
) -> Result<User, Refused> {
    let call = "change a password";
    let mut transaction = begin(pool).await.map_err(failed(call))?;
    let before = lock(&mut transaction, user).await?;
    if checked.is_some_and(|checked| checked != before.password_hash) {
        return Err(Refused::ChangedMeanwhile);
    }
    let after =
        User { password_hash: hash.to_owned(), updated_at: change.at, version: before.version + 1, ..before };
    sqlx::query(
        "/* change_password */
        UPDATE users SET password_hash = $2, updated_at = $3, version = $4 WHERE id = $1",
    )
    .bind(user)
    .bind(hash)
    .bind(after.updated_at)
    .bind(after.version)
    .execute(&mut *transaction)
    .await
    .map_err(failed(call))?;
    finish(transaction, &after, system_event::password_changed(change, user)).await?;
    Ok(after)
}

async fn lock(transaction: &mut Transaction, user: Uuid) -> Result<User, Refused> {
    users::load_for_update(transaction, &[user]).await?.pop().ok_or(Refused::Unknown(user))
}

async fn finish(mut transaction: Transaction, user: &User, event: Occurrence) -> Result<(), StoreError> {
    system_events::insert(&mut transaction, &[event]).await?;
    sqlx::query(
        "/* order_session_ending */
        INSERT INTO session_endings (user_id, version) VALUES ($1, $2)
        ON CONFLICT (user_id) DO UPDATE SET version = greatest(session_endings.version, excluded.version)",
    )
    .bind(user.id)
    .bind(user.version)
    .execute(&mut *transaction)
    .await
    .map_err(failed("order the end of sessions"))?;
    transaction.commit().await.map_err(failed("change a user"))
}

/// Users whose sessions are to be ended, as they are now, each with the version that was ordered; at most `limit`.
pub async fn endings(pool: &PgPool, limit: i64) -> Result<Vec<(i32, User)>, StoreError> {
    let orders: Vec<(Uuid, i32)> =
        sqlx::query_as("/* session_endings */ SELECT user_id, version FROM session_endings LIMIT $1")
            .bind(limit)
            .fetch_all(pool)
            .await
            .map_err(failed("look for sessions to end"))?;
    if orders.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<Uuid> = orders.iter().map(|(id, _)| *id).collect();
    let found = silence::within(ANSWER, "look for sessions to end", users::read_all(pool, &ids)).await?;
    let version = |user: &User| orders.iter().find(|(id, _)| *id == user.id).map(|(_, version)| *version);
    Ok(found.into_iter().filter_map(|user| Some((version(&user)?, user))).collect())
}

/// Removes an order that was carried out, unless a newer one has taken its place.
pub async fn ended(pool: &PgPool, user: Uuid, version: i32) -> Result<(), StoreError> {
    sqlx::query("/* sessions_ended */ DELETE FROM session_endings WHERE user_id = $1 AND version <= $2")
        .bind(user)
        .bind(version)
        .execute(pool)
        .await
        .map_err(failed("note the end of sessions"))?;
    Ok(())
}
