//! The table `suspects`: messages that may kill the process that reads them.

use std::collections::HashMap;

use taskflow_core::command::Fingerprint;

use super::{PgPool, failed};
use crate::StoreError;

/// Notes that messages are about to be tried together. Returns those among them that must be tried alone: somebody died
/// who had them together, or one of them is tried alone already; with each how often it was. It lasts before this returns.
pub async fn note_together(
    pool: &PgPool,
    digests: &[Fingerprint],
    partition: &str,
    epoch: i64,
) -> Result<HashMap<Fingerprint, i16>, StoreError> {
    let digests: Vec<&[u8]> = digests.iter().map(<[u8; 16]>::as_slice).collect();
    // What is noted here is not seen by the select. A pipeline that only waited for a store has them together again.
    let known: Vec<(Vec<u8>, i16)> = sqlx::query_as(
        "/* note_together */
        WITH noted AS (
            INSERT INTO suspects (digest, partition, tries, epoch, last_tried_at)
            SELECT DISTINCT d, $2, 0, $3, now() FROM UNNEST($1::bytea[]) AS d ORDER BY d
            ON CONFLICT DO NOTHING
        )
        SELECT digest, tries FROM suspects WHERE digest = ANY($1) AND (tries > 0 OR (partition, epoch) <> ($2, $3))",
    )
    .bind(&digests)
    .bind(partition)
    .bind(epoch)
    .fetch_all(pool)
    .await
    .map_err(failed("note suspects"))?;
    Ok(known.into_iter().filter_map(|(digest, tries)| Some((digest.try_into().ok()?, tries))).collect())
}

/// Notes that a message is about to be tried alone. Returns which try it is, from 1. It lasts before this returns: what
/// comes next may be the end of the process. Under one epoch a message has one try, unless it was [taken back](acquit):
/// whoever tries it again there waited for a store, and the message is not to blame.
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

/// Takes back what was noted under an epoch whose holder lives: nobody has died of it, though it did not come to an end.
pub async fn acquit(pool: &PgPool, partition: &str, epoch: i64) -> Result<(), StoreError> {
    sqlx::query(
        "/* acquit_suspects */
        WITH together AS (DELETE FROM suspects WHERE partition = $1 AND epoch = $2 AND tries = 0)
        UPDATE suspects SET tries = tries - 1, epoch = 0 WHERE partition = $1 AND epoch = $2 AND tries > 0",
    )
    .bind(partition)
    .bind(epoch)
    .execute(pool)
    .await
    .map_err(failed("acquit suspects"))?;
    Ok(())
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
