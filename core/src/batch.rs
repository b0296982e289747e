//! A batch of commands: what must be loaded for it, and the fold of its commands over what was loaded.
//!
//! Each command sees its predecessors' effects. The result of a batch is the result of its commands one by one,
//! whatever the batch's borders: the property tests hold this.

use std::collections::{BTreeSet, HashMap, HashSet};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::command::{Body, Command, Fingerprint};
use crate::decide::{Change, Draft, Effect, decide};
use crate::event::{Event, EventId, Retention};
pub use crate::item::{Content, Dead, Item, UNKNOWN_TYPE, Unknown};
use crate::receipt::{Code, Outcome, Receipt, Rejection};
use crate::state::{State, Task, User, email_key};
use crate::wait::{Held, Patience, Waited, Why};

/// What must be loaded to decide a batch. All lists are sorted and without repeats: locks are taken in one order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Tasks to load and lock.
    pub tasks: Vec<Uuid>,
    /// Tasks that the batch creates and does nothing else to: those that exist already must be loaded as well.
    pub created: Vec<Uuid>,
    /// Users to load and lock.
    pub users: Vec<Uuid>,
    /// Users whose role is enough.
    pub roles: Vec<Uuid>,
    /// Addresses that the batch wants to register, as [`email_key`]s.
    pub emails: Vec<String>,
}

/// Says what a batch needs.
pub fn needs(items: &[Item]) -> Needs {
    let (mut tasks, mut created, mut users) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let (mut roles, mut emails) = (BTreeSet::new(), BTreeSet::new());
    for item in items {
        let Content::Command(command) = &item.content else { continue };
        match &command.body {
            Body::CreateTask(_) => created.insert(command.subject),
            _ if command.is_about_task() => tasks.insert(command.subject),
            _ => users.insert(command.subject),
        };
        roles.insert(command.actor);
        match &command.body {
            Body::RegisterUser(body) => drop(emails.insert(email_key(&body.email))),
            Body::CreateTask(body) => roles.extend(body.assigneeid),
            Body::AssignTask(body) => roles.extend(body.assigneeid),
            _ => {}
        }
    }
    Needs {
        roles: roles.difference(&users).copied().collect(),
        created: created.difference(&tasks).copied().collect(),
        tasks: tasks.into_iter().collect(),
        users: users.into_iter().collect(),
        emails: emails.into_iter().collect(),
    }
}

/// What became of one message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has its receipt: the index in [`Folded::receipts`].
    Finished(usize),
    /// The same command was there already: nothing to do.
    Duplicate,
    /// Another command has this id: it goes to the dead letters without a receipt of its own.
    Mismatch,
    /// It waits: the index in [`Folded::held`].
    Held(usize),
    /// It waited behind another command and still does: nothing to write.
    Stays,
}

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Folded {
    /// One for each item, in order.
    pub verdicts: Vec<Verdict>,
    pub receipts: Vec<Receipt>,
    pub events: Vec<Event>,
    pub held: Vec<Held>,
    /// Final states, sorted by id; no entity is in two of these lists.
    pub new_tasks: Vec<Task>,
    pub changed_tasks: Vec<Task>,
    pub new_users: Vec<User>,
    pub changed_users: Vec<User>,
    /// Users on whose task lists something changed.
    pub lists: BTreeSet<Uuid>,
    /// What is loaded, after the batch.
    pub state: State,
}

/// What a fold goes by, beside the commands and the state.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'r> {
    /// The batch's time.
    pub now: DateTime<Utc>,
    pub retention: &'r Retention,
    pub patience: &'r Patience,
}

/// Folds a batch over what was loaded for it.
///
/// `known` holds the receipts that exist already for ids of the batch; `lines` the subjects of which a command waits
/// that is not in the batch: theirs line up.
pub fn fold(
    items: &[Item],
    known: &HashMap<Uuid, Fingerprint>,
    lines: &HashSet<Uuid>,
    state: State,
    rules: Rules<'_>,
) -> Folded {
    let mut folded = Folded { state, ..Folded::default() };
    folded.verdicts.reserve(items.len());
    folded.receipts.reserve(items.len());
    folded.events.reserve(items.len());
    let mut here: HashMap<Uuid, Fingerprint> = HashMap::with_capacity(items.len());
    let mut touched = Touched::default();
    let mut blocked: HashSet<Uuid> = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let verdict = match known.get(&item.id).or_else(|| here.get(&item.id)) {
            Some(first) if *first == item.fingerprint => Verdict::Duplicate,
            Some(_) => Verdict::Mismatch,
            None => {
                here.insert(item.id, item.fingerprint);
                let waits = |subject| lines.contains(&subject) || blocked.contains(&subject);
                let behind = item.subject().is_some_and(waits);
                match end(item, behind, &mut folded, &mut touched, rules) {
                    Ended::Receipt(receipt) => {
                        folded.receipts.push(receipt);
                        Verdict::Finished(folded.receipts.len() - 1)
                    }
                    Ended::Held(held) => {
                        blocked.extend(item.subject().filter(|_| held.why.blocks()));
                        folded.held.push(Held { item: index, ..held });
                        Verdict::Held(folded.held.len() - 1)
                    }
                    Ended::Stays => Verdict::Stays,
                }
            }
        };
        folded.verdicts.push(verdict);
    }
    touched.collect(&mut folded);
    folded
}

/// Ids of the entities that the fold made and changed.
#[derive(Default)]
struct Touched {
    new_tasks: BTreeSet<Uuid>,
    changed_tasks: BTreeSet<Uuid>,
    new_users: BTreeSet<Uuid>,
    changed_users: BTreeSet<Uuid>,
}

impl Touched {
    fn note(&mut self, change: Change, folded: &mut Folded) {
        match change {
            Change::Nothing => {}
            Change::Task(task) => {
                folded.lists.insert(task.creator);
                folded.lists.extend(task.assignee);
                let id = task.id;
                match folded.state.tasks.insert(id, task) {
                    Some(before) => {
                        folded.lists.extend(before.assignee);
                        if !self.new_tasks.contains(&id) {
                            self.changed_tasks.insert(id);
                        }
                    }
                    None => drop(self.new_tasks.insert(id)),
                }
            }
            Change::User(user) => {
                let id = user.id;
                folded.state.emails.insert(email_key(&user.email), id);
                match folded.state.users.insert(id, user) {
                    Some(_) if !self.new_users.contains(&id) => drop(self.changed_users.insert(id)),
                    Some(_) => {}
                    None => drop(self.new_users.insert(id)),
                }
            }
        }
    }

    fn collect(self, folded: &mut Folded) {
        let tasks = |ids: BTreeSet<Uuid>, state: &State| -> Vec<Task> {
            ids.iter().filter_map(|id| state.tasks.get(id).cloned()).collect()
        };
        let users = |ids: BTreeSet<Uuid>, state: &State| -> Vec<User> {
            ids.iter().filter_map(|id| state.users.get(id).cloned()).collect()
        };
        folded.new_tasks = tasks(self.new_tasks, &folded.state);
        folded.changed_tasks = tasks(self.changed_tasks, &folded.state);
        folded.new_users = users(self.new_users, &folded.state);
        folded.changed_users = users(self.changed_users, &folded.state);
    }
}

/// What became of one item.
enum Ended {
    Receipt(Receipt),
    Held(Held),
    Stays,
}

/// Ends an item, or lets it wait. `behind`: an earlier command of its subject waits.
fn end(item: &Item, behind: bool, folded: &mut Folded, touched: &mut Touched, rules: Rules<'_>) -> Ended {
    // Clocks differ between intake and worker; nothing is applied before it was accepted.
    let now = rules.now.max(item.accepted_at);
    let before = item.waited.unwrap_or(Waited { why: Why::Scheduled, attempts: 0, since: now });
    let receipt = Receipt {
        id: item.id,
        kind: None,
        subject: item.subject(),
        actor: None,
        source: None,
        outcome: Outcome::Dead,
        code: None,
        detail: None,
        version: None,
        events: 0,
        attempts: before.attempts.saturating_add(1),
        accepted_at: item.accepted_at,
        finished_at: now,
        fingerprint: item.fingerprint,
    };
    let hold = |why, due_at| Held {
        item: 0,
        why,
        code: None,
        detail: None,
        due_at,
        attempts: before.attempts,
        since: before.since,
    };
    let line_up = || match item.waited {
        Some(Waited { why: Why::Parked | Why::Behind, .. }) => Ended::Stays,
        _ => {
            // It stands there from now on, however long ago it came.
            let since = if before.attempts == 0 { now } else { before.since };
            Ended::Held(Held { since, ..hold(Why::Behind, None) })
        }
    };
    let park = |limit_ms, code, detail: String| {
        let (attempts, since) = match before.attempts {
            // Who stood in a line has waited as long already: else a line of such commands would take the patience for
            // each of them.
            0 if before.why == Why::Behind => (1, before.since),
            0 => (1, now),
            tried => (tried.saturating_add(1), before.since),
        };
        let due_at = rules.patience.next_try(limit_ms, item.id, attempts, since, now)?;
        let (code, detail, due_at) = (Some(code), Some(detail), Some(due_at));
        Some(Ended::Held(Held { item: 0, why: Why::Parked, code, detail, due_at, attempts, since }))
    };
    let command = match &item.content {
        Content::Command(command) => command,
        Content::Unknown(_) if behind => return line_up(),
        Content::Unknown(unknown) => {
            let detail = format!("this version does not know the command type {:?}", unknown.kind);
            // Its end is not decided here: the dead letters have it before its receipt is written.
            let limit_ms = rules.patience.unknown_type_ms;
            let park = |limit_ms| park(limit_ms, UNKNOWN_TYPE, detail.clone());
            return park(limit_ms).or_else(|| park(u32::MAX)).unwrap_or(Ended::Stays);
        }
        Content::Dead(dead) => {
            return Ended::Receipt(Receipt {
                kind: dead.kind,
                actor: dead.actor,
                source: dead.source.clone(),
                code: Some(dead.reason),
                detail: Some(dead.detail.clone()),
                ..receipt
            });
        }
    };
    let (actor, source) = (Some(command.actor), Some(command.source.clone()));
    let receipt = Receipt { kind: Some(command.kind()), actor, source, ..receipt };
    if command.expires_at.is_some_and(|time| time < now) {
        return Ended::Receipt(Receipt { outcome: Outcome::Expired, ..receipt });
    }
    if let Some(time) = command.not_before.filter(|time| *time > now) {
        // It is looked at again when it may be applied, or may no longer be.
        let due_at =
            command.expires_at.map_or(time, |expiry| time.min(expiry + chrono::TimeDelta::milliseconds(1)));
        return Ended::Held(hold(Why::Scheduled, Some(due_at)));
    }
    if behind {
        return line_up();
    }
    match decide(&folded.state, command, item.accepted_at, now) {
        Ok(effect) => Ended::Receipt(apply(command, receipt, effect, folded, touched, rules.retention)),
        Err(Rejection { code, detail }) => {
            // Upstream may have sent the user at the same time, and another partition be slower.
            let parked = match code {
                Code::UnknownUser => park(rules.patience.unknown_user_ms, code.as_str(), detail.clone()),
                _ => None,
            };
            let (code, detail) = (Some(code.as_str()), Some(detail));
            parked.unwrap_or(Ended::Receipt(Receipt { outcome: Outcome::Rejected, code, detail, ..receipt }))
        }
    }
}

fn apply(
    command: &Command,
    receipt: Receipt,
    effect: Effect,
    folded: &mut Folded,
    touched: &mut Touched,
    retention: &Retention,
) -> Receipt {
    let Effect { change, events, version } = effect;
    let receipt = Receipt { outcome: Outcome::Applied, version, events: events.len() as u16, ..receipt };
    for (ordinal, draft) in events.into_iter().enumerate() {
        folded.events.push(event(command, &receipt, draft, ordinal as u16, retention));
    }
    touched.note(change, folded);
    receipt
}

fn event(command: &Command, receipt: &Receipt, draft: Draft, ordinal: u16, retention: &Retention) -> Event {
    let mut metadata = command.metadata.clone();
    if draft.session.is_some() {
        metadata.session_id = draft.session;
    }
    Event {
        id: EventId::new(receipt.accepted_at, command.id, ordinal),
        kind: draft.kind.into(),
        actor: command.actor,
        entity: command.subject,
        entity_type: if command.is_about_task() { "task" } else { "user" }.into(),
        version: receipt.version,
        payload: draft.payload,
        metadata,
        issued_at: command.issued_at.unwrap_or(receipt.accepted_at),
        correlation: command.correlation,
        command: command.id,
        traceparent: command.traceparent.clone(),
        created_at: receipt.finished_at,
        expires_at: retention.expires_at(draft.kind, receipt.finished_at),
    }
}
