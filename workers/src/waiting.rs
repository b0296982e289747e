//! The waiting room of a partition: commands that wait for their time, for what may come, or behind one that does.
//!
//! The pipeline knows which subjects have a line and when the next command is due; the rest is in Postgres. It is the
//! only one to add to the room and to take from it, so it need not look into it for each batch.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use taskflow_core::batch::{Content, Dead, UNKNOWN_TYPE, Verdict};
use taskflow_core::command::Fingerprint;
use taskflow_core::wait::{Patience, Waited};
use taskflow_core::{Folded, Item, envelope, metric};
use taskflow_stores::postgres::waiting::{self, Before, Hold, Waiting};
use taskflow_stores::postgres::{PgConnection, PgPool, receipts};
use taskflow_stores::rabbit::dead_letters;
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{StoreError, clock, observe};
use uuid::Uuid;

use crate::answers::Answers;
use crate::apply::Range;
use crate::bisect::Source;
use crate::{Context, crash, suspect};

/// What a pipeline knows of its partition's waiting room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Subjects of which a command is parked.
    pub lines: HashSet<Uuid>,
    pub next_due: Option<DateTime<Utc>>,
}

impl Room {
    /// Looks at the room anew: at the beginning of a lease, and after anything that leaves in doubt what lasted.
    pub(crate) async fn open(pool: &PgPool, partition: &str) -> Result<Self, StoreError> {
        let lines = waiting::lines(pool, partition).await?;
        Ok(Self { lines, next_due: waiting::next_due(pool, partition).await? })
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next_due.is_some_and(|due| due <= clock::now())
    }

    /// How long until the next command is due.
    pub(crate) fn pause(&self) -> Option<std::time::Duration> {
        self.next_due.map(|due| (due - clock::now()).to_std().unwrap_or_default())
    }

    /// Somebody has begun to wait.
    pub(crate) fn note(&mut self, settled: &Settled) {
        self.next_due = [self.next_due, settled.due_at].into_iter().flatten().min();
    }
}

/// What a batch changed in the waiting room.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// Subjects of the batch that have a line now.
    pub lines: HashSet<Uuid>,
    /// When the first of those who began to wait is due.
    pub due_at: Option<DateTime<Utc>>,
}

/// Whether a batch has anything to do with the waiting room.
pub(crate) fn concerns(items: &[Item], folded: &Folded) -> bool {
    !folded.held.is_empty() || items.iter().any(|item| item.waited.is_some())
}

/// Writes who begins to wait, who waits on and who has ended to, in the batch's transaction.
pub(crate) async fn settle(
    connection: &mut PgConnection,
    partition: &str,
    range: Range<'_>,
    source: &impl Source,
    folded: &mut Folded,
    now: DateTime<Utc>,
) -> Result<Settled, StoreError> {
    let mut settled = Settled::default();
    let (mut new, mut on, mut ended, mut called) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (index, (item, verdict)) in range.items.iter().zip(&folded.verdicts).enumerate() {
        let subject = item.subject();
        match (verdict, item.waited) {
            (Verdict::Held(held), waited) => {
                let held = &folded.held[*held];
                settled.due_at = [settled.due_at, held.due_at].into_iter().flatten().min();
                settled.lines.extend(subject.filter(|_| held.why.blocks()));
                match (waited, subject) {
                    (Some(_), _) => on.push((item.id, item.fingerprint, held)),
                    (None, Some(subject)) => new.push(Hold {
                        id: item.id,
                        subject,
                        actor: actor(item),
                        kind: kind(item),
                        accepted_at: item.accepted_at,
                        fingerprint: item.fingerprint,
                        body: source.body(range.first + index),
                        applied_in_time: item.was_applied_in_time(),
                        held,
                    }),
                    (None, None) => {}
                }
            }
            (Verdict::Stays, _) | (_, None) => {}
            (_, Some(_)) => ended.push(item.id),
        }
        if item.waited.is_some_and(|waited| waited.why.blocks()) {
            called.extend(subject);
        }
    }
    let before = waiting::hold(connection, partition, &new).await?;
    let same = |hold: &&Hold<'_>| {
        before.iter().any(|before| before.id == hold.id && asks_for(before) == hold.fingerprint)
    };
    let taken: HashSet<Uuid> =
        new.iter().filter(|hold| !before.is_empty() && !same(hold)).map(|h| h.id).collect();
    waiting::hold_on(connection, &on).await?;
    if !before.is_empty() {
        // Some are not in the room as this batch has it: an id that is another command's, or a scheduled command that was
        // sent again, whose first copy still waits for its time. Nobody must wait behind somebody who is not there.
        called.extend(settled.lines.drain());
        settled.due_at = Some(now);
    }
    if !ended.is_empty() || !called.is_empty() {
        settled.lines.extend(waiting::take(connection, partition, &ended, &called, now).await?);
    }
    for (item, verdict) in range.items.iter().zip(&mut folded.verdicts) {
        if taken.contains(&item.id) && matches!(verdict, Verdict::Held(_)) {
            *verdict = Verdict::Mismatch;
        }
    }
    Ok(settled)
}

/// What a command asks for that waits: one that an older version could not read may be read now.
fn asks_for(before: &Before) -> Fingerprint {
    let read = before.unread.as_deref().and_then(|body| envelope::parse(body).ok());
    read.map_or(before.fingerprint, |command| command.fingerprint())
}

fn kind(item: &Item) -> Option<&str> {
    match &item.content {
        Content::Command(command) => Some(command.kind()),
        Content::Unknown(unknown) => Some(&unknown.kind),
        Content::Dead(dead) => dead.kind,
    }
}

fn actor(item: &Item) -> Option<Uuid> {
    match &item.content {
        Content::Command(command) => Some(command.actor),
        Content::Unknown(unknown) => unknown.actor,
        Content::Dead(dead) => dead.actor,
    }
}

/// Commands that are due, as a batch.
pub(crate) struct Due<'c> {
    pub context: &'c Context,
    pub partition: Partition,
    pub rows: Vec<Waiting>,
}

impl Due<'_> {
    /// The items, in order.
    pub(crate) fn items(&self) -> Vec<Item> {
        let now = clock::now();
        self.rows.iter().map(|row| item(row, &self.context.settings.patience, now)).collect()
    }

    /// Buries commands whose id another one has had meanwhile. The batch finds them too and takes them out of the room;
    /// the letter must be there before.
    pub(crate) async fn bury_foreign(&self, items: &[Item], answers: &Answers) -> Result<(), StoreError> {
        let ids: Vec<Uuid> = items.iter().map(|item| item.id).collect();
        let postgres = &self.context.stores.postgres;
        let looked_up = async {
            let mut connection = postgres
                .acquire()
                .await
                .map_err(|error| StoreError::unavailable("postgres", "look up receipts", error))?;
            receipts::claimed(&mut connection, &ids).await
        };
        let known = answers.wait("look up receipts", looked_up).await?;
        for (index, item) in items.iter().enumerate() {
            if known.get(&item.id).is_some_and(|first| *first != item.fingerprint) {
                self.bury(index, "idempotency_mismatch", &foreign(item.id)).await?;
            }
        }
        Ok(())
    }

    /// What is left of a command that kills: it is not read.
    pub(crate) fn remains(&self) -> Vec<Item> {
        let remains = |row: &Waiting| Item {
            id: row.id,
            fingerprint: row.fingerprint,
            accepted_at: row.accepted_at,
            content: Content::Dead(suspect::dead(Some(row.subject))),
            waited: Some(row.waited),
        };
        self.rows.iter().map(remains).collect()
    }

    /// Subjects whose lines are in the batch, from their beginning.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Uuid> {
        self.rows.iter().filter(|row| row.waited.why.blocks()).map(|row| row.subject)
    }
}

/// What is told of a command whose id is taken.
pub(crate) fn foreign(id: Uuid) -> String {
    format!("another command with the id {id} was there first")
}

fn item(row: &Waiting, patience: &Patience, now: DateTime<Utc>) -> Item {
    crash::poison(&row.body);
    let waited: Option<Waited> = Some(row.waited);
    let item = match envelope::parse(&row.body) {
        Ok(command) => {
            let item = Item { waited, ..Item::command(command, row.accepted_at) };
            if row.applied_in_time { item.applied_in_time() } else { item }
        }
        Err(malformed) => {
            let fault = malformed.summary();
            let content = match malformed.unknown {
                Some(unknown) => Content::Unknown(unknown),
                // A newer version took it, this one can't.
                None => {
                    Content::Dead(Dead { subject: Some(row.subject), ..Dead::unread("malformed", fault) })
                }
            };
            Item { id: row.id, fingerprint: row.fingerprint, accepted_at: row.accepted_at, content, waited }
        }
    };
    give_up_unknown(item, patience, now)
}

/// A command of a type that no version has come to know is dead in the end.
pub(crate) fn give_up_unknown(item: Item, patience: &Patience, now: DateTime<Utc>) -> Item {
    if !item.is_given_up(patience, now) {
        return item;
    }
    let detail = match &item.content {
        Content::Unknown(unknown) => format!("no worker came to know the command type {:?}", unknown.kind),
        _ => String::new(),
    };
    item.into_dead(UNKNOWN_TYPE, detail)
}

impl Source for Due<'_> {
    fn body(&self, index: usize) -> &[u8] {
        &self.rows[index].body
    }

    /// It answered long ago; who still waits asks Postgres.
    fn intake(&self, _index: usize) -> Option<Uuid> {
        None
    }

    async fn bury(&self, index: usize, reason: &'static str, detail: &str) -> Result<(), StoreError> {
        let row = &self.rows[index];
        let publisher = &self.context.stores.publisher;
        let letter = (row.id, row.subject);
        dead_letters::send_waited(publisher, self.partition, letter, &row.body, reason, detail).await?;
        observe::counter(&metric::DEAD_LETTERED, &[("reason", reason)]).increment(1);
        Ok(())
    }
}
