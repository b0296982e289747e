//! The tables of the audit trail's chains: links, and the heads in the fence rows.

use std::collections::{HashMap, HashSet};

use sqlx::{PgConnection, Row};
use taskflow_core::audit::Hash;
use taskflow_core::audit::chain::Link;
use taskflow_core::audit::link::{self, genesis};
use taskflow_core::audit::seal::Head;

use super::{PgPool, failed};
use crate::{Kind, StoreError};

/// Under which partition events stand that no command causes.
pub const SYSTEM: &str = "system";

/// The heads of all chains at one moment, in the order of the partitions' names.
pub async fn heads(pool: &PgPool) -> Result<Vec<Head>, StoreError> {
    let rows: Vec<(String, i64, Option<Vec<u8>>)> = sqlx::query_as(
        "/* audit_heads */ SELECT partition, batch, chain FROM partition_heads
        UNION ALL SELECT $1, number, chain FROM audit_system_head",
    )
    .bind(SYSTEM)
    .fetch_all(pool)
    .await
    .map_err(failed("read the heads of the chains"))?;
    let head = |(partition, number, chain): (String, i64, Option<Vec<u8>>)| {
        let hash = match chain {
            Some(chain) => hash(&chain, "the head of a chain")?,
            None => genesis(&partition),
        };
        Ok(Head { partition, number, hash })
    };
    let mut heads = rows.into_iter().map(head).collect::<Result<Vec<_>, StoreError>>()?;
    heads.sort_by(|one, other| one.partition.cmp(&other.partition));
    Ok(heads)
}

fn hash(bytes: &[u8], what: &str) -> Result<Hash, StoreError> {
    Hash::from_slice(bytes).ok_or_else(|| {
        let detail = format!("{what} has {} bytes; a digest has 32", bytes.len());
        StoreError::new("postgres", "read the audit chain", Kind::Data, detail)
    })
}

/// Reads the links of a partition with numbers in `after < number <= to`, in their order, at most `limit`.
pub async fn links(
    pool: &PgPool,
    partition: &str,
    after: i64,
    to: i64,
    limit: i64,
) -> Result<Vec<Link>, StoreError> {
    let rows = sqlx::query(
        "/* audit_links */ SELECT number, classes, hash FROM audit_links
        WHERE partition = $1 AND number > $2 AND number <= $3 ORDER BY number LIMIT $4",
    )
    .bind(partition)
    .bind(after)
    .bind(to)
    .bind(limit)
    .fetch_all(pool)
    .await
    .map_err(failed("read links"))?;
    let read = failed("read links");
    rows.iter()
        .map(|row| {
            Ok(Link {
                partition: partition.to_owned(),
                number: row.try_get(0).map_err(&read)?,
                classes: row.try_get(1).map_err(&read)?,
                hash: hash(row.try_get(2).map_err(&read)?, "a link")?,
            })
        })
        .collect()
}

/// The digest of the last link of a partition before a batch; `None` if there is none.
pub async fn hash_before(pool: &PgPool, partition: &str, number: i64) -> Result<Option<Hash>, StoreError> {
    let found: Option<Vec<u8>> = sqlx::query_scalar(
        "/* audit_link_before */ SELECT hash FROM audit_links
        WHERE partition = $1 AND number < $2 ORDER BY number DESC LIMIT 1",
    )
    .bind(partition)
    .bind(number)
    .fetch_optional(pool)
    .await
    .map_err(failed("read a link"))?;
    found.map(|bytes| hash(&bytes, "a link")).transpose()
}

/// The texts of the links of some batches.
pub async fn classes_of(
    pool: &PgPool,
    batches: &[(String, i64)],
) -> Result<HashMap<(String, i64), String>, StoreError> {
    let (partitions, numbers): (Vec<&str>, Vec<i64>) =
        batches.iter().map(|(partition, number)| (partition.as_str(), *number)).unzip();
    let rows: Vec<(String, i64, String)> = sqlx::query_as(
        "/* audit_links_of */ SELECT l.partition, l.number, l.classes FROM audit_links l
        JOIN UNNEST($1::text[], $2::bigint[]) AS k (partition, number) USING (partition, number)",
    )
    .bind(partitions)
    .bind(numbers)
    .fetch_all(pool)
    .await
    .map_err(failed("read links"))?;
    Ok(rows.into_iter().map(|(partition, number, classes)| ((partition, number), classes)).collect())
}

/// Of each partition that has links, the number of its first: what stands before it is from before there were leaves.
pub async fn first_links(pool: &PgPool) -> Result<HashMap<String, i64>, StoreError> {
    let rows: Vec<(String, i64)> = sqlx::query_as(
        "/* audit_first_links */ SELECT p.partition, l.number
        FROM (SELECT partition FROM partition_heads UNION ALL SELECT $1) AS p
        CROSS JOIN LATERAL (
            SELECT number FROM audit_links WHERE partition = p.partition AND number > 0 ORDER BY number LIMIT 1) AS l",
    )
    .bind(SYSTEM)
    .fetch_all(pool)
    .await
    .map_err(failed("read the first links"))?;
    Ok(rows.into_iter().collect())
}

/// Batches of a partition up to a number whose events may not be in the trail yet.
pub async fn pending(pool: &PgPool, partition: &str, to: i64) -> Result<HashSet<i64>, StoreError> {
    let numbers: Vec<i64> = sqlx::query_scalar(
        "/* audit_pending */ SELECT number FROM outbox WHERE partition = $1 AND number <= $2
        UNION ALL SELECT link FROM system_events WHERE $1 = $3 AND link <= $2",
    )
    .bind(partition)
    .bind(to)
    .bind(SYSTEM)
    .fetch_all(pool)
    .await
    .map_err(failed("look into the outbox"))?;
    Ok(numbers.into_iter().collect())
}

/// Links that the chain of the system's events is to be lengthened by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addition {
    /// The number of its head before.
    pub after: i64,
    /// The texts of their classes.
    pub links: Vec<String>,
}

/// Locks the head of the chain of the system's events: its number and its digest.
pub(super) async fn lock_system(connection: &mut PgConnection) -> Result<(i64, Hash), StoreError> {
    let (number, chain): (i64, Option<Vec<u8>>) =
        sqlx::query_as("/* lock_system_head */ SELECT number, chain FROM audit_system_head FOR UPDATE")
            .fetch_one(connection)
            .await
            .map_err(failed("lock the head of the system's events"))?;
    let hash = chain.map_or_else(|| Ok(genesis(SYSTEM)), |chain| hash(&chain, "the head of a chain"))?;
    Ok((number, hash))
}

/// Lengthens the chain of the system's events, in the transaction of who may.
pub async fn extend_system(connection: &mut PgConnection, addition: &Addition) -> Result<(), StoreError> {
    const CALL: &str = "link undone events";
    let (mut number, mut hash) = lock_system(connection).await?;
    if number != addition.after {
        let detail = format!("the chain is at {number}, and not at {} any more", addition.after);
        return Err(StoreError::new("postgres", CALL, Kind::Conflict, detail));
    }
    let (mut numbers, mut hashes) = (Vec::new(), Vec::new());
    for classes in &addition.links {
        number += 1;
        hash = link::hash(&hash, number, classes);
        numbers.push(number);
        hashes.push(hash.0.to_vec());
    }
    sqlx::query(
        "/* extend_system */ WITH linked AS (
            INSERT INTO audit_links (partition, number, classes, hash)
            SELECT $1, number, classes, hash FROM UNNEST($2::bigint[], $3::text[], $4::bytea[])
                AS n (number, classes, hash)
        )
        UPDATE audit_system_head SET number = $5, chain = $6",
    )
    .bind(SYSTEM)
    .bind(numbers)
    .bind(&addition.links)
    .bind(hashes)
    .bind(number)
    .bind(hash.0.as_slice())
    .execute(connection)
    .await
    .map_err(failed(CALL))?;
    Ok(())
}
