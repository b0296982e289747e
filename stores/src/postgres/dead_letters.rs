//! The table `dead_letters`: what can be asked of it. [`super::dead_letter_intake`] fills it,
//! [`super::dead_letter_deeds`] holds what people do to a letter.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row};
use taskflow_core::dead_letter::{Attempt, State, shown};
use uuid::Uuid;

use super::tasks::unknown_word;
use super::{PgPool, failed};
use crate::StoreError;

/// Rows that one call removes.
const PRUNE_MAX: i64 = 1_000;

/// Which letters are meant. What is not named does not matter.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<Uuid>,
    /// The command's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Uuid>,
    /// Died last at this time or later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<DateTime<Utc>>,
    /// Died last before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<DateTime<Utc>>,
}

impl Filter {
    pub(super) fn push(&self, query: &mut QueryBuilder<Postgres>) {
        let texts = [
            ("reason", &self.reason),
            ("type", &self.kind),
            ("source", &self.source),
            ("fingerprint", &self.fingerprint),
        ];
        for (column, value) in texts {
            if let Some(value) = value {
                query.push(format_args!(" AND {column} = ")).push_bind(value.clone());
            }
        }
        if let Some(state) = self.state {
            query.push(" AND state = ").push_bind(state.as_str());
        }
        for (column, value) in [("subject", self.subject), ("command_id", self.command)] {
            if let Some(value) = value {
                query.push(format_args!(" AND {column} = ")).push_bind(value);
            }
        }
        if let Some(from) = self.from {
            query.push(" AND last_died_at >= ").push_bind(from);
        }
        if let Some(to) = self.to {
            query.push(" AND last_died_at < ").push_bind(to);
        }
    }
}

/// A letter in a list.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub id: Uuid,
    pub commandid: Option<Uuid>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub source: Option<String>,
    pub subject: Option<Uuid>,
    pub reason: String,
    pub detail: String,
    pub fingerprint: String,
    pub state: State,
    /// The number of its newest attempt.
    pub attempt: i32,
    pub firstdiedat: DateTime<Utc>,
    pub lastdiedat: DateTime<Utc>,
}

/// Where a list goes on: behind this letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    last_died_at: DateTime<Utc>,
    id: Uuid,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.last_died_at.timestamp_micros(), self.id)
    }
}

impl std::str::FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (micros, id) = text.split_once('.')?;
            let last_died_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
            Some(Self { last_died_at, id: id.parse().ok()? })
        };
        read().ok_or_else(|| format!("{text:?} is no cursor; take the one of a list's `next`"))
    }
}

/// The letters that a filter means, the last to die first, and where the list goes on.
pub async fn list(
    pool: &PgPool,
    filter: &Filter,
    cursor: Option<Cursor>,
    limit: u32,
) -> Result<(Vec<Summary>, Option<Cursor>), StoreError> {
    let mut query = QueryBuilder::new(
        "/* list_dead_letters */
        SELECT id, command_id, type, source, subject, reason, detail, fingerprint, state, attempt, first_died_at,
               last_died_at
        FROM dead_letters WHERE true",
    );
    filter.push(&mut query);
    if let Some(Cursor { last_died_at, id }) = cursor {
        query.push(" AND (last_died_at, id) < (").push_bind(last_died_at);
        query.push(", ").push_bind(id).push(")");
    }
    query.push(" ORDER BY last_died_at DESC, id DESC LIMIT ").push_bind(i64::from(limit) + 1);
    let rows = query.build().try_map(read_summary).fetch_all(pool).await;
    let mut letters: Vec<Summary> = rows.map_err(failed("list dead letters"))?;
    let more = letters.len() > limit as usize;
    letters.truncate(limit as usize);
    let next = letters.last().filter(|_| more);
    let next = next.map(|letter| Cursor { last_died_at: letter.lastdiedat, id: letter.id });
    Ok((letters, next))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
fn read_summary(row: PgRow) -> Result<Summary, sqlx::Error> {
    Ok(Summary {
        id: row.try_get("id")?,
        commandid: row.try_get("command_id")?,
        kind: row.try_get("type")?,
        source: row.try_get("source")?,
        subject: row.try_get("subject")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        fingerprint: row.try_get("fingerprint")?,
        state: state(&row)?,
        attempt: row.try_get("attempt")?,
        firstdiedat: row.try_get("first_died_at")?,
        lastdiedat: row.try_get("last_died_at")?,
    })
}

pub(super) fn state(row: &PgRow) -> Result<State, sqlx::Error> {
    let word: &str = row.try_get("state")?;
    State::from_word(word).ok_or_else(|| unknown_word("state", word))
}

/// Letters that died of the same error.
#[derive(Debug, Clone, Serialize, sqlx::FromRow)]
pub struct Group {
    pub fingerprint: String,
    pub reason: String,
    /// What their errors have in common.
    pub pattern: String,
    pub letters: i64,
    /// How many of them wait for a decision.
    pub kept: i64,
    pub firstdiedat: DateTime<Utc>,
    pub lastdiedat: DateTime<Utc>,
    pub types: Vec<String>,
    pub sources: Vec<String>,
    /// One of them, the last to die.
    pub example: Uuid,
}

/// The letters that a filter means, grouped by their errors, the largest group first.
pub async fn groups(pool: &PgPool, filter: &Filter, limit: u32) -> Result<Vec<Group>, StoreError> {
    let mut query = QueryBuilder::new(
        "/* group_dead_letters */
        SELECT fingerprint, min(reason) AS reason, min(pattern) AS pattern, count(*) AS letters,
               count(*) FILTER (WHERE state = 'kept') AS kept, min(first_died_at) AS firstdiedat,
               max(last_died_at) AS lastdiedat,
               (array_agg(DISTINCT coalesce(type, 'unknown')))[1:20] AS types,
               (array_agg(DISTINCT coalesce(source, 'unknown')))[1:20] AS sources,
               (array_agg(id ORDER BY last_died_at DESC))[1] AS example
        FROM dead_letters WHERE true",
    );
    filter.push(&mut query);
    query.push(" GROUP BY fingerprint ORDER BY kept DESC, letters DESC, fingerprint LIMIT ");
    query.push_bind(i64::from(limit));
    query.build_query_as().fetch_all(pool).await.map_err(failed("group dead letters"))
}

/// A letter with all that is known of it.
#[derive(Debug, Clone)]
pub struct Letter {
    pub id: Uuid,
    pub command_id: Option<Uuid>,
    pub kind: Option<String>,
    pub source: Option<String>,
    pub subject: Option<Uuid>,
    pub actor: Option<Uuid>,
    pub trace_id: Option<String>,
    pub reason: String,
    pub detail: String,
    pub pattern: String,
    pub fingerprint: String,
    pub exchange: String,
    pub queue: String,
    pub routing_key: String,
    pub headers: Map<String, Value>,
    /// As it came.
    pub body: Vec<u8>,
    /// What a person has put in its place.
    pub edited: Option<Vec<u8>>,
    pub accepted_at: Option<DateTime<Utc>>,
    pub state: State,
    pub attempt: i32,
    pub attempts: Vec<Attempt>,
    pub copies: i64,
    pub first_died_at: DateTime<Utc>,
    pub last_died_at: DateTime<Utc>,
    pub decided_at: Option<DateTime<Utc>>,
    pub decided_by: Option<Uuid>,
    pub decided_why: Option<String>,
    pub replay: Option<Uuid>,
}

impl Letter {
    /// What a replay publishes.
    pub fn sent(&self) -> &[u8] {
        self.edited.as_deref().unwrap_or(&self.body)
    }

    /// All of it for a person: the bytes, and what they say without passwords.
    pub fn shown(&self) -> Value {
        json!({
            "id": self.id, "commandid": self.command_id, "type": self.kind, "source": self.source,
            "subject": self.subject, "actorid": self.actor, "traceid": self.trace_id,
            "reason": self.reason, "detail": self.detail, "pattern": self.pattern, "fingerprint": self.fingerprint,
            "exchange": self.exchange, "queue": self.queue, "routingkey": self.routing_key, "headers": self.headers,
            "command": shown::decoded(&self.body), "body": shown::base64(&self.body), "bytes": self.body.len(),
            "editedcommand": self.edited.as_deref().and_then(shown::decoded),
            "editedbody": self.edited.as_deref().map(shown::base64),
            "acceptedat": self.accepted_at, "state": self.state, "attempt": self.attempt, "attempts": self.attempts,
            "copies": self.copies, "firstdiedat": self.first_died_at, "lastdiedat": self.last_died_at,
            "decidedat": self.decided_at, "decidedby": self.decided_by, "why": self.decided_why,
            "replayid": self.replay,
        })
    }
}

/// One letter; `None` if there is none with this id.
pub async fn read(pool: &PgPool, id: Uuid) -> Result<Option<Letter>, StoreError> {
    sqlx::query("/* read_dead_letter */ SELECT * FROM dead_letters WHERE id = $1")
        .bind(id)
        .try_map(read_letter)
        .fetch_optional(pool)
        .await
        .map_err(failed("read a dead letter"))
}

#[expect(clippy::needless_pass_by_value, reason = "the form that try_map asks for")]
pub(super) fn read_letter(row: PgRow) -> Result<Letter, sqlx::Error> {
    let Json(headers) = row.try_get("headers")?;
    let Json(attempts) = row.try_get("attempts")?;
    Ok(Letter {
        id: row.try_get("id")?,
        command_id: row.try_get("command_id")?,
        kind: row.try_get("type")?,
        source: row.try_get("source")?,
        subject: row.try_get("subject")?,
        actor: row.try_get("actor")?,
        trace_id: row.try_get("trace_id")?,
        reason: row.try_get("reason")?,
        detail: row.try_get("detail")?,
        pattern: row.try_get("pattern")?,
        fingerprint: row.try_get("fingerprint")?,
        exchange: row.try_get("exchange")?,
        queue: row.try_get("queue")?,
        routing_key: row.try_get("routing_key")?,
        headers,
        body: row.try_get("body")?,
        edited: row.try_get("edited")?,
        accepted_at: row.try_get("accepted_at")?,
        state: state(&row)?,
        attempt: row.try_get("attempt")?,
        attempts,
        copies: row.try_get("copies")?,
        first_died_at: row.try_get("first_died_at")?,
        last_died_at: row.try_get("last_died_at")?,
        decided_at: row.try_get("decided_at")?,
        decided_by: row.try_get("decided_by")?,
        decided_why: row.try_get("decided_why")?,
        replay: row.try_get("replay")?,
    })
}

/// How many letters wait for a decision.
pub async fn count_kept(pool: &PgPool) -> Result<i64, StoreError> {
    sqlx::query_scalar("/* count_dead_letters */ SELECT count(*) FROM dead_letters WHERE state = 'kept'")
        .fetch_one(pool)
        .await
        .map_err(failed("count the dead letters"))
}

/// Letters whose time is over.
const PAST: &str = "GREATEST(last_died_at, decided_at) < $1 AND state <> 'replaying'";
/// What is not a hold on what a letter was about or on who sent it.
const NOT_HELD: &str = "(NOT EXISTS (SELECT FROM legal_holds h
        WHERE h.released_at IS NULL AND h.subject = l.subject AND h.scope = 'entity')
    AND NOT EXISTS (SELECT FROM legal_holds h
        WHERE h.released_at IS NULL AND h.subject = l.actor AND h.scope = 'actor'))";

/// Removes letters that neither died nor were decided about since `before`, a bounded number of them, and replays that
/// ended before it; what is on hold stays. Returns how many of the removed letters still waited for a decision, and how many there were.
pub async fn prune(connection: &mut PgConnection, before: DateTime<Utc>) -> Result<(i64, i64), StoreError> {
    let statement = format!(
        "/* prune_dead_letters */
        WITH old AS (
            SELECT id FROM dead_letters l
            WHERE {PAST} AND {NOT_HELD}
            ORDER BY GREATEST(last_died_at, decided_at) LIMIT $2 FOR UPDATE SKIP LOCKED
        ), gone AS (
            DELETE FROM dead_letters d USING old WHERE d.id = old.id RETURNING d.state
        ), replays AS (
            -- Those that letters still name stay: each of those would have to be written.
            DELETE FROM dead_letter_replays r
            WHERE finished_at < $1 AND NOT EXISTS (SELECT FROM dead_letters d WHERE d.replay = r.id)
        )
        SELECT count(*) FILTER (WHERE state = 'kept'), count(*) FROM gone"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .bind(PRUNE_MAX)
        .fetch_one(connection)
        .await
        .map_err(failed("remove old dead letters"))
}

/// How many letters [`prune`] would remove: those that still wait for a decision, and all; and how many are past, but on
/// hold.
pub async fn past(pool: &PgPool, before: DateTime<Utc>) -> Result<(i64, i64, i64), StoreError> {
    let statement = format!(
        "/* past_dead_letters */
        SELECT count(*) FILTER (WHERE state = 'kept' AND {NOT_HELD}), count(*) FILTER (WHERE {NOT_HELD}),
               count(*) FILTER (WHERE NOT {NOT_HELD})
        FROM dead_letters l WHERE {PAST}"
    );
    sqlx::query_as(sqlx::AssertSqlSafe(statement))
        .bind(before)
        .fetch_one(pool)
        .await
        .map_err(failed("count old dead letters"))
}
