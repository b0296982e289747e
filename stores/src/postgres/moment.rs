//! What readers must know before they use a cached answer, for all readers of a moment in one statement: which versions
//! tasks and users have now, and whose tasks were changed since the last look.

use std::collections::{BTreeMap, HashMap};

use taskflow_core::state::Role;
use taskflow_core::window::Seen;
use uuid::Uuid;

use super::{PgPool, failed};
use crate::{Kind, StoreError};

/// Batches that are read at once of each partition. Whoever has missed more begins anew.
const BATCHES_MAX: i64 = 256;

/// A task as far as it must be known before it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskState {
    pub version: i32,
    pub creator: Uuid,
    pub assignee: Option<Uuid>,
    pub deleted: bool,
}

/// A user as far as it must be known before what is cached of it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserState {
    pub version: i32,
    pub role: Role,
}

/// What one statement has seen: a snapshot.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub seen: Seen,
    /// Who is missing does not exist.
    pub tasks: HashMap<Uuid, TaskState>,
    /// Who is missing does not exist.
    pub users: HashMap<Uuid, UserState>,
}

/// A row of the statement: of which kind (head, batch, task, user), and what it has of these.
type Row = (
    i16,
    Option<String>,
    Option<i64>,
    Option<Vec<u8>>,
    Option<Uuid>,
    Option<Uuid>,
    Option<Uuid>,
    Option<bool>,
);

/// Looks. `known` are the partitions' newest batches as of the last look.
pub async fn look(
    pool: &PgPool,
    known: &BTreeMap<String, i64>,
    tasks: &[Uuid],
    users: &[Uuid],
) -> Result<Snapshot, StoreError> {
    let (partitions, numbers): (Vec<&str>, Vec<i64>) =
        known.iter().map(|(partition, number)| (partition.as_str(), *number)).unzip();
    let rows: Vec<Row> = sqlx::query_as(
        "/* moment */
        SELECT 0::smallint, partition, batch, NULL::bytea, NULL::uuid, NULL::uuid, NULL::uuid, NULL::boolean
        FROM partition_heads
        UNION ALL
        SELECT 1::smallint, NULL, NULL, b.changed, NULL, NULL, NULL, NULL
        FROM UNNEST($1::text[], $2::bigint[]) AS k (partition, number)
        JOIN partition_heads h ON h.partition = k.partition AND h.batch > k.number
        CROSS JOIN LATERAL (
            SELECT changed FROM batches
            WHERE partition = k.partition AND number > k.number AND number <= h.batch LIMIT $3
        ) b
        UNION ALL
        SELECT 2::smallint, NULL, version, NULL, id, creator_id, assignee_id, deleted_at IS NOT NULL
        FROM tasks WHERE id = ANY($4)
        UNION ALL
        SELECT 3::smallint, NULL, version, NULL, id, NULL, NULL, role = 'admin'
        FROM users WHERE id = ANY($5)",
    )
    .bind(partitions)
    .bind(numbers)
    .bind(BATCHES_MAX)
    .bind(tasks)
    .bind(users)
    .fetch_all(pool)
    .await
    .map_err(failed("look what has changed"))?;
    let mut snapshot = Snapshot::default();
    for row in rows {
        snapshot.take(row)?;
    }
    Ok(snapshot)
}

impl Snapshot {
    fn take(&mut self, row: Row) -> Result<(), StoreError> {
        match row {
            (0, Some(partition), Some(number), ..) => drop(self.seen.heads.insert(partition, number)),
            (1, _, _, changed, ..) => self.seen.batches.push(changed),
            (2, _, Some(version), _, Some(id), Some(creator), assignee, Some(deleted)) => {
                let version = version as i32;
                self.tasks.insert(id, TaskState { version, creator, assignee, deleted });
            }
            (3, _, Some(version), _, Some(id), _, _, Some(admin)) => {
                let role = if admin { Role::Admin } else { Role::User };
                self.users.insert(id, UserState { version: version as i32, role });
            }
            other => {
                let detail = format!("a row that means nothing: {other:?}");
                return Err(StoreError::new("postgres", "look what has changed", Kind::Bug, detail));
            }
        }
        Ok(())
    }
}
