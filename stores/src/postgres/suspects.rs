//! The table `suspects`: messages that may kill the process that reads them.

use std::collections::HashSet;

use sqlx::PgPool;
use taskflow_core::command::Fingerprint;

use super::failed;
use crate::StoreError;

/// Notes that messages are about to be tried together. Returns those among them that must be tried alone: somebody died
/// who had them together, or one of them is tried alone already. It lasts before this returns.
pub async fn note_together(
    pool: &PgPool,
    digests: &[Fingerprint],
    partition: &str,
    epoch: i64,
) -> Result<HashSet<Fingerprint>, StoreError> {
    let digests: Vec<&[u8]> = digests.iter().map(<[u8; 16]>::as_slice).collect();
    // What is noted here is not seen by the select. A pipeline that only waited for a store has them together again.
    let known: Vec<Vec<u8>> = sqlx::query_scalar(
        "/* note_together */
        WITH noted AS (
            INSERT INTO suspects (digest, partition, tries, epoch, last_tried_at)
            SELECT DISTINCT d, $2, 0, $3, now() FROM UNNEST($1::bytea[]) AS d ORDER BY d
            ON CONFLICT DO NOTHING
        )
        SELECT digest FROM suspects WHERE digest = ANY($1) AND (tries > 0 OR (partition, epoch) <> ($2, $3))",
    )
    .bind(&digests)
    .bind(partition)
    .bind(epoch)
    .fetch_all(pool)
    .await
    .map_err(failed("note suspects"))?;
    Ok(known.into_iter().filter_map(|digest| digest.try_into().ok()).collect())
}

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

/// Forgets suspects: they were applied, or are dead. Suspects of which nothing was heard for a day go with them.
pub async fn forget(pool: &PgPool, digests: &[Fingerprint]) -> Result<(), StoreError> {
    let digests: Vec<&[u8]> = digests.iter().map(<[u8; 16]>::as_slice).collect();
    sqlx::query(
        "/* forget_suspects */ DELETE FROM suspects WHERE digest = ANY($1) OR last_tried_at < now() - interval '1 day'",
    )
    .bind(&digests)
    .execute(pool)
    .await
    .map_err(failed("forget suspects"))?;
    Ok(())
}
