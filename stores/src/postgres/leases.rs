//! Who consumes which partition: the tables `workers`, `partition_leases` and `partition_heads`.
//!
//! All times are the server's, so the workers' clocks do not matter.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use taskflow_core::partition::Course;
use taskflow_core::pause::{Pauses, Scope};
use uuid::Uuid;

use super::restore_epochs::Epoch;
use super::{PgPool, failed, layout};
use crate::{Kind, StoreError};

/// Whether a live worker reaches the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// For longer than a lease.
    Steady,
    /// Again, since a moment ago.
    Back,
    /// Not for longer than a lease.
    CutOff,
}

/// What a worker says of itself.
#[derive(Debug)]
pub struct Heartbeat<'h> {
    pub worker: Uuid,
    pub name: &'h str,
    pub lease_ms: i64,
    /// The newest step of the layout that it knows.
    pub step: i64,
    /// How far its partitions have got.
    pub reached: &'h [(String, DateTime<Utc>)],
    /// Whether it has not reached the broker for longer than a lease.
    pub cut_off: bool,
}

/// What the database says after a heartbeat.
#[derive(Debug, Default)]
pub struct Membership {
    /// The live workers, this one included.
    pub workers: Vec<(Uuid, Reach)>,
    /// Partitions whose lease this worker still holds.
    pub held: Vec<String>,
    /// Partitions whose lease somebody else holds.
    pub taken: Vec<String>,
    /// When the first of those leases ends if nobody renews it, from now.
    pub first_ends_in: Option<Duration>,
    /// What operators hold back.
    pub pauses: Pauses,
    /// Which partitions there are; `None` if nobody has said so yet.
    pub course: Option<Course>,
    /// This database was restored, and the other stores do not agree with it yet: nothing can be taken.
    pub restored: Option<Epoch>,
}

/// Says that a worker is alive, how far its partitions have got, which step of the layout it knows and whether it reaches
/// the broker; renews its leases, and tells who else is there, what is paused, and which partitions there are.
pub async fn heartbeat(pool: &PgPool, me: Heartbeat<'_>) -> Result<Membership, StoreError> {
    let Heartbeat { worker, name, lease_ms, step, reached, cut_off } = me;
    let (partitions, times): (Vec<&str>, Vec<DateTime<Utc>>) =
        reached.iter().map(|(partition, at)| (partition.as_str(), *at)).unzip();
    let rows: Vec<(String, Option<String>, Option<Uuid>)> = sqlx::query_as(
        "/* heartbeat */
        WITH me AS (
            INSERT INTO workers AS w (id, name, started_at, expires_at, follows, cut_off_since)
            VALUES ($1, $2, now(), now() + $3 * interval '1 millisecond', $6, CASE WHEN $7 THEN now() END)
            ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, follows = excluded.follows,
                cut_off_since = CASE WHEN $7 THEN COALESCE(w.cut_off_since, now()) END,
                back_since = CASE WHEN w.cut_off_since IS NULL THEN w.back_since WHEN NOT $7 THEN now() END
        ), renewed AS (
            UPDATE partition_leases l SET expires_at = now() + $3 * interval '1 millisecond',
                reached = COALESCE((SELECT r.at FROM UNNEST($4::text[], $5::timestamptz[]) AS r(partition, at)
                                    WHERE r.partition = l.partition), l.reached)
            WHERE holder = $1 AND expires_at > now() RETURNING partition
        ), gone AS (
            DELETE FROM workers WHERE expires_at < now() - interval '1 hour'
        )
        SELECT CASE WHEN id = $1 AND $7 OR id <> $1 AND cut_off_since IS NOT NULL THEN 'cut_off'
                    WHEN cut_off_since IS NOT NULL OR back_since > now() - $3 * interval '1 millisecond' THEN 'back'
                    ELSE 'steady' END, NULL, id
        FROM workers WHERE expires_at > now() OR id = $1
        UNION ALL SELECT 'held', partition, NULL FROM renewed
        UNION ALL SELECT 'taken', partition, NULL FROM partition_leases WHERE holder <> $1 AND expires_at > now()
        UNION ALL SELECT 'ends', ceil(EXTRACT(EPOCH FROM min(expires_at) - now()) * 1000)::bigint::text, NULL
            FROM partition_leases WHERE holder <> $1 AND expires_at > now()
        UNION ALL SELECT 'paused', scope, NULL FROM pauses
        UNION ALL SELECT 'layout', row_to_json(l)::text, NULL FROM partition_layout l
        UNION ALL (SELECT 'restored', json_build_object('epoch', epoch, 'begun_at', begun_at, 'point', point)::text, NULL
            FROM restore_epochs WHERE ended_at IS NULL ORDER BY epoch DESC LIMIT 1)",
    )
    .bind(worker)
    .bind(name)
    .bind(lease_ms)
    .bind(partitions)
    .bind(times)
    .bind(step)
    .bind(cut_off)
    .fetch_all(pool)
    .await
    .map_err(failed("renew leases"))?;
    let mut membership = Membership::default();
    let mut paused: Vec<Scope> = Vec::new();
    for (what, partition, id) in rows {
        match (what.as_str(), partition, id) {
            ("steady", _, Some(id)) => membership.workers.push((id, Reach::Steady)),
            ("back", _, Some(id)) => membership.workers.push((id, Reach::Back)),
            ("cut_off", _, Some(id)) => membership.workers.push((id, Reach::CutOff)),
            ("held", Some(partition), _) => membership.held.push(partition),
            ("ends", millis, _) => {
                membership.first_ends_in =
                    millis.and_then(|millis| millis.parse().ok()).map(Duration::from_millis);
            }
            // A type that a newer program knows can't come here: this one would not read such a command either.
            ("paused", Some(scope), _) => paused.extend(scope.parse::<Scope>().ok()),
            ("layout", Some(row), _) => membership.course = Some(layout::decode(&row)?),
            ("restored", Some(row), _) => {
                let epoch = serde_json::from_str(&row)
                    .map_err(|error| StoreError::new(super::STORE, "renew leases", Kind::Bug, error))?;
                membership.restored = Some(epoch);
            }
            (_, Some(partition), _) => membership.taken.push(partition),
            _ => {}
        }
    }
    if membership.workers.iter().all(|(id, _)| *id != worker) {
        // Its first heartbeat: the statement does not see what it adds itself.
        membership.workers.push((worker, if cut_off { Reach::CutOff } else { Reach::Steady }));
    }
    membership.pauses = paused.into_iter().collect();
    Ok(membership)
}

/// For each partition that has a holder: for how many seconds it has been behind. What was accepted earlier than that
/// is finished.
pub async fn behind(pool: &PgPool) -> Result<Vec<(String, f64)>, StoreError> {
    sqlx::query_as(
        "/* partitions_behind */
        SELECT partition, GREATEST(EXTRACT(EPOCH FROM clock_timestamp() - reached), 0)::double precision
        FROM partition_leases WHERE reached IS NOT NULL",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read how far the partitions have got"))
}

/// For each partition that has a holder: what was accepted before this time is finished.
pub async fn reached(pool: &PgPool) -> Result<Vec<(String, DateTime<Utc>)>, StoreError> {
    sqlx::query_as(
        "/* partitions_reached */
        SELECT partition, reached FROM partition_leases WHERE reached IS NOT NULL AND expires_at > now()",
    )
    .fetch_all(pool)
    .await
    .map_err(failed("read how far the partitions have got"))
}

/// The number of each partition's newest batch.
pub async fn newest_batches(pool: &PgPool) -> Result<Vec<(String, i64)>, StoreError> {
    sqlx::query_as("/* newest_batches */ SELECT partition, batch FROM partition_heads")
        .fetch_all(pool)
        .await
        .map_err(failed("read the partitions' heads"))
}

/// When the first batch was applied that comes after these, in any of the partitions; `None` if there is none. Each is
/// given with its number and the last that is looked for.
pub async fn applied_after(
    pool: &PgPool,
    partitions: &[(&str, i64, i64)],
) -> Result<Option<DateTime<Utc>>, StoreError> {
    if partitions.is_empty() {
        return Ok(None);
    }
    sqlx::query_scalar(
        "/* applied_after */
        SELECT min(b.applied_at) FROM UNNEST($1::text[], $2::bigint[]) AS p (partition, number)
        CROSS JOIN LATERAL (
            SELECT applied_at FROM batches
            WHERE partition = p.partition AND number > p.number ORDER BY number LIMIT 1
        ) b",
    )
    .bind(partitions.iter().map(|(partition, _, _)| *partition).collect::<Vec<_>>())
    .bind(partitions.iter().map(|(_, number, _)| *number).collect::<Vec<_>>())
    .fetch_one(pool)
    .await
    .map_err(failed("look when batches were applied"))
}

/// Ends some partition's lease before its time, as a pause of its holder's machine would. Returns which; `None` if there
/// is none.
pub async fn expire_one(pool: &PgPool) -> Result<Option<String>, StoreError> {
    sqlx::query_scalar(
        "/* expire_lease */
        UPDATE partition_leases SET expires_at = now() - interval '1 millisecond'
        WHERE partition = (SELECT partition FROM partition_leases WHERE expires_at > now() ORDER BY random() LIMIT 1)
        RETURNING partition",
    )
    .fetch_optional(pool)
    .await
    .map_err(failed("end a lease"))
}

/// The right to apply a partition's commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Raised at every change of hands; each batch carries it.
    pub epoch: i64,
    /// The number of the partition's newest batch.
    pub batch: i64,
    /// Holders that died in a row since a batch of commands that had waited came to its end: they left their lease to
    /// run out.
    pub deaths: i16,
}

/// Takes a partition's lease if it is free and `step` is the newest of the layout; `None` if not.
///
/// Raising the epoch waits for a batch that the last holder may still be committing; after it, that holder can
/// commit nothing. It waits for an eighth of a lease at most: a holder that sleeps in the middle of its batch must not keep
/// this worker from renewing the leases that it has. The layout's row is locked against a step that is taken meanwhile.
/// Nothing is free in a restored database with which the other stores do not agree yet.
pub async fn acquire(
    pool: &PgPool,
    partition: &str,
    worker: Uuid,
    lease_ms: i64,
    step: i64,
) -> Result<Option<Lease>, StoreError> {
    let row: Option<(i64, i64, i16)> = sqlx::query_as(
        "/* acquire_lease */
        WITH known AS (
            SELECT set_config('lock_timeout', $5, true) FROM partition_layout
            WHERE step = $4 AND NOT EXISTS (SELECT FROM restore_epochs WHERE ended_at IS NULL) FOR SHARE
        ), orphan AS (
            SELECT 1 FROM partition_leases WHERE partition = $1 AND expires_at <= now()
        ), lease AS (
            INSERT INTO partition_leases AS l (partition, holder, expires_at)
            SELECT $1, $2, now() + $3 * interval '1 millisecond' FROM known
            ON CONFLICT (partition) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at
            WHERE l.expires_at <= now() OR l.holder = $2
            RETURNING partition
        )
        INSERT INTO partition_heads AS h (partition, epoch, batch) SELECT partition, 1, 0 FROM lease
        ON CONFLICT (partition) DO UPDATE
        SET epoch = h.epoch + 1, deaths = least(h.deaths + (SELECT count(*) FROM orphan), 1000)
        RETURNING epoch, batch, deaths",
    )
    .bind(partition)
    .bind(worker)
    .bind(lease_ms)
    .bind(step)
    .bind((lease_ms / 8).max(1).to_string())
    .fetch_optional(pool)
    .await
    .map_err(failed("acquire a lease"))?;
    Ok(row.map(|(epoch, batch, deaths)| Lease { epoch, batch, deaths }))
}

/// Forgets the deaths of former holders: what they died of is not among the commands that waited.
pub async fn forget_deaths(pool: &PgPool, partition: &str, epoch: i64) -> Result<(), StoreError> {
    sqlx::query(
        "/* forget_deaths */ UPDATE partition_heads SET deaths = 0 WHERE partition = $1 AND epoch = $2",
    )
    .bind(partition)
    .bind(epoch)
    .execute(pool)
    .await
    .map_err(failed("forget deaths"))?;
    Ok(())
}

/// Makes a partition that has had no batch yet.
pub(super) async fn begin_partition(
    connection: &mut PgConnection,
    partition: &str,
    epoch: i64,
) -> Result<(), StoreError> {
    sqlx::query(
        "/* begin_partition */ INSERT INTO partition_heads (partition, epoch, batch) VALUES ($1, $2, 0)",
    )
    .bind(partition)
    .bind(epoch)
    .execute(connection)
    .await
    .map_err(failed("begin a partition"))?;
    Ok(())
}

/// The number of a partition's newest batch, if it still belongs to this epoch.
pub async fn newest_batch(pool: &PgPool, partition: &str, epoch: i64) -> Result<Option<i64>, StoreError> {
    sqlx::query_scalar(
        "/* newest_batch */ SELECT batch FROM partition_heads WHERE partition = $1 AND epoch = $2",
    )
    .bind(partition)
    .bind(epoch)
    .fetch_optional(pool)
    .await
    .map_err(failed("read a partition's head"))
}

/// Gives a partition's lease back, so that the next holder need not wait for its end.
pub async fn release(pool: &PgPool, partition: &str, worker: Uuid) -> Result<(), StoreError> {
    sqlx::query("/* release_lease */ DELETE FROM partition_leases WHERE partition = $1 AND holder = $2")
        .bind(partition)
        .bind(worker)
        .execute(pool)
        .await
        .map_err(failed("release a lease"))?;
    Ok(())
}

/// Lets a lease run out at once: its holder's pipeline has died, which counts as the holder's death.
pub async fn abandon(pool: &PgPool, partition: &str, worker: Uuid) -> Result<(), StoreError> {
    sqlx::query(
        "/* abandon_lease */
        UPDATE partition_leases SET expires_at = now() - interval '1 millisecond' WHERE partition = $1 AND holder = $2",
    )
    .bind(partition)
    .bind(worker)
    .execute(pool)
    .await
    .map_err(failed("abandon a lease"))?;
    Ok(())
}

/// Says that a worker is gone.
pub async fn leave(pool: &PgPool, worker: Uuid) -> Result<(), StoreError> {
    sqlx::query("/* leave */ DELETE FROM workers WHERE id = $1")
        .bind(worker)
        .execute(pool)
        .await
        .map_err(failed("leave the workers"))?;
    Ok(())
}
