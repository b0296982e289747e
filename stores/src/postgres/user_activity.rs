//! The table `user_activity`: who has read lately, as `taskflow_core::heat` counts it.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::StoreError;

/// Adds what users have read. Who is no user is left out.
pub async fn add(pool: &PgPool, heats: &[(Uuid, f64)]) -> Result<(), StoreError> {
    let (users, heats): (Vec<Uuid>, Vec<f64>) = heats.iter().copied().unzip();
    // The sum of two logarithms' numbers, as `heat::together` makes it. Sorted, so that two processes never wait for
    // each other in a circle.
    sqlx::query(
        "/* user_activity */
        INSERT INTO user_activity AS kept (user_id, heat)
        SELECT new.user_id, new.heat FROM UNNEST($1::uuid[], $2::double precision[]) AS new (user_id, heat)
        JOIN users ON users.id = new.user_id
        ORDER BY new.user_id
        ON CONFLICT (user_id) DO UPDATE SET heat = GREATEST(kept.heat, EXCLUDED.heat)
            + ln(1 + power(2::double precision, -LEAST(abs(kept.heat - EXCLUDED.heat), 1000))) / ln(2::double precision)",
    )
    .bind(users)
    .bind(heats)
    .execute(pool)
    .await
    .map(drop)
    .map_err(failed("note who has read"))
}

/// Those that have read most, in this order, after one that is known, as far as `coldest`.
pub async fn hottest(
    pool: &PgPool,
    after: Option<(f64, Uuid)>,
    coldest: f64,
    limit: i64,
) -> Result<Vec<(f64, Uuid)>, StoreError> {
    let (heat, user) = after.unwrap_or((f64::INFINITY, Uuid::nil()));
    sqlx::query_as(
        "/* hottest_users */
        SELECT heat, user_id FROM user_activity
        WHERE heat <= $1 AND (heat < $1 OR user_id > $2) AND heat >= $3
        ORDER BY heat DESC, user_id LIMIT $4",
    )
    .bind(heat)
    .bind(user)
    .bind(coldest)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(failed("look who has read most"))
}

/// Forgets some that have read nothing for long. How many.
pub async fn forget(connection: &mut PgConnection, colder_than: f64, limit: i64) -> Result<u64, StoreError> {
    sqlx::query(
        "/* forget_activity */
        DELETE FROM user_activity WHERE user_id IN (
            SELECT user_id FROM user_activity WHERE heat < $1 ORDER BY heat DESC, user_id LIMIT $2)",
    )
    .bind(colder_than)
    .bind(limit)
    .execute(connection)
    .await
    .map(|done| done.rows_affected())
    .map_err(failed("forget who has not read for long"))
}

/// How many have read nothing for long.
pub async fn forgettable(pool: &PgPool, colder_than: f64) -> Result<i64, StoreError> {
    sqlx::query_scalar("/* count_cold_users */ SELECT count(*) FROM user_activity WHERE heat < $1")
        .bind(colder_than)
        .fetch_one(pool)
        .await
        .map_err(failed("count who has not read for long"))
}
