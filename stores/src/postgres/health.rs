//! What a look at the server tells about it: settings that endanger data, unfinished indexes, privileges.

use super::{PgPool, failed};
use crate::StoreError;

/// Settings without which an acknowledged commit may be lost, with the value that they must have and why.
const WANTED: [(&str, &str, &str); 3] = [
    ("fsync", "on", "without it a power failure destroys the database"),
    ("synchronous_commit", "on", "off loses the newest commits at a crash, whose messages are acknowledged"),
    ("full_page_writes", "on", "without it a power failure may destroy pages"),
];

/// Name, value, wanted value, and why, of each setting that matters.
pub async fn settings(
    pool: &PgPool,
) -> Result<Vec<(&'static str, String, &'static str, &'static str)>, StoreError> {
    let mut settings = Vec::new();
    for (name, wanted, why) in WANTED {
        let value: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(name)
            .fetch_one(pool)
            .await
            .map_err(failed("read a setting"))?;
        // A standby that must confirm as well is more than `on`.
        let value = if value == "remote_apply" { "on".to_owned() } else { value };
        settings.push((name, value, wanted, why));
    }
    Ok(settings)
}

/// Indexes that were not built to their end.
pub async fn invalid_indexes(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar("SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid")
        .fetch_all(pool)
        .await
        .map_err(failed("look for invalid indexes"))
}

/// Ends the sessions that a process of this name has as this role, as a failover would. Returns how many there were.
pub async fn end_sessions(pool: &PgPool, application: &str) -> Result<i64, StoreError> {
    sqlx::query_scalar(
        "/* end_sessions */
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND usename = current_user AND application_name = $1
          AND pid <> pg_backend_pid()",
    )
    .bind(application)
    .fetch_one(pool)
    .await
    .map_err(failed("end sessions"))
}

/// Tables on which this role may not do what every process does. The evidence of the audit trail is read by all and
/// rewritten by nobody; only its links are added to by all (`ops/roles`).
pub async fn missing_privileges(pool: &PgPool) -> Result<Vec<String>, StoreError> {
    sqlx::query_scalar(
        "SELECT name FROM (
             SELECT c.oid, c.relname::text AS name, CASE
                 WHEN c.relname = 'audit_links' THEN ARRAY['SELECT', 'INSERT']
                 WHEN c.relname IN ('audit_seals', 'audit_erasures', 'audit_restores') THEN ARRAY['SELECT']
                 ELSE ARRAY['SELECT', 'INSERT', 'UPDATE']
             END AS wanted
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = current_schema() AND c.relkind = 'r' AND c.relname <> '_sqlx_migrations'
         ) t
         WHERE EXISTS (SELECT FROM unnest(wanted) AS privilege WHERE NOT has_table_privilege(oid, privilege))
         ORDER BY 1",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("look at the privileges"))
}
