//! What people do to dead letters: replay, edit and replay, discard. Each is one transaction with its event in the audit
//! trail.
//!
//! A replay is begun here and published by the workers ([`publishing`]): whoever dies in between, they find the letter
//! in its state `replaying` and publish it, again if need be. The receipt's primary key makes a second publication
//! harmless.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use sqlx::PgConnection;
use sqlx::postgres::types::PgInterval;
use taskflow_core::Fault;
use taskflow_core::dead_letter::{self, MISMATCH, Outline, Route, State, receipt_fingerprints};
use taskflow_core::envelope::COMMAND_MAX;
use taskflow_core::system_event::{self, Deed, Occurrence, Subject};
use uuid::Uuid;

use super::dead_letters::{Letter, read_letter};
use super::{PgPool, Transaction, failed, system_events};
use crate::{StoreError, clock};

/// How long a letter waits for the receipt that follows it. A worker that died in between is back by then.
pub(super) const RECEIPT_FOLLOWS: TimeDelta = TimeDelta::seconds(60);
/// Bytes of letters that are published together; one may have more.
const PUBLISHED_BYTES_MAX: i64 = 8 * 1024 * 1024;
/// Any number that nobody else uses for an advisory lock in this database: one publishes replays at a time, in order.
const PUBLISHING: i64 = 0x7461_736b_6465_6164;

/// Who does it, and why.
#[derive(Debug, Clone, Copy)]
pub struct By<'b> {
    pub author: Uuid,
    pub why: Option<&'b str>,
    pub at: DateTime<Utc>,
}

impl<'b> By<'b> {
    fn deed(self) -> Deed<'b> {
        Deed { id: clock::new_id(), author: self.author, why: self.why, at: self.at }
    }
}

/// Why something can't be done to a letter.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("there is no dead letter {0}")]
    Unknown(Uuid),
    #[error("the letter is {}; only one that is kept, or whose command is dead for a minute, can be replayed, edited or discarded", .0.as_str())]
    NotKept(State),
    #[error("the letter died a moment ago and its receipt is not there yet; try again in a minute")]
    Unsettled,
    #[error("these bytes name no subject and came through no slot, so no worker would get them; edit them")]
    NoRoute,
    #[error("another command has this id, so it would die again; edit it and give it a new id")]
    Mismatch,
    #[error(
        "no worker reads more than {COMMAND_MAX} bytes, so it would die again; edit it, or send what it says in parts"
    )]
    TooLarge,
    #[error("the edited command breaks the rules")]
    Faults(Vec<Fault>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Begins the replay of one letter, as it is. Returns the number of the attempt.
pub async fn replay(pool: &PgPool, id: Uuid, by: By<'_>) -> Result<i32, Refused> {
    let (mut transaction, letter) = lock(pool, id).await?;
    if letter.reason == MISMATCH {
        return Err(Refused::Mismatch);
    }
    begin(&mut transaction, &letter, by, false).await?;
    transaction.commit().await.map_err(failed("replay a dead letter"))?;
    Ok(letter.attempt + 1)
}

/// Puts a command in the place of a letter's bytes and begins its replay. The bytes that came stay beside it.
pub async fn edit(pool: &PgPool, id: Uuid, command: &Value, by: By<'_>) -> Result<i32, Refused> {
    let (mut transaction, letter) = lock(pool, id).await?;
    let before = Outline::of(letter.sent());
    let (command, bytes) = dead_letter::edit(&before, &letter.reason, command).map_err(Refused::Faults)?;
    let key = dead_letter::key(&bytes);
    sqlx::query(
        "/* edit_dead_letter */
        UPDATE dead_letters
        SET edited = $2, edited_key = $3, command_id = $4, type = $5, source = $6, subject = $7, actor = $8
        WHERE id = $1",
    )
    .bind(id)
    .bind(&bytes)
    .bind(key.as_slice())
    .bind(command.id)
    .bind(command.kind())
    .bind(&command.source)
    .bind(command.subject)
    .bind(command.actor)
    .execute(&mut *transaction)
    .await
    .map_err(failed("edit a dead letter"))?;
    let event = system_event::dead_letter_edited(by.deed(), subject(&letter, &before), letter.sent(), &bytes);
    system_events::insert(&mut transaction, &[event]).await?;
    begin(&mut transaction, &letter, by, true).await?;
    transaction.commit().await.map_err(failed("edit a dead letter"))?;
    Ok(letter.attempt + 1)
}

/// Decides that a letter is not needed. It stays until the retention's end.
pub async fn discard(pool: &PgPool, id: Uuid, by: By<'_>) -> Result<(), Refused> {
    let (mut transaction, letter) = lock(pool, id).await?;
    sqlx::query(
        "/* discard_dead_letter */
        UPDATE dead_letters SET state = 'discarded', decided_at = $2, decided_by = $3, decided_why = $4 WHERE id = $1",
    )
    .bind(id)
    .bind(by.at)
    .bind(by.author)
    .bind(by.why)
    .execute(&mut *transaction)
    .await
    .map_err(failed("discard a dead letter"))?;
    let outline = Outline::of(letter.sent());
    let event = system_event::dead_letter_discarded(by.deed(), subject(&letter, &outline), letter.sent());
    system_events::insert(&mut transaction, &[event]).await?;
    Ok(transaction.commit().await.map_err(failed("discard a dead letter"))?)
}

async fn lock(pool: &PgPool, id: Uuid) -> Result<(Transaction, Letter), Refused> {
    let mut transaction = super::begin(pool).await.map_err(failed("lock a dead letter"))?;
    let letter = sqlx::query("/* lock_dead_letter */ SELECT * FROM dead_letters WHERE id = $1 FOR UPDATE")
        .bind(id)
        .try_map(read_letter)
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("lock a dead letter"))?
        .ok_or(Refused::Unknown(id))?;
    match letter.state {
        State::Kept => Ok((transaction, letter)),
        // It died again a while ago, and what told of that was taken for a copy of an earlier death.
        State::Replayed if is_dead(&mut transaction, &letter).await? => Ok((transaction, letter)),
        other => Err(Refused::NotKept(other)),
    }
}

/// Whether the receipt of a letter says that it is dead, and has done so for long enough: what tells of a death comes
/// before the receipt, and may not be taken in yet.
async fn is_dead(connection: &mut PgConnection, letter: &Letter) -> Result<bool, StoreError> {
    let (ids, fingerprints) = own_receipts(std::slice::from_ref(letter));
    sqlx::query_scalar(
        "/* is_letter_dead */
        SELECT EXISTS (
            SELECT FROM receipts r JOIN UNNEST($1::uuid[], $2::bytea[]) AS own (id, fingerprint) ON r.id = own.id
            WHERE r.outcome = 'dead' AND r.fingerprint = own.fingerprint AND r.finished_at < clock_timestamp() - $3
        )",
    )
    .bind(ids)
    .bind(fingerprints)
    .bind(PgInterval { months: 0, days: 0, microseconds: RECEIPT_FOLLOWS.num_microseconds().unwrap_or(i64::MAX) })
    .fetch_one(connection)
    .await
    .map_err(failed("look for a dead letter's receipt"))
}

/// `routed`: an edit has given it a route already.
async fn begin(
    connection: &mut PgConnection,
    letter: &Letter,
    by: By<'_>,
    routed: bool,
) -> Result<(), Refused> {
    if !routed && letter.sent().len() > COMMAND_MAX {
        return Err(Refused::TooLarge);
    }
    if !routed && route(letter).is_none() {
        return Err(Refused::NoRoute);
    }
    let letters = std::slice::from_ref(letter);
    if !unsettled(connection, letters, by.at).await?.is_empty() {
        return Err(Refused::Unsettled);
    }
    Ok(begin_all(connection, letters, by, None).await?)
}

/// Where a letter goes.
pub(super) fn route(letter: &Letter) -> Option<Route> {
    Outline::of(letter.sent()).route(&letter.routing_key, &letter.queue)
}

/// Those whose receipt is still to come: begun now, their replay would be dropped as a duplicate.
pub(super) async fn unsettled(
    connection: &mut PgConnection,
    letters: &[Letter],
    now: DateTime<Utc>,
) -> Result<Vec<Uuid>, StoreError> {
    let fresh: Vec<&Letter> = letters
        .iter()
        .filter(|letter| {
            dead_letter::leaves_receipt(&letter.reason) && now - letter.last_died_at < RECEIPT_FOLLOWS
        })
        .collect();
    let ids: Vec<Uuid> = fresh.iter().filter_map(|letter| letter.command_id).collect();
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let there: Vec<Uuid> = sqlx::query_scalar("/* settled */ SELECT id FROM receipts WHERE id = ANY($1)")
        .bind(&ids)
        .fetch_all(connection)
        .await
        .map_err(failed("look up receipts"))?;
    let waits = |letter: &&&Letter| letter.command_id.is_some_and(|id| !there.contains(&id));
    Ok(fresh.iter().filter(waits).map(|letter| letter.id).collect())
}

/// A replay of many that letters belong to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replay {
    pub id: Uuid,
    /// Letters that it has taken before.
    pub taken: i64,
}

/// Begins the replay of locked letters: their own receipts go, so that the workers take them for new; nobody else's.
pub(super) async fn begin_all(
    connection: &mut PgConnection,
    letters: &[Letter],
    by: By<'_>,
    replay: Option<Replay>,
) -> Result<(), StoreError> {
    forget_receipts(connection, letters).await?;
    let places: Vec<Option<i64>> =
        (1..).zip(letters).map(|(number, _)| replay.map(|replay| replay.taken + number)).collect();
    sqlx::query(
        "/* begin_replays */
        UPDATE dead_letters d
        SET state = 'replaying', attempt = attempt + 1, decided_at = $3, decided_by = $4, decided_why = $5, replay = $6,
            replay_place = n.place
        FROM UNNEST($1::uuid[], $2::bigint[]) AS n (id, place) WHERE d.id = n.id",
    )
    .bind(letters.iter().map(|letter| letter.id).collect::<Vec<_>>())
    .bind(places)
    .bind(by.at)
    .bind(by.author)
    .bind(by.why)
    .bind(replay.map(|replay| replay.id))
    .execute(&mut *connection)
    .await
    .map_err(failed("begin replays"))?;
    let event = |letter: &Letter| -> Occurrence {
        let outline = Outline::of(letter.sent());
        let replay = replay.map(|replay| replay.id);
        system_event::dead_letter_replayed(by.deed(), subject(letter, &outline), letter.attempt + 1, replay)
    };
    let events: Vec<Occurrence> = letters.iter().map(event).collect();
    system_events::insert(connection, &events).await
}

/// Ids and fingerprints under which the workers write the receipts of these letters.
fn own_receipts(letters: &[Letter]) -> (Vec<Uuid>, Vec<Vec<u8>>) {
    let mut own: Vec<(Uuid, Vec<u8>)> = Vec::new();
    for letter in letters {
        // Of a message that kills whoever reads it, the id beside the bytes is all that the workers know.
        let beside = letter.headers.get("message-id").and_then(Value::as_str).and_then(|id| id.parse().ok());
        for body in [Some(&letter.body), letter.edited.as_ref()].into_iter().flatten() {
            let ids = [Outline::of(body).id, beside];
            let fingerprints = receipt_fingerprints(body);
            let pairs =
                ids.into_iter().flatten().flat_map(|id| fingerprints.iter().map(move |f| (id, f.to_vec())));
            own.extend(pairs);
        }
    }
    own.into_iter().unzip()
}

/// Removes the receipts that say that these letters are dead, and only those.
pub(super) async fn forget_receipts(
    connection: &mut PgConnection,
    letters: &[Letter],
) -> Result<(), StoreError> {
    let (ids, fingerprints) = own_receipts(letters);
    sqlx::query(
        "/* forget_dead_receipts */
        DELETE FROM receipts r USING UNNEST($1::uuid[], $2::bytea[]) AS own (id, fingerprint)
        WHERE r.id = own.id AND r.outcome = 'dead' AND r.fingerprint = own.fingerprint",
    )
    .bind(ids)
    .bind(fingerprints)
    .execute(connection)
    .await
    .map_err(failed("remove receipts of dead letters"))?;
    Ok(())
}

fn subject<'l>(letter: &'l Letter, outline: &'l Outline) -> Subject<'l> {
    Subject {
        letter: letter.id,
        command: letter.command_id,
        correlation: outline.correlation,
        traceparent: outline.traceparent.as_deref(),
        reason: &letter.reason,
        detail: &letter.detail,
    }
}

/// Letters whose replay was begun, and the right to publish them.
pub struct Publishing {
    transaction: Transaction,
    /// In the order in which they are to be published.
    pub letters: Vec<Letter>,
}

/// Takes the letters that are to be published next; `None` if somebody else publishes at the moment.
pub async fn publishing(pool: &PgPool, limit: i64) -> Result<Option<Publishing>, StoreError> {
    let mut transaction = super::begin(pool).await.map_err(failed("take replays"))?;
    let mine: bool = sqlx::query_scalar("/* publish_replays */ SELECT pg_try_advisory_xact_lock($1)")
        .bind(PUBLISHING)
        .fetch_one(&mut *transaction)
        .await
        .map_err(failed("take replays"))?;
    if !mine {
        return Ok(None);
    }
    let letters = sqlx::query(
        "/* take_replays */
        SELECT * FROM dead_letters WHERE id IN (
            SELECT id FROM (
                SELECT id, coalesce(sum(octet_length(coalesce(edited, body))) OVER (
                    ORDER BY decided_at, replay_place NULLS FIRST, id
                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS bytes_before
                FROM (
                    SELECT id, edited, body, decided_at, replay_place FROM dead_letters WHERE state = 'replaying'
                    ORDER BY decided_at, replay_place NULLS FIRST, id LIMIT $1
                ) first
            ) counted WHERE bytes_before < $2
        ) AND state = 'replaying'
        ORDER BY decided_at, replay_place NULLS FIRST, id FOR UPDATE",
    )
    .bind(limit)
    .bind(PUBLISHED_BYTES_MAX)
    .try_map(read_letter)
    .fetch_all(&mut *transaction)
    .await
    .map_err(failed("take replays"))?;
    Ok(Some(Publishing { transaction, letters }))
}

impl Publishing {
    /// Notes that the broker has the letters with these ids.
    pub async fn published(mut self, ids: &[Uuid]) -> Result<(), StoreError> {
        sqlx::query("/* replays_published */ UPDATE dead_letters SET state = 'replayed' WHERE id = ANY($1)")
            .bind(ids)
            .execute(&mut *self.transaction)
            .await
            .map_err(failed("note what was replayed"))?;
        self.transaction.commit().await.map_err(failed("note what was replayed"))
    }
}
