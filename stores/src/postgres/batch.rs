//! The transaction of a batch: the fence at its start, its record and the commit at its end.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Postgres, Transaction};
use taskflow_core::batch::Needs;
use taskflow_core::command::Fingerprint;
use taskflow_core::state::Role;
use taskflow_core::{Folded, Receipt, State, Task};
use uuid::Uuid;

use super::failed;
use super::outbox::{self, Payload};
use super::{tasks, users};
use crate::StoreError;

/// Removes relayed batches of the partition `$1` from the outbox and notes when each store had them. The arguments are
/// the parameters of [`Columns`].
macro_rules! tidied {
    ($numbers:literal, $audited_at:literal, $cached_at:literal, $published_at:literal) => {
        concat!(
            "relayed AS (
                SELECT * FROM UNNEST(",
            $numbers,
            "::bigint[], ",
            $audited_at,
            "::timestamptz[], ",
            $cached_at,
            "::timestamptz[], ",
            $published_at,
            "::timestamptz[])
                    AS r (number, audited_at, cached_at, published_at)
            ), gone AS (
                DELETE FROM outbox o USING relayed r WHERE o.partition = $1 AND o.number = r.number
            ), stamped AS (
                UPDATE batches b
                SET audited_at = r.audited_at, cached_at = r.cached_at, published_at = r.published_at
                FROM relayed r WHERE b.partition = $1 AND b.number = r.number
            )"
        )
    };
}

/// Takes the next number of the partition `$1` under the epoch `$2`; finds the receipts of `$3`, the roles of `$4`.
macro_rules! fenced {
    () => {
        "head AS (
            UPDATE partition_heads SET batch = batch + 1 WHERE partition = $1 AND epoch = $2 RETURNING batch
        )
        SELECT batch, NULL::uuid, NULL::bytea, NULL::boolean FROM head
        UNION ALL SELECT head.batch, r.id, r.fingerprint, NULL FROM head, receipts r WHERE r.id = ANY($3)
        UNION ALL SELECT batch, id, NULL, role = 'admin' FROM head, users WHERE id = ANY($4)"
    };
}

/// A batch that all other stores have: its outbox row can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    pub number: i64,
    pub audited_at: DateTime<Utc>,
    pub cached_at: DateTime<Utc>,
    pub published_at: DateTime<Utc>,
}

/// An open transaction under a partition's epoch.
pub struct BatchTransaction {
    transaction: Transaction<'static, Postgres>,
    /// This batch's number: one more than the last of its partition.
    pub number: i64,
}

/// What the first statement of a batch finds out.
#[derive(Debug, Default)]
pub struct Claim {
    /// The receipts that exist for the batch's ids, as fingerprints of what was asked for.
    pub known: HashMap<Uuid, Fingerprint>,
    /// The roles of users that the batch names. Who is missing does not exist.
    pub roles: HashMap<Uuid, Role>,
}

/// Opens the transaction of a batch, if the partition still belongs to this epoch; `None` if it does not. The same
/// statement tells which of the batch's `ids` have receipts and the roles of `users`, and tidies away what was relayed
/// since the last batch.
///
/// The head's row stays locked until the commit: batches of one partition commit in the order of their numbers, and a
/// new holder's first batch waits for the old one's last. The statement sees what was there when it began to wait; the
/// receipts' primary key finds the twins that it overlooks then.
pub async fn begin(
    pool: &PgPool,
    partition: &str,
    epoch: i64,
    relayed: &[Relayed],
    ids: &[Uuid],
    users: &[Uuid],
) -> Result<Option<(BatchTransaction, Claim)>, StoreError> {
    let mut transaction = pool.begin().await.map_err(failed("begin a batch"))?;
    // Every statement shows in a lone command's latency: with nothing to tidy, a lean one.
    let mut statement = sqlx::query_as(if relayed.is_empty() {
        concat!("/* fence_and_claim */ WITH ", fenced!())
    } else {
        concat!("/* fence_claim_and_tidy */ WITH ", tidied!("$5", "$6", "$7", "$8"), ", ", fenced!())
    });
    statement = statement.bind(partition).bind(epoch).bind(ids).bind(users);
    if !relayed.is_empty() {
        let columns = Columns::of(relayed);
        statement = statement.bind(columns.numbers).bind(columns.audited_at);
        statement = statement.bind(columns.cached_at).bind(columns.published_at);
    }
    let rows: Vec<Found> = statement.fetch_all(&mut *transaction).await.map_err(failed("fence a batch"))?;
    let Some((number, ..)) = rows.first() else { return Ok(None) };
    let transaction = BatchTransaction { transaction, number: *number };
    let mut claim = Claim::default();
    for (_, id, fingerprint, admin) in rows {
        match (id, fingerprint, admin) {
            (Some(id), Some(fingerprint), _) => drop(claim.known.insert(id, fingerprint)),
            (Some(id), None, Some(true)) => drop(claim.roles.insert(id, Role::Admin)),
            (Some(id), None, Some(false)) => drop(claim.roles.insert(id, Role::User)),
            _ => {}
        }
    }
    Ok(Some((transaction, claim)))
}

/// The batch's number with each: nothing, a receipt, or a user and whether it is an admin.
type Found = (i64, Option<Uuid>, Option<Fingerprint>, Option<bool>);

/// Tidies away what was relayed, without a batch: for a partition that has become idle.
pub async fn tidy(pool: &PgPool, partition: &str, relayed: &[Relayed]) -> Result<(), StoreError> {
    let columns = Columns::of(relayed);
    sqlx::query(concat!("/* tidy_relayed */ WITH ", tidied!("$2", "$3", "$4", "$5"), " SELECT 1"))
        .bind(partition)
        .bind(columns.numbers)
        .bind(columns.audited_at)
        .bind(columns.cached_at)
        .bind(columns.published_at)
        .execute(pool)
        .await
        .map_err(failed("tidy the outbox"))?;
    Ok(())
}

/// What a batch leaves behind, beside changed tasks and users.
#[derive(Clone, Copy)]
pub struct Record<'b> {
    pub partition: &'b str,
    pub number: i64,
    /// How many commands the batch had, duplicates included.
    pub commands: usize,
    pub applied_at: DateTime<Utc>,
    pub receipts: &'b [Receipt],
    pub new_tasks: &'b [Task],
    /// For the other stores; an outbox row is written only if there is something to tell.
    pub payload: &'b Payload,
}

/// Loads what a batch needs, and locks what it may change. `roles` came with the [`Claim`].
pub async fn load(
    connection: &mut PgConnection,
    needs: &Needs,
    roles: HashMap<Uuid, Role>,
) -> Result<State, StoreError> {
    let loaded_users = users::load_for_update(connection, &needs.users).await?;
    let loaded_tasks = tasks::load_for_update(connection, &needs.tasks).await?;
    Ok(State {
        users: loaded_users.into_iter().map(|user| (user.id, user)).collect(),
        tasks: loaded_tasks.into_iter().map(|task| (task.id, task)).collect(),
        roles,
        emails: users::holders(connection, &needs.emails).await?,
    })
}

/// Writes all that a batch has decided: entities first, then its record.
///
/// # Errors
/// As [`record`]; and [`crate::Kind::Data`] when a rule of the tables is broken.
pub async fn write(
    connection: &mut PgConnection,
    folded: &Folded,
    batch: Record<'_>,
) -> Result<(), StoreError> {
    users::insert(connection, &folded.new_users).await?;
    users::update(connection, &folded.changed_users).await?;
    tasks::update(connection, &folded.changed_tasks).await?;
    record(connection, batch).await
}

static RECORD: LazyLock<String> = LazyLock::new(|| {
    format!(
        "/* record_batch */
        WITH batch AS (
            INSERT INTO batches (partition, number, commands, applied_at) VALUES ($14, $15, $16, $17)
        ), told AS (
            INSERT INTO outbox (partition, number, created_at, payload)
            SELECT $14, $15, $17, $18 WHERE $18::bytea IS NOT NULL
        ), created AS (
            {}
        )
        INSERT INTO receipts (id, type, subject, actor, outcome, code, detail, version, events, accepted_at,
                              finished_at, fingerprint, attempts, partition, batch)
        SELECT r.*, $14, $15
        FROM UNNEST($1::uuid[], $2::text[], $3::uuid[], $4::uuid[], $5::text[]::command_outcome[], $6::text[],
                    $7::text[], $8::integer[], $9::smallint[], $10::timestamptz[], $11::timestamptz[],
                    $12::bytea[], $13::smallint[]) AS r",
        tasks::insert_statement(19)
    )
});

/// Writes the receipts of a batch, its entry in `batches`, its outbox row and its new tasks, in one statement: a lone
/// command waits for each.
///
/// # Errors
/// [`crate::Kind::Conflict`] when a twin of one of the commands has been applied meanwhile, or a task exists by now.
pub async fn record(connection: &mut PgConnection, record: Record<'_>) -> Result<(), StoreError> {
    let Record { receipts, .. } = record;
    fn column<'r, T>(receipts: &'r [Receipt], field: impl Fn(&'r Receipt) -> T) -> Vec<T> {
        receipts.iter().map(field).collect()
    }
    let query = sqlx::query(sqlx::AssertSqlSafe(RECORD.as_str()))
        .bind(column(receipts, |r| r.id))
        .bind(column(receipts, |r| r.kind))
        .bind(column(receipts, |r| r.subject))
        .bind(column(receipts, |r| r.actor))
        .bind(column(receipts, |r| r.outcome.as_str()))
        .bind(column(receipts, |r| r.code))
        .bind(column(receipts, |r| r.detail.as_deref()))
        .bind(column(receipts, |r| r.version))
        .bind(column(receipts, |r| r.events as i16))
        .bind(column(receipts, |r| r.accepted_at))
        .bind(column(receipts, |r| r.finished_at))
        .bind(column(receipts, |r| r.fingerprint.as_slice()))
        .bind(column(receipts, |r| r.attempts as i16))
        .bind(record.partition)
        .bind(record.number)
        .bind(record.commands as i32)
        .bind(record.applied_at)
        .bind(outbox::bytes(record.payload)?);
    let query = tasks::bind_new(query, record.new_tasks);
    query.execute(connection).await.map_err(failed("record a batch"))?;
    Ok(())
}

struct Columns {
    numbers: Vec<i64>,
    audited_at: Vec<DateTime<Utc>>,
    cached_at: Vec<DateTime<Utc>>,
    published_at: Vec<DateTime<Utc>>,
}

impl Columns {
    fn of(relayed: &[Relayed]) -> Self {
        Self {
            numbers: relayed.iter().map(|r| r.number).collect(),
            audited_at: relayed.iter().map(|r| r.audited_at).collect(),
            cached_at: relayed.iter().map(|r| r.cached_at).collect(),
            published_at: relayed.iter().map(|r| r.published_at).collect(),
        }
    }
}

impl BatchTransaction {
    /// The connection, for the statements of the other tables.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.transaction
    }

    /// Makes the batch last. If this fails it may have lasted all the same: the receipts tell.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.transaction.commit().await.map_err(failed("commit a batch"))
    }

    pub async fn roll_back(self) -> Result<(), StoreError> {
        self.transaction.rollback().await.map_err(failed("roll a batch back"))
    }
}
