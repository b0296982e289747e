//! The table `suspects`: messages that may kill the process that reads them.

use sqlx::PgPool;
use taskflow_core::command::Fingerprint;

use super::failed;
use crate::StoreError;

/// Notes that a message is about to be tried alone. Returns which try it is, from 1. It lasts before this returns: what
/// comes next may be the end of the process. Under one epoch a message has one try: whoever tries it again there waited
/// for a store, and the message is not to blame.
pub async fn note_try(
    pool: &PgPool,
    digest: Fingerprint,
    partition: &str,
    epoch: i64,
) -> Result<i16, StoreError> {
    sqlx::query_scalar(
        "/* note_try */
        INSERT INTO suspects AS s (digest, partition, tries, epoch, last_tried_at) VALUES ($1, $2, 1, $3, now())
        ON CONFLICT (digest) DO UPDATE
        SET tries = s.tries
                + CASE WHEN s.partition = excluded.partition AND s.epoch = excluded.epoch THEN 0 ELSE 1 END,
            partition = excluded.partition, epoch = excluded.epoch, last_tried_at = now()
        RETURNING tries",
    )
    .bind(digest.as_slice())
    .bind(partition)
    .bind(epoch)
    .fetch_one(pool)
    .await
    .map_err(failed("note a suspect"))
}

/// Forgets a suspect: it was applied, or is dead. Suspects of which nothing was heard for a day go with it.
pub async fn forget(pool: &PgPool, digest: Fingerprint) -> Result<(), StoreError> {
    sqlx::query(
        "/* forget_suspect */ DELETE FROM suspects WHERE digest = $1 OR last_tried_at < now() - interval '1 day'",
    )
    .bind(digest.as_slice())
    .execute(pool)
    .await
    .map_err(failed("forget a suspect"))?;
    Ok(())
}
