//! The table `partition_layout`: which partitions there are, and how far a change of their number is.
//!
//! Two locks keep the broker's objects and this row in step. Whoever declares objects by the row holds the shared one;
//! whoever takes a step of a change holds the exclusive one, which is never waited for: somebody else is at it then.

use serde::Deserialize;
use sqlx::PgConnection;
use taskflow_core::partition::{Course, Layout, PARTITIONS_MAX, Partition, Phase, Side};
use uuid::Uuid;

use super::silence::{self, ANSWER};
use super::{PgPool, Transaction, begin, failed};
use crate::StoreError;

/// The key of the advisory lock: `tflayout` in ASCII.
const LOCK: i64 = 0x7466_6c61_796f_7574;
/// Waiting commands that are looked at in one statement.
const PAGE: i64 = 5_000;

/// The row, as JSON tells it.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the columns of the table")]
struct Row {
    step: i64,
    phase: Phase,
    partitions: u16,
    alternate: bool,
    low_partitions: u16,
    low_alternate: bool,
    to_partitions: u16,
    to_alternate: bool,
    to_low_partitions: u16,
    to_low_alternate: bool,
}

impl From<Row> for Course {
    fn from(row: Row) -> Self {
        let side = |partitions, alternate| Side { partitions, alternate };
        Self {
            step: row.step,
            phase: row.phase,
            from: Layout {
                normal: side(row.partitions, row.alternate),
                low: side(row.low_partitions, row.low_alternate),
            },
            to: Layout {
                normal: side(row.to_partitions, row.to_alternate),
                low: side(row.to_low_partitions, row.to_low_alternate),
            },
        }
    }
}

/// Reads the row from its JSON.
pub(super) fn decode(json: &str) -> Result<Course, StoreError> {
    let row: Row = serde_json::from_str(json)
        .map_err(|error| StoreError::new(super::STORE, "read the layout", crate::Kind::Bug, error))?;
    Ok(row.into())
}

/// What there is; a deployment without a row takes `fresh`.
pub async fn course(pool: &PgPool, fresh: Layout) -> Result<Course, StoreError> {
    let call = "read the layout";
    let read = async { course_on(&mut *pool.acquire().await.map_err(failed(call))?, fresh).await };
    silence::within(ANSWER, call, read).await
}

async fn course_on(connection: &mut PgConnection, fresh: Layout) -> Result<Course, StoreError> {
    if let Some(course) = read(&mut *connection).await? {
        return Ok(course);
    }
    let count = |side: Side| i32::from(side.partitions.clamp(1, PARTITIONS_MAX));
    sqlx::query(
        "/* begin_layout */
        INSERT INTO partition_layout (step, phase, partitions, alternate, low_partitions, low_alternate,
                                      to_partitions, to_alternate, to_low_partitions, to_low_alternate)
        VALUES (1, 'settled', $1, $2, $3, $4, $1, $2, $3, $4) ON CONFLICT DO NOTHING",
    )
    .bind(count(fresh.normal))
    .bind(fresh.normal.alternate)
    .bind(count(fresh.low))
    .bind(fresh.low.alternate)
    .execute(&mut *connection)
    .await
    .map_err(failed("write the first layout"))?;
    let missing = || StoreError::unavailable(super::STORE, "read the layout", "somebody has removed its row");
    read(connection).await?.ok_or_else(missing)
}

async fn read(connection: &mut PgConnection) -> Result<Option<Course>, StoreError> {
    let json: Option<String> =
        sqlx::query_scalar("/* read_layout */ SELECT row_to_json(l)::text FROM partition_layout l")
            .fetch_optional(connection)
            .await
            .map_err(failed("read the layout"))?;
    json.as_deref().map(decode).transpose()
}

/// Asks for other numbers. `None` if another change was faster, or is not at its end.
pub async fn start(
    pool: &PgPool,
    known: &Course,
    to: Layout,
    author: &str,
) -> Result<Option<Course>, StoreError> {
    let json: Option<String> = sqlx::query_scalar(
        "/* start_change */
        UPDATE partition_layout l
        SET step = step + 1, phase = 'binding', since = clock_timestamp(), author = $2, to_partitions = $3, to_alternate = $4,
            to_low_partitions = $5, to_low_alternate = $6
        WHERE step = $1 AND phase = 'settled' RETURNING row_to_json(l)::text",
    )
    .bind(known.step)
    .bind(author)
    .bind(i32::from(to.normal.partitions))
    .bind(to.normal.alternate)
    .bind(i32::from(to.low.partitions))
    .bind(to.low.alternate)
    .fetch_optional(pool)
    .await
    .map_err(failed("begin a change of the partitions"))?;
    json.as_deref().map(decode).transpose()
}

/// Live workers, and how many of them are of a version that does not know of changes.
pub async fn workers(pool: &PgPool) -> Result<(i64, i64), StoreError> {
    sqlx::query_as(
        "/* layout_workers */
        SELECT count(*), count(*) FILTER (WHERE follows IS NULL) FROM workers WHERE expires_at > now()",
    )
    .fetch_one(pool)
    .await
    .map_err(failed("count the workers"))
}

/// While this is held, nobody takes a step: for whoever declares the broker's objects. It ends when it is dropped.
pub struct Hold {
    pub course: Course,
    _transaction: Transaction,
}

/// Waits for the end of a step, then holds the course as it is.
pub async fn hold(pool: &PgPool, fresh: Layout) -> Result<Hold, StoreError> {
    // Before the lock: the transaction is given up at its end.
    course(pool, fresh).await?;
    let mut transaction = begin(pool).await.map_err(failed("hold the layout"))?;
    sqlx::query("/* hold_layout */ SELECT pg_advisory_xact_lock_shared($1)")
        .bind(LOCK)
        .execute(&mut *transaction)
        .await
        .map_err(failed("hold the layout"))?;
    keep(&mut transaction).await?;
    let course = course_on(&mut transaction, fresh).await?;
    Ok(Hold { course, _transaction: transaction })
}

/// The right to take one step. It ends when it is dropped.
pub struct Turn {
    pub course: Course,
    transaction: Transaction,
}

/// The right to take the next step; `None` if somebody else has it, or declares just now.
pub async fn turn(pool: &PgPool, fresh: Layout) -> Result<Option<Turn>, StoreError> {
    let mut transaction = begin(pool).await.map_err(failed("take a step"))?;
    let ours: bool = sqlx::query_scalar("/* take_turn */ SELECT pg_try_advisory_xact_lock($1)")
        .bind(LOCK)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed("take a step"))?;
    if !ours {
        return Ok(None);
    }
    keep(&mut transaction).await?;
    let course = course_on(&mut transaction, fresh).await?;
    Ok(Some(Turn { course, transaction }))
}

/// The transaction that has a lock is idle while the broker, or a million commands that wait, take their time.
async fn keep(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("/* keep_lock */ SET LOCAL idle_in_transaction_session_timeout = '10min'")
        .execute(connection)
        .await
        .map(drop)
        .map_err(failed("keep the layout's lock"))
}

impl Turn {
    /// How long the present phase has lasted, in seconds.
    pub async fn age_s(&mut self) -> Result<f64, StoreError> {
        sqlx::query_scalar(
            "/* layout_age */
            SELECT extract(epoch FROM clock_timestamp() - since)::float8 FROM partition_layout",
        )
        .fetch_one(&mut *self.transaction)
        .await
        .map_err(failed("read the layout"))
    }

    /// Makes the next phase last. `false` if somebody else was there: this turn had ended.
    pub async fn enter(mut self, phase: Phase) -> Result<bool, StoreError> {
        let entered = enter(&mut self.transaction, &self.course, phase).await?;
        self.transaction.commit().await.map_err(failed("commit a step"))?;
        Ok(entered)
    }

    /// Commands are applied by the new layout from here on: the last look at the old partitions, the end of what
    /// belonged to those that vanish, and the step, in one transaction. `None` if something of the old ones is left.
    /// Returns the pauses that ended.
    pub async fn switch(mut self, leaving: &[String]) -> Result<Option<Vec<String>>, StoreError> {
        let connection = &mut *self.transaction;
        let left = left_behind(&mut *connection, leaving).await?;
        if left.leases > 0 || left.outbox > 0 {
            return Ok(None);
        }
        let scopes: Vec<String> =
            self.course.vanishing().into_iter().map(|name| format!("partition:{name}")).collect();
        let ended: Vec<String> = sqlx::query_scalar(
            "/* end_pauses */
            WITH gone AS (DELETE FROM partition_leases WHERE partition = ANY($1))
            DELETE FROM pauses WHERE scope = ANY($2) RETURNING scope",
        )
        .bind(leaving)
        .bind(scopes)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed("end what belonged to old partitions"))?;
        let entered = enter(connection, &self.course, Phase::Clearing).await?;
        self.transaction.commit().await.map_err(failed("commit a step"))?;
        Ok(entered.then_some(ended))
    }
}

/// The phase lasts from now on: what was done in this turn before may have taken minutes, and a message that was routed at
/// its end has all the time that it is given.
async fn enter(connection: &mut PgConnection, course: &Course, phase: Phase) -> Result<bool, StoreError> {
    let statement = match phase {
        Phase::Settled => {
            "/* settle_layout */
            UPDATE partition_layout
            SET step = step + 1, phase = $2, since = clock_timestamp(), partitions = to_partitions, alternate = to_alternate,
                low_partitions = to_low_partitions, low_alternate = to_low_alternate
            WHERE step = $1"
        }
        _ => {
            "/* enter_phase */
            UPDATE partition_layout SET step = step + 1, phase = $2, since = clock_timestamp() WHERE step = $1"
        }
    };
    let entered = sqlx::query(statement)
        .bind(course.step)
        .bind(phase.as_str())
        .execute(connection)
        .await
        .map_err(failed("take a step"))?;
    Ok(entered.rows_affected() == 1)
}

/// What of some partitions is not at its end.
#[derive(Debug, Clone, Copy, sqlx::FromRow)]
pub struct Left {
    /// Leases that somebody holds.
    pub leases: i64,
    /// Batches that some other store may not have.
    pub outbox: i64,
}

/// What is left of these partitions.
pub async fn left(pool: &PgPool, partitions: &[String]) -> Result<Left, StoreError> {
    let mut connection = pool.acquire().await.map_err(failed("look at old partitions"))?;
    left_behind(&mut connection, partitions).await
}

async fn left_behind(connection: &mut PgConnection, partitions: &[String]) -> Result<Left, StoreError> {
    sqlx::query_as(
        "/* left_behind */
        SELECT (SELECT count(*) FROM partition_leases WHERE partition = ANY($1) AND expires_at > now()) AS leases,
               (SELECT count(*) FROM outbox WHERE partition = ANY($1)) AS outbox",
    )
    .bind(partitions)
    .fetch_one(connection)
    .await
    .map_err(failed("look at old partitions"))
}

/// After this, who believed to hold one of these partitions commits nothing more; it waits for a batch that is being
/// committed.
pub async fn fence(pool: &PgPool, partitions: &[String]) -> Result<(), StoreError> {
    sqlx::query(
        "/* fence_partitions */
        UPDATE partition_heads h SET epoch = epoch + 1
        FROM (SELECT partition FROM partition_heads WHERE partition = ANY($1) ORDER BY partition FOR UPDATE) f
        WHERE h.partition = f.partition",
    )
    .bind(partitions)
    .execute(pool)
    .await
    .map_err(failed("fence old partitions"))?;
    Ok(())
}

/// Gives every command that waits to the partition that its subject has in this layout, page after page. May be broken
/// off and done again. Returns how many it moved.
pub async fn assign_waiting(pool: &PgPool, layout: Layout) -> Result<u64, StoreError> {
    let mut moved = 0;
    let mut after = Uuid::nil();
    loop {
        let (last, count): (Option<Uuid>, i64) = sqlx::query_as(
            "/* assign_waiting */
            WITH page AS (
                SELECT id, partition, get_byte(uuid_send(subject), 15)
                       % CASE WHEN partition LIKE 'low.%' THEN $4 ELSE $3 END AS number
                FROM waiting_commands WHERE id > $1 ORDER BY id LIMIT $2
            ), named AS (
                SELECT id, CASE WHEN partition LIKE 'low.%' THEN 'low.' ELSE '' END
                           || CASE WHEN number < 10 THEN '0' ELSE '' END || number AS partition
                FROM page
            ), moved AS (
                UPDATE waiting_commands w SET partition = n.partition
                FROM named n WHERE w.id = n.id AND w.partition <> n.partition RETURNING 1
            )
            SELECT (SELECT id FROM page ORDER BY id DESC LIMIT 1), (SELECT count(*) FROM moved)",
        )
        .bind(after)
        .bind(PAGE)
        .bind(i32::from(layout.normal.partitions))
        .bind(i32::from(layout.low.partitions))
        .fetch_one(pool)
        .await
        .map_err(failed("move commands that wait"))?;
        moved += count as u64;
        match last {
            Some(last) => after = last,
            None => return Ok(moved),
        }
    }
}

/// The names of partitions, as the tables have them.
pub fn names(partitions: &[Partition]) -> Vec<String> {
    partitions.iter().map(ToString::to_string).collect()
}
