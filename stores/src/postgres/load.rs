//! How busy the server is, for upkeep that gives way.

use super::{PgPool, failed};
use crate::StoreError;

/// What a look at the server shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Load {
    /// For how many seconds the partition that is behind most has been so.
    pub behind_s: f64,
    /// Sessions that work on a statement at the moment, this one apart.
    pub active: i64,
}

/// Looks how busy the server is.
pub async fn read(pool: &PgPool) -> Result<Load, StoreError> {
    let (behind_s, active) = sqlx::query_as(
        "/* server_load */
        SELECT COALESCE((SELECT GREATEST(max(EXTRACT(EPOCH FROM clock_timestamp() - reached)), 0)
                         FROM partition_leases WHERE expires_at > now()), 0)::double precision,
               (SELECT count(*) FROM pg_stat_activity
                WHERE state = 'active' AND pid <> pg_backend_pid() AND backend_type = 'client backend')",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("look how busy the server is"))?;
    Ok(Load { behind_s, active })
}
