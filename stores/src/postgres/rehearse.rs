//! A rehearsal: what a dead letter would do if it were replayed now. It is applied by the statements of a batch, in a
//! transaction that is rolled back.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use taskflow_core::batch::{Content, Dead, Rules, Verdict};
use taskflow_core::command::{Fingerprint, digest};
use taskflow_core::event::Retention;
use taskflow_core::wait::Patience;
use taskflow_core::{Event, Folded, Item, State, batch, envelope};
use uuid::Uuid;

use super::batch::{BatchTransaction, Record};
use super::dead_letter_deeds::forget_receipts;
use super::dead_letters::Letter;
use super::outbox::Payload;
use super::{PgPool, failed, leases, tasks, users, waiting};
use crate::{Kind, StoreError, clock};

/// Who rehearses and falls asleep holds rows that workers want: half as long as this.
const REHEARSAL: Duration = Duration::from_secs(6);
/// The epoch of the partition that is made for a rehearsal, and goes with it.
const EPOCH: i64 = 0;

/// What would happen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rehearsal {
    /// A receipt's outcome, or `duplicate`, `mismatch`, `parked`, `scheduled`, `behind`.
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<i32>,
    pub events: Vec<Told>,
    pub rows: Vec<Change>,
}

/// An event that would be told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    #[serde(rename = "type")]
    pub kind: String,
    pub data: Value,
}

/// A row that would change.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    pub table: &'static str,
    pub id: Uuid,
    /// `null` if it would be new.
    pub before: Value,
    pub after: Value,
}

impl Rehearsal {
    fn ends(outcome: &str, code: Option<&str>, detail: Option<String>) -> Self {
        Self {
            outcome: outcome.to_owned(),
            code: code.map(str::to_owned),
            detail,
            version: None,
            events: Vec::new(),
            rows: Vec::new(),
        }
    }
}

/// Rehearses a letter with these bytes in the place of its own. Nothing of it lasts.
pub async fn rehearse(
    pool: &PgPool,
    letter: &Letter,
    body: &[u8],
    now: DateTime<Utc>,
) -> Result<Rehearsal, StoreError> {
    let item = match read(body, letter.accepted_at.unwrap_or(letter.first_died_at).min(now)) {
        Ok(item) => item,
        Err(detail) => return Ok(Rehearsal::ends("dead", Some("malformed"), Some(detail))),
    };
    let mut transaction = BatchTransaction::new(pool, REHEARSAL);
    let rehearsed = play(&mut transaction, letter, &item, now).await;
    let ended = transaction.roll_back().await;
    match rehearsed {
        // As the workers would: this command, and no other, is at fault.
        Err(error) if error.kind == Kind::Data => {
            Ok(Rehearsal::ends("dead", Some("failing"), Some(error.to_string())))
        }
        other => ended.and(other),
    }
}

fn read(body: &[u8], accepted_at: DateTime<Utc>) -> Result<Item, String> {
    let malformed = match envelope::parse(body) {
        Ok(command) => return Ok(Item::command(command, accepted_at)),
        Err(malformed) => malformed,
    };
    let detail = malformed.summary();
    let Some(id) = malformed.id else { return Err(detail) };
    let content = match malformed.unknown {
        Some(unknown) => Content::Unknown(unknown),
        None => Content::Dead(Dead::unread("malformed", detail)),
    };
    Ok(Item { id, fingerprint: digest(body), accepted_at, content, waited: None })
}

async fn play(
    transaction: &mut BatchTransaction,
    letter: &Letter,
    item: &Item,
    now: DateTime<Utc>,
) -> Result<Rehearsal, StoreError> {
    let connection = transaction.connection().await?;
    forget_receipts(connection, std::slice::from_ref(letter)).await?;
    let items = std::slice::from_ref(item);
    let mut known = waiting::earlier(connection, &[item.id]).await?;
    // The same that waits is no twin: it goes where that is.
    known.retain(|_, earlier| !earlier.waits || earlier.fingerprint != item.fingerprint);
    let known = known.into_iter().map(|(id, earlier)| (id, earlier.fingerprint)).collect();
    let needs = batch::needs(items);
    let roles = users::roles(connection, &needs.roles).await?;
    let lines = line(connection, item).await?;
    let before = super::batch::load(transaction, &needs, roles, &needs.created).await?;
    let (folded, payload) = fold(items, &known, &lines, before.clone(), now);
    write(transaction, &folded, &payload, now).await?;
    let rows = changes(transaction.connection().await?, &folded, &before).await?;
    let events = payload.events.iter().map(told).collect();
    Ok(match folded.verdicts.first() {
        Some(Verdict::Finished(index)) => {
            let receipt = &folded.receipts[*index];
            let ends = Rehearsal::ends(receipt.outcome.as_str(), receipt.code, receipt.detail.clone());
            Rehearsal { version: receipt.version, events, rows, ..ends }
        }
        Some(Verdict::Held(index)) => {
            let held = &folded.held[*index];
            Rehearsal::ends(held.why.as_str(), held.code, held.detail.clone())
        }
        Some(Verdict::Duplicate) => Rehearsal::ends(
            "duplicate",
            None,
            Some("this command has its receipt; nothing would change".into()),
        ),
        Some(Verdict::Mismatch) => {
            Rehearsal::ends("mismatch", None, Some(format!("another command has the id {}", item.id)))
        }
        Some(Verdict::Stays) | None => Rehearsal::ends("behind", None, None),
    })
}

/// The item's subject, if a command of it waits.
async fn line(connection: &mut PgConnection, item: &Item) -> Result<HashSet<Uuid>, StoreError> {
    let waits: Vec<Uuid> = sqlx::query_scalar(
        "/* rehearsed_line */ SELECT DISTINCT subject FROM waiting_commands WHERE subject = $1 AND state <> 'scheduled'",
    )
    .bind(item.subject())
    .fetch_all(connection)
    .await
    .map_err(failed("read who waits"))?;
    Ok(waits.into_iter().collect())
}

fn fold(
    items: &[Item],
    known: &HashMap<Uuid, Fingerprint>,
    lines: &HashSet<Uuid>,
    state: State,
    now: DateTime<Utc>,
) -> (Folded, Payload) {
    // How long events are kept and commands wait changes no decision that is shown.
    let rules = Rules { now, retention: &Retention::default(), patience: &Patience::default() };
    let mut folded = batch::fold(items, known, lines, state, rules);
    let payload = Payload { events: std::mem::take(&mut folded.events), ..Payload::default() };
    (folded, payload)
}

/// Writes under the name of a partition that no worker has and that nobody else sees.
async fn write(
    transaction: &mut BatchTransaction,
    folded: &Folded,
    payload: &Payload,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let partition = format!("rehearsal {}", clock::new_id());
    leases::begin_partition(transaction.connection().await?, &partition, EPOCH).await?;
    let record = Record {
        partition: &partition,
        epoch: EPOCH,
        commands: 1,
        applied_at: now,
        receipts: &folded.receipts,
        new_tasks: &folded.new_tasks,
        payload,
        relayed: &[],
    };
    super::batch::write(transaction, folded, record).await.map(drop)
}

/// The rows as they are in the transaction now, beside what they were.
async fn changes(
    connection: &mut PgConnection,
    folded: &Folded,
    before: &State,
) -> Result<Vec<Change>, StoreError> {
    let task_ids: Vec<Uuid> =
        folded.new_tasks.iter().chain(&folded.changed_tasks).map(|task| task.id).collect();
    let user_ids: Vec<Uuid> =
        folded.new_users.iter().chain(&folded.changed_users).map(|user| user.id).collect();
    let tasks = tasks::read_many(connection, &task_ids).await?;
    let users = users::read_many(connection, &user_ids).await?;
    let tasks = tasks.iter().map(|task| Change {
        table: "tasks",
        id: task.id,
        before: json!(before.tasks.get(&task.id)),
        after: json!(task),
    });
    let users = users.iter().map(|user| Change {
        table: "users",
        id: user.id,
        before: json!(before.users.get(&user.id).map(taskflow_core::User::public)),
        after: json!(user.public()),
    });
    Ok(tasks.chain(users).collect())
}

fn told(event: &Event) -> Told {
    Told { kind: event.kind.clone().into_owned(), data: Value::Object(event.payload.object()) }
}
