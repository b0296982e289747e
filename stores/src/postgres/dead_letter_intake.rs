//! Deaths come into the table `dead_letters`, many in one transaction: what is new, and what is told of known ones.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Row};
use taskflow_core::dead_letter::{Attempt, Death, History, Outline, key, pattern};
use uuid::Uuid;

use super::dead_letters::state;
use super::{PgPool, begin, failed};
use crate::{StoreError, clock};

/// What became of a batch of deaths.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Letters that were not known.
    pub new: u64,
    /// Known letters that died again.
    pub again: u64,
    /// Deaths that were known.
    pub copies: u64,
}

/// A letter as this transaction leaves it.
struct Entry {
    id: Uuid,
    /// What its bytes are known by: as they came, and as they were edited.
    keys: Vec<[u8; 32]>,
    history: History,
    /// Its newest death, if it died in this batch.
    newest: Option<usize>,
    /// The death that it is made of, if it is new.
    made_of: Option<usize>,
}

/// Stores deaths. When it returns they have lasted; storing them again changes nothing but a count.
///
/// # Errors
/// [`crate::Kind::Conflict`] when somebody else stores the same letter just now.
pub async fn store(pool: &PgPool, deaths: &[Death]) -> Result<Stored, StoreError> {
    let mut transaction = begin(pool).await.map_err(failed("store dead letters"))?;
    let keys: Vec<[u8; 32]> = deaths.iter().map(|death| key(&death.body)).collect();
    let mut rows = load(&mut transaction, &keys).await?;
    let mut by_key: HashMap<[u8; 32], Vec<usize>> = HashMap::new();
    for (place, row) in rows.iter().enumerate() {
        row.keys.iter().for_each(|key| by_key.entry(*key).or_default().push(place));
    }
    let mut stored = Stored::default();
    for (index, death) in deaths.iter().enumerate() {
        // The bytes decide, so that none are ever lost; of two letters with the same bytes, the one that is named.
        let places = by_key.entry(keys[index]).or_default();
        let named = places.iter().find(|place| death.letter == Some(rows[**place].id));
        let Some(place) = named.or(places.first()).copied() else {
            places.push(rows.len());
            rows.push(Entry {
                id: clock::new_id(),
                keys: Vec::new(),
                history: History::begin(death),
                newest: Some(index),
                made_of: Some(index),
            });
            stored.new += 1;
            continue;
        };
        let row = &mut rows[place];
        let attempt = death.attempt.filter(|_| death.letter == Some(row.id));
        if row.history.note(death, attempt) {
            stored.again += 1;
            if row.history.attempts.last().is_some_and(|newest| newest.died_at == death.died_at) {
                row.newest = Some(index);
            }
        } else {
            stored.copies += 1;
        }
    }
    let (new, known): (Vec<Entry>, Vec<Entry>) = rows.into_iter().partition(|row| row.made_of.is_some());
    insert(&mut transaction, deaths, &keys, &new).await?;
    update(&mut transaction, deaths, &known).await?;
    transaction.commit().await.map_err(failed("store dead letters"))?;
    Ok(stored)
}

/// The letters that are known by these bytes, locked.
async fn load(connection: &mut PgConnection, keys: &[[u8; 32]]) -> Result<Vec<Entry>, StoreError> {
    let keys: Vec<&[u8]> = keys.iter().map(<[u8; 32]>::as_slice).collect();
    sqlx::query(
        "/* known_dead_letters */
        SELECT id, key, edited_key, state, attempt, attempts, copies, decided_at FROM dead_letters
        WHERE key = ANY($1) OR edited_key = ANY($1) ORDER BY id FOR UPDATE",
    )
    .bind(keys)
    .try_map(read)
    .fetch_all(connection)
    .await
    .map_err(failed("look up dead letters"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn read(row: PgRow) -> Result<Entry, sqlx::Error> {
    let Json(attempts) = row.try_get("attempts")?;
    let history = History {
        state: state(&row)?,
        attempt: row.try_get("attempt")?,
        attempts,
        copies: row.try_get("copies")?,
        decided_at: row.try_get("decided_at")?,
    };
    let keys: [Option<Vec<u8>>; 2] = [row.try_get("key")?, row.try_get("edited_key")?];
    let keys = keys.into_iter().flatten().filter_map(|key| key.try_into().ok()).collect();
    Ok(Entry { id: row.try_get("id")?, keys, history, newest: None, made_of: None })
}

/// What an error is told by.
struct Error {
    reason: String,
    detail: String,
    pattern: String,
    fingerprint: String,
    died_at: DateTime<Utc>,
}

impl Error {
    fn of(attempt: &Attempt) -> Self {
        let pattern = pattern::pattern(&attempt.detail);
        Self {
            fingerprint: pattern::fingerprint(&attempt.reason, &pattern),
            pattern,
            reason: attempt.reason.clone(),
            detail: attempt.detail.clone(),
            died_at: attempt.died_at,
        }
    }
}

async fn insert(
    connection: &mut PgConnection,
    deaths: &[Death],
    keys: &[[u8; 32]],
    rows: &[Entry],
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let made: Vec<usize> = rows.iter().filter_map(|row| row.made_of).collect();
    let outlines: Vec<Outline> = made.iter().map(|index| Outline::of(&deaths[*index].body)).collect();
    let errors: Vec<Error> =
        rows.iter().filter_map(|row| row.history.attempts.last()).map(Error::of).collect();
    let death = |field: fn(&Death) -> &str| made.iter().map(|i| field(&deaths[*i])).collect::<Vec<_>>();
    let headers: Vec<Json<&Map<String, Value>>> = made.iter().map(|i| Json(&deaths[*i].headers)).collect();
    sqlx::query(
        "/* insert_dead_letters */
        INSERT INTO dead_letters (id, key, command_id, type, source, subject, actor, trace_id, reason, detail, pattern,
                                  fingerprint, exchange, queue, routing_key, headers, body, accepted_at, state, attempt,
                                  attempts, copies, first_died_at, last_died_at)
        SELECT * FROM UNNEST($1::uuid[], $2::bytea[], $3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::uuid[],
                             $8::text[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[],
                             $15::text[], $16::jsonb[], $17::bytea[], $18::timestamptz[], $19::text[], $20::integer[],
                             $21::jsonb[], $22::bigint[], $23::timestamptz[], $24::timestamptz[])",
    )
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(made.iter().map(|i| keys[*i].as_slice()).collect::<Vec<_>>())
    .bind(outlines.iter().map(|outline| outline.id).collect::<Vec<_>>())
    .bind(outlines.iter().map(|outline| outline.kind.as_deref()).collect::<Vec<_>>())
    .bind(outlines.iter().map(|outline| outline.source.as_deref()).collect::<Vec<_>>())
    .bind(outlines.iter().map(|outline| outline.subject).collect::<Vec<_>>())
    .bind(outlines.iter().map(|outline| outline.actor).collect::<Vec<_>>())
    .bind(outlines.iter().map(Outline::trace).collect::<Vec<_>>())
    .bind(errors.iter().map(|error| error.reason.as_str()).collect::<Vec<_>>())
    .bind(errors.iter().map(|error| error.detail.as_str()).collect::<Vec<_>>())
    .bind(errors.iter().map(|error| error.pattern.as_str()).collect::<Vec<_>>())
    .bind(errors.iter().map(|error| error.fingerprint.as_str()).collect::<Vec<_>>())
    .bind(death(|death| &death.exchange))
    .bind(death(|death| &death.queue))
    .bind(death(|death| &death.routing_key))
    .bind(headers)
    .bind(made.iter().map(|i| deaths[*i].body.as_slice()).collect::<Vec<_>>())
    .bind(made.iter().map(|i| deaths[*i].accepted_at).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.history.state.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.history.attempt).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| Json(&row.history.attempts)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.history.copies).collect::<Vec<_>>())
    .bind(made.iter().map(|i| deaths[*i].died_at).collect::<Vec<_>>())
    .bind(errors.iter().map(|error| error.died_at).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("insert dead letters"))?;
    Ok(())
}

async fn update(connection: &mut PgConnection, deaths: &[Death], rows: &[Entry]) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let errors: Vec<Option<Error>> =
        rows.iter().map(|row| row.newest.and_then(|_| row.history.attempts.last()).map(Error::of)).collect();
    let error = |field: fn(&Error) -> &str| errors.iter().map(|e| e.as_ref().map(field)).collect::<Vec<_>>();
    let death = |field: fn(&Death) -> &str| {
        rows.iter().map(|row| row.newest.map(|index| field(&deaths[index]))).collect::<Vec<_>>()
    };
    sqlx::query(
        "/* update_dead_letters */
        UPDATE dead_letters d
        SET state = n.state, attempt = n.attempt, attempts = n.attempts, copies = n.copies,
            reason = coalesce(n.reason, d.reason), detail = coalesce(n.detail, d.detail),
            pattern = coalesce(n.pattern, d.pattern), fingerprint = coalesce(n.fingerprint, d.fingerprint),
            queue = coalesce(n.queue, d.queue), routing_key = coalesce(n.routing_key, d.routing_key),
            last_died_at = greatest(d.last_died_at, n.died_at)
        FROM UNNEST($1::uuid[], $2::text[], $3::integer[], $4::jsonb[], $5::bigint[], $6::text[], $7::text[],
                    $8::text[], $9::text[], $10::text[], $11::text[], $12::timestamptz[])
            AS n (id, state, attempt, attempts, copies, reason, detail, pattern, fingerprint, queue, routing_key,
                  died_at)
        WHERE d.id = n.id",
    )
    .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.history.state.as_str()).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.history.attempt).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| Json(&row.history.attempts)).collect::<Vec<_>>())
    .bind(rows.iter().map(|row| row.history.copies).collect::<Vec<_>>())
    .bind(error(|error| &error.reason))
    .bind(error(|error| &error.detail))
    .bind(error(|error| &error.pattern))
    .bind(error(|error| &error.fingerprint))
    .bind(death(|death| &death.queue))
    .bind(death(|death| &death.routing_key))
    .bind(errors.iter().map(|e| e.as_ref().map(|e| e.died_at)).collect::<Vec<_>>())
    .execute(connection)
    .await
    .map_err(failed("update dead letters"))?;
    Ok(())
}
