//! A batch of commands: what must be loaded for it, and the fold of its commands over what was loaded.
//!
//! Each command sees its predecessors' effects. The result of a batch is the result of its commands one by one,
//! whatever the batch's borders: the property tests hold this.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::command::{Body, Command, Fingerprint};
use crate::decide::{Change, Draft, Effect, decide};
use crate::event::{Event, EventId, Retention};
use crate::receipt::{Outcome, Receipt};
use crate::state::{State, Task, User, email_key};

/// One message of a batch, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub id: Uuid,
    pub fingerprint: Fingerprint,
    /// When an intake took it.
    pub accepted_at: DateTime<Utc>,
    pub content: Content,
}

/// What there is to do about a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    Command(Box<Command>),
    /// It can't be applied for a technical reason: it gets its receipt and goes to the dead letters.
    Dead(Dead),
}

/// Why a message is dead.
#[derive(Debug, Clone, PartialEq)]
pub struct Dead {
    /// One word: `malformed`, `wrong_slot`, `failing`.
    pub reason: &'static str,
    pub detail: String,
    pub kind: Option<&'static str>,
    pub subject: Option<Uuid>,
    pub actor: Option<Uuid>,
}

impl Item {
    pub fn command(command: Command, accepted_at: DateTime<Utc>) -> Self {
        Self {
            id: command.id,
            fingerprint: command.fingerprint(),
            accepted_at,
            content: Content::Command(Box::new(command)),
        }
    }

    /// The same item, given up for a technical reason.
    #[must_use]
    pub fn into_dead(self, reason: &'static str, detail: String) -> Self {
        let dead = match self.content {
            Content::Command(command) => Dead {
                reason,
                detail,
                kind: Some(command.kind()),
                subject: Some(command.subject),
                actor: Some(command.actor),
            },
            Content::Dead(dead) => dead,
        };
        Self { content: Content::Dead(dead), ..self }
    }
}

/// What must be loaded to decide a batch. All lists are sorted and without repeats: locks are taken in one order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Tasks to load and lock.
    pub tasks: Vec<Uuid>,
    /// Users to load and lock.
    pub users: Vec<Uuid>,
    /// Users whose role is enough.
    pub roles: Vec<Uuid>,
    /// Addresses that the batch wants to register, as [`email_key`]s.
    pub emails: Vec<String>,
}

/// Says what a batch needs.
pub fn needs(items: &[Item]) -> Needs {
    let (mut tasks, mut users) = (BTreeSet::new(), BTreeSet::new());
    let (mut roles, mut emails) = (BTreeSet::new(), BTreeSet::new());
    for item in items {
        let Content::Command(command) = &item.content else { continue };
        if command.is_about_task() {
            tasks.insert(command.subject)
        } else {
            users.insert(command.subject)
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
}

/// The result of a batch.
#[derive(Debug, Default)]
pub struct Folded {
    /// One for each item, in order.
    pub verdicts: Vec<Verdict>,
    pub receipts: Vec<Receipt>,
    pub events: Vec<Event>,
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

/// Folds a batch over what was loaded for it.
///
/// `known` holds the receipts that exist already for ids of the batch. `now` is the batch's time.
pub fn fold(
    items: &[Item],
    known: &HashMap<Uuid, Fingerprint>,
    state: State,
    now: DateTime<Utc>,
    retention: &Retention,
) -> Folded {
    let mut folded = Folded { state, ..Folded::default() };
    folded.verdicts.reserve(items.len());
    folded.receipts.reserve(items.len());
    folded.events.reserve(items.len());
    let mut here: HashMap<Uuid, Fingerprint> = HashMap::with_capacity(items.len());
    let mut touched = Touched::default();
    for item in items {
        let verdict = match known.get(&item.id).or_else(|| here.get(&item.id)) {
            Some(first) if *first == item.fingerprint => Verdict::Duplicate,
            Some(_) => Verdict::Mismatch,
            None => {
                let receipt = finish(item, &mut folded, &mut touched, now, retention);
                here.insert(item.id, item.fingerprint);
                folded.receipts.push(receipt);
                Verdict::Finished(folded.receipts.len() - 1)
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

fn finish(
    item: &Item,
    folded: &mut Folded,
    touched: &mut Touched,
    now: DateTime<Utc>,
    retention: &Retention,
) -> Receipt {
    // Clocks differ between intake and worker; nothing is applied before it was accepted.
    let now = now.max(item.accepted_at);
    let mut receipt = Receipt {
        id: item.id,
        kind: None,
        subject: None,
        actor: None,
        outcome: Outcome::Dead,
        code: None,
        detail: None,
        version: None,
        events: 0,
        accepted_at: item.accepted_at,
        finished_at: now,
        fingerprint: item.fingerprint,
    };
    let command = match &item.content {
        Content::Command(command) => command,
        Content::Dead(dead) => {
            return Receipt {
                kind: dead.kind,
                subject: dead.subject,
                actor: dead.actor,
                code: Some(dead.reason),
                detail: Some(dead.detail.clone()),
                ..receipt
            };
        }
    };
    receipt.kind = Some(command.kind());
    receipt.subject = Some(command.subject);
    receipt.actor = Some(command.actor);
    if command.expires_at.is_some_and(|time| time < now) {
        receipt.outcome = Outcome::Expired;
        return receipt;
    }
    match decide(&folded.state, command, item.accepted_at, now) {
        Ok(Effect { change, events, version }) => {
            receipt.outcome = Outcome::Applied;
            receipt.version = version;
            receipt.events = events.len() as u16;
            for (ordinal, draft) in events.into_iter().enumerate() {
                folded.events.push(event(command, &receipt, draft, ordinal as u16, retention));
            }
            touched.note(change, folded);
        }
        Err(rejection) => {
            receipt.outcome = Outcome::Rejected;
            receipt.code = Some(rejection.code.as_str());
            receipt.detail = Some(rejection.detail);
        }
    }
    receipt
}

fn event(command: &Command, receipt: &Receipt, draft: Draft, ordinal: u16, retention: &Retention) -> Event {
    let mut metadata = command.metadata.clone();
    if draft.session.is_some() {
        metadata.session_id = draft.session;
    }
    let class = crate::event::Class::of(draft.kind);
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
        expires_at: retention.expires_at(class, receipt.finished_at),
    }
}
