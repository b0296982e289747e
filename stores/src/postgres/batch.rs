//! The statements of a batch: the look-up before it, what it loads, and its record under the partition's fence.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};
use taskflow_core::audit::leaves::Leaves;
use taskflow_core::batch::Needs;
use taskflow_core::command::Fingerprint;
use taskflow_core::state::Role;
use taskflow_core::{Folded, Receipt, State, Task, cache_tag};
use uuid::Uuid;

use super::outbox::{self, Payload};
use super::transaction::begin_awake;
use super::waiting::waiting_ids;
use super::{PgPool, Transaction, failed, tasks, users};
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

/// Between two statements of a batch a machine that is busy may need this long, however short a lease is.
const IDLE_MIN: Duration = Duration::from_secs(3);
/// The same for what no worker does under a lease.
pub const NO_LEASE: Duration = Duration::from_secs(60);

/// A batch that all other stores have: its outbox row can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relayed {
    pub number: i64,
    pub audited_at: DateTime<Utc>,
    pub cached_at: DateTime<Utc>,
    pub published_at: DateTime<Utc>,
}

/// What is there already for a batch.
#[derive(Debug, Default)]
pub struct Claim {
    /// The receipts that exist for the batch's ids, as fingerprints of what was asked for.
    pub known: HashMap<Uuid, Fingerprint>,
    /// The same of those that were accepted before and wait: for their time, or for another command.
    pub waiting: HashMap<Uuid, Fingerprint>,
    /// The roles of users that the batch names. Who is missing does not exist.
    pub roles: HashMap<Uuid, Role>,
    /// Tasks of [`Needs::created`] that exist.
    pub existing: Vec<Uuid>,
}

/// Looks up which of a batch's `ids` have receipts, which of the ids that `come` for the first time belong to somebody who
/// waits, the roles that it needs, and which of its new tasks exist already. Nothing is locked: the primary keys of receipts
/// and tasks find the twins that come after it.
pub async fn claim(pool: &PgPool, ids: &[Uuid], come: &[Uuid], needs: &Needs) -> Result<Claim, StoreError> {
    /// A receipt, or a command that waits; a user and whether it is an admin; or a task.
    type Found = (Uuid, Option<Fingerprint>, Option<bool>);
    let found: Vec<Found> = sqlx::query_as(concat!(
        "/* claim */ SELECT id, fingerprint, NULL::boolean FROM receipts WHERE id = ANY($1)
        UNION ALL SELECT id, NULL, role = 'admin' FROM users WHERE id = ANY($2)
        UNION ALL SELECT id, NULL, NULL FROM tasks WHERE id = ANY($3)
        UNION ALL ",
        waiting_ids!("$4")
    ))
    .bind(ids)
    .bind(&needs.roles)
    .bind(&needs.created)
    .bind(come)
    .fetch_all(pool)
    .await
    .map_err(failed("claim a batch"))?;
    let mut claim = Claim::default();
    for (id, fingerprint, admin) in found {
        match (fingerprint, admin) {
            (Some(fingerprint), None) => drop(claim.known.insert(id, fingerprint)),
            (Some(fingerprint), Some(_)) => drop(claim.waiting.insert(id, fingerprint)),
            (None, Some(true)) => drop(claim.roles.insert(id, Role::Admin)),
            (None, Some(false)) => drop(claim.roles.insert(id, Role::User)),
            (None, None) => claim.existing.push(id),
        }
    }
    Ok(claim)
}

/// The transaction of a batch. It begins with the first statement that needs one: a batch that changes nothing that was
/// there is its record alone, and a statement is a transaction by itself. A lone command waits for every round trip.
pub struct BatchTransaction {
    pool: PgPool,
    /// How long its worker may be silent in the middle of it.
    idle: Duration,
    begun: Option<Transaction>,
}

impl BatchTransaction {
    /// `lease` is how long its worker may be silent before another one takes its partition over: that one must not wait
    /// for rows that this one has locked.
    pub fn new(pool: &PgPool, lease: Duration) -> Self {
        Self { pool: pool.clone(), idle: (lease / 2).max(IDLE_MIN), begun: None }
    }

    /// The connection, for the statements of the other tables.
    pub async fn connection(&mut self) -> Result<&mut PgConnection, StoreError> {
        let begun = match self.begun.take() {
            Some(begun) => begun,
            None => begin_awake(&self.pool, self.idle).await.map_err(failed("begin a batch"))?,
        };
        Ok(self.begun.insert(begun))
    }

    /// Makes the batch last. If this fails, or [`write`] does, it may have lasted all the same: the receipts tell.
    pub async fn commit(self) -> Result<(), StoreError> {
        match self.begun {
            Some(begun) => begun.commit().await.map_err(failed("commit a batch")),
            None => Ok(()),
        }
    }

    pub async fn roll_back(self) -> Result<(), StoreError> {
        match self.begun {
            Some(begun) => begun.rollback().await.map_err(failed("roll a batch back")),
            None => Ok(()),
        }
    }
}

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
    /// Of the lease under which the batch is applied.
    pub epoch: i64,
    /// How many commands the batch had, duplicates included.
    pub commands: usize,
    pub applied_at: DateTime<Utc>,
    pub receipts: &'b [Receipt],
    pub new_tasks: &'b [Task],
    /// For the other stores; an outbox row is written only if there is something to tell.
    pub payload: &'b Payload,
    /// Former batches to be tidied away.
    pub relayed: &'b [Relayed],
}

/// Loads what a batch needs, and locks what it may change. `roles` and `existing` came with the [`Claim`].
pub async fn load(
    transaction: &mut BatchTransaction,
    needs: &Needs,
    roles: HashMap<Uuid, Role>,
    existing: &[Uuid],
) -> Result<State, StoreError> {
    let mut task_ids = [&needs.tasks, existing].concat();
    if task_ids.is_empty() && needs.users.is_empty() && needs.emails.is_empty() {
        return Ok(State { roles, ..State::default() });
    }
    task_ids.sort_unstable();
    let connection = transaction.connection().await?;
    let loaded_users = users::load_for_update(connection, &needs.users).await?;
    let loaded_tasks = tasks::load_for_update(connection, &task_ids).await?;
    Ok(State {
        users: loaded_users.into_iter().map(|user| (user.id, user)).collect(),
        tasks: loaded_tasks.into_iter().map(|task| (task.id, task)).collect(),
        roles,
        emails: users::holders(connection, &needs.emails).await?,
    })
}

/// Writes all that a batch has decided: changed entities first, then its record. Returns the batch's number, or `None`
/// if the partition belongs to another epoch: nothing of the record was written then.
///
/// # Errors
/// As [`record`]; and [`crate::Kind::Data`] when a rule of the tables is broken.
pub async fn write(
    transaction: &mut BatchTransaction,
    folded: &Folded,
    batch: Record<'_>,
) -> Result<Option<i64>, StoreError> {
    let Folded { new_users, changed_users, changed_tasks, .. } = folded;
    if !(new_users.is_empty() && changed_users.is_empty() && changed_tasks.is_empty()) {
        let connection = transaction.connection().await?;
        users::insert(connection, new_users).await?;
        users::update(connection, changed_users).await?;
        tasks::update(connection, changed_tasks).await?;
    }
    record(transaction, batch).await
}

static RECORD: LazyLock<String> = LazyLock::new(|| record_statement(""));

static RECORD_AND_TIDY: LazyLock<String> =
    LazyLock::new(|| record_statement(concat!(tidied!("$35", "$36", "$37", "$38"), ", ")));

/// The digest of the batch's link, as [`taskflow_core::audit::link::hash`] makes it.
const NEXT_LINK: &str = "sha256('\\x03'::bytea
                || coalesce(chain, sha256('\\x04'::bytea || convert_to($1::text, 'UTF8')))
                || int8send(batch + 1) || convert_to($20::text, 'UTF8'))";

fn record_statement(tidy: &str) -> String {
    format!(
        "/* record_batch */
        WITH {tidy}head AS (
            UPDATE partition_heads SET batch = batch + 1, chain = CASE WHEN $20::text IS NULL THEN chain ELSE {} END
            WHERE partition = $1 AND epoch = $2 RETURNING batch, chain
        ), linked AS (
            INSERT INTO audit_links (partition, number, classes, hash)
            SELECT $1, batch, $20, chain FROM head WHERE $20::text IS NOT NULL
        ), noted AS (
            INSERT INTO batches (partition, number, commands, applied_at, changed)
            SELECT $1, batch, $3::integer, $4::timestamptz, $19::bytea FROM head
        ), told AS (
            INSERT INTO outbox (partition, number, created_at, payload)
            SELECT $1, batch, $4, $5 FROM head WHERE $5::bytea IS NOT NULL
        ), created AS (
            {}
        ), finished AS (
            INSERT INTO receipts (id, type, subject, actor, outcome, code, detail, version, events, accepted_at,
                                  finished_at, fingerprint, attempts, source, partition, batch)
            SELECT r.*, $1, head.batch
            FROM head, UNNEST($6::uuid[], $7::text[], $8::uuid[], $9::uuid[], $10::text[]::command_outcome[],
                              $11::text[], $12::text[], $13::integer[], $14::smallint[], $15::timestamptz[],
                              $16::timestamptz[], $17::bytea[], $18::smallint[], $21::text[]) AS r
        )
        SELECT batch FROM head",
        NEXT_LINK,
        tasks::insert_statement("head, ", 22)
    )
}

/// Writes the receipts of a batch, its entry in `batches`, its outbox row, its link of the audit trail's chain and its
/// new tasks, in one statement, under the fence: the partition's head row, which gives the batch its number. Its lock is
/// kept until the commit: batches of one partition commit in the order of their numbers, and whoever takes the lease over
/// waits for a batch that is being recorded.
///
/// # Errors
/// [`crate::Kind::Conflict`] when a twin of one of the commands has been applied meanwhile, or a task exists by now.
pub async fn record(
    transaction: &mut BatchTransaction,
    record: Record<'_>,
) -> Result<Option<i64>, StoreError> {
    let Record { receipts, relayed, .. } = record;
    fn column<'r, T>(receipts: &'r [Receipt], field: impl Fn(&'r Receipt) -> T) -> Vec<T> {
        receipts.iter().map(field).collect()
    }
    let statement = if relayed.is_empty() { &RECORD } else { &RECORD_AND_TIDY };
    let query = sqlx::query(sqlx::AssertSqlSafe(statement.as_str()))
        .bind(record.partition)
        .bind(record.epoch)
        .bind(record.commands as i32)
        .bind(record.applied_at)
        .bind(outbox::bytes(record.payload)?)
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
        .bind(cache_tag::encode(&record.payload.lists))
        .bind(record.payload.leaves().and_then(Leaves::link))
        .bind(column(receipts, |r| r.source.as_deref()));
    let mut query = tasks::bind_new(query, record.new_tasks);
    if !relayed.is_empty() {
        let columns = Columns::of(relayed);
        query = query.bind(columns.numbers).bind(columns.audited_at);
        query = query.bind(columns.cached_at).bind(columns.published_at);
    }
    let recorded = match &mut transaction.begun {
        Some(begun) => query.fetch_optional(&mut **begun).await,
        None => query.fetch_optional(&transaction.pool).await,
    };
    let number = recorded.and_then(|row| row.map(|row| row.try_get(0)).transpose());
    number.map_err(failed("record a batch"))
}

/// Records a batch without commands and takes it back: whether batches can be written now, which reading does not tell.
/// Returns the number of the partition's newest batch, if it still belongs to this epoch.
pub async fn may_be_written(
    pool: &PgPool,
    fence: (&str, i64),
    lease: Duration,
    now: DateTime<Utc>,
) -> Result<Option<i64>, StoreError> {
    let (partition, epoch) = fence;
    let mut transaction = BatchTransaction::new(pool, lease);
    transaction.connection().await?;
    let payload = Payload::default();
    let nothing = Record {
        partition,
        epoch,
        commands: 0,
        applied_at: now,
        receipts: &[],
        new_tasks: &[],
        payload: &payload,
        relayed: &[],
    };
    let number = record(&mut transaction, nothing).await?;
    transaction.roll_back().await?;
    Ok(number.map(|number| number - 1))
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
