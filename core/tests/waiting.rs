//! What must hold for commands that wait: each subject's commands end in the order in which they came, whatever the
//! borders of the batches, the times of the tries and the moment in which a missing user appears.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use taskflow_core::batch::{Rules, Verdict};
use taskflow_core::command::{
    Body, ChangeStatus, Command, CreateTask, Fingerprint, RegisterUser, UpdateTask,
};
use taskflow_core::event::Retention;
use taskflow_core::state::{Role, TaskPriority, TaskStatus};
use taskflow_core::wait::{Patience, Waited, Why};
use taskflow_core::{Code, Item, Outcome, Receipt, State, User, fold};
use uuid::Uuid;

const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";
const ADMIN: Uuid = Uuid::from_u128(1);

fn beginning() -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000, 0).expect("a time")
}

fn late_user(number: u8) -> Uuid {
    Uuid::from_u128(0x1000 + u128::from(number))
}

fn item(number: usize, subject: Uuid, actor: Uuid, not_before: Option<i64>, body: Body) -> Item {
    let id = Uuid::from_u128(0x9_0000 + number as u128);
    let command = Command {
        not_before: not_before.map(|ms| beginning() + TimeDelta::milliseconds(ms)),
        ..Command::new(id, "/test", subject, actor, body)
    };
    Item::command(command, beginning())
}

fn task_body() -> impl Strategy<Value = Body> {
    prop_oneof![
        2 => "[a-c]{1,2}".prop_map(|title| Body::CreateTask(CreateTask {
            title, description: None, priority: TaskPriority::Low, assigneeid: None, duedate: None,
        })),
        2 => "[a-c]{1,2}".prop_map(|title| Body::UpdateTask(UpdateTask {
            title: Some(title), description: None, priority: None, duedate: None, expectedversion: None,
        })),
        1 => prop::sample::select(vec![TaskStatus::Done, TaskStatus::Review])
            .prop_map(|status| Body::ChangeStatus(ChangeStatus { status, expectedversion: None })),
    ]
}

/// Commands on few tasks by the admin and by users who register somewhere in the stream, or never.
fn stream() -> impl Strategy<Value = Vec<Item>> {
    let about_task = (0..5_u8, 0..4_u8, prop::option::weighted(0.15, 0..40_000_i64), task_body());
    let register = 0..2_u8;
    let step = prop_oneof![8 => about_task.prop_map(Ok), 1 => register.prop_map(Err)];
    prop::collection::vec(step, 1..40).prop_map(|steps| {
        let items = steps.into_iter().enumerate().map(|(number, step)| match step {
            Ok((task, actor, not_before, body)) => {
                let actor = if actor == 0 { ADMIN } else { late_user(actor - 1) };
                item(number, Uuid::from_u128(0x2000 + u128::from(task)), actor, not_before, body)
            }
            Err(user) => {
                let body = RegisterUser {
                    email: format!("user{user}@example.org"),
                    passwordhash: HASH.into(),
                    role: Role::User,
                    profile: None,
                };
                item(number, late_user(user), late_user(user), None, Body::RegisterUser(body))
            }
        });
        items.collect()
    })
}

/// The waiting room as Postgres keeps it.
#[derive(Default)]
struct Room(Vec<Row>);

struct Row {
    item: Item,
    due_at: Option<DateTime<Utc>>,
    place: u64,
}

struct World {
    state: State,
    known: HashMap<Uuid, Fingerprint>,
    receipts: Vec<Receipt>,
    room: Room,
    places: u64,
    now: DateTime<Utc>,
}

impl World {
    fn new() -> Self {
        let admin = User {
            id: ADMIN,
            email: "admin@example.org".into(),
            password_hash: HASH.into(),
            role: Role::Admin,
            profile: None,
            created_at: beginning(),
            updated_at: beginning(),
            version: 1,
        };
        let mut state = State::default();
        state.emails.insert(admin.email.clone(), admin.id);
        state.users.insert(admin.id, admin);
        Self {
            state,
            known: HashMap::new(),
            receipts: Vec::new(),
            room: Room::default(),
            places: 0,
            now: beginning(),
        }
    }

    fn lines(&self) -> HashSet<Uuid> {
        let blocking = self.room.0.iter().filter(|row| row.item.waited.is_some_and(|w| w.why.blocks()));
        blocking.filter_map(|row| row.item.subject()).collect()
    }

    /// One batch, as the workers' waiting.rs settles it.
    fn apply(&mut self, items: &[Item], lines: &HashSet<Uuid>) {
        let (retention, patience) = (Retention::default(), Patience::default());
        let rules = Rules { now: self.now, retention: &retention, patience: &patience };
        let folded = fold(items, &self.known, lines, std::mem::take(&mut self.state), rules);
        for (item, verdict) in items.iter().zip(&folded.verdicts) {
            match verdict {
                Verdict::Held(held) => {
                    let held = &folded.held[*held];
                    let waited = Waited { why: held.why, attempts: held.attempts, since: held.since };
                    let before = self.room.0.iter().position(|row| row.item.id == item.id);
                    let kept = before
                        .map(|index| self.room.0.remove(index))
                        .filter(|row| row.item.waited.is_some_and(|w| w.why.blocks()) || !held.why.blocks());
                    self.places += 1;
                    let place = kept.map_or(self.places, |row| row.place);
                    let item = Item { waited: Some(waited), ..item.clone() };
                    self.room.0.push(Row { item, due_at: held.due_at, place });
                }
                Verdict::Stays => {}
                Verdict::Finished(_) | Verdict::Duplicate | Verdict::Mismatch => {
                    self.room.0.retain(|row| row.item.id != item.id);
                }
            }
        }
        self.known.extend(folded.receipts.iter().map(|receipt| (receipt.id, receipt.fingerprint)));
        self.receipts.extend(folded.receipts);
        self.state = folded.state;
        // Whoever is first in a line now is due.
        let now = self.now;
        for subject in self.lines() {
            let of_line = |row: &&mut Row| {
                row.item.subject() == Some(subject) && row.item.waited.is_some_and(|w| w.why.blocks())
            };
            if let Some(first) = self.room.0.iter_mut().filter(of_line).min_by_key(|row| row.place) {
                first.due_at.get_or_insert(now);
            }
        }
    }

    fn due(&mut self, limit: usize) {
        let due: Vec<&Row> =
            self.room.0.iter().filter(|row| row.due_at.is_some_and(|due| due <= self.now)).collect();
        let heads: HashSet<Uuid> = due
            .iter()
            .filter(|row| row.item.waited.is_some_and(|w| w.why.blocks()))
            .filter_map(|row| row.item.subject())
            .collect();
        let mut batch: Vec<&Row> = self
            .room
            .0
            .iter()
            .filter(|row| {
                let behind = row.item.waited.is_some_and(|w| w.why == Why::Behind) && row.due_at.is_none();
                row.due_at.is_some_and(|due| due <= self.now)
                    || behind && row.item.subject().is_some_and(|subject| heads.contains(&subject))
            })
            .collect();
        batch.sort_by_key(|row| {
            let scheduled = row.item.waited.is_some_and(|w| w.why == Why::Scheduled);
            (scheduled, row.due_at.filter(|_| scheduled), row.place)
        });
        batch.truncate(limit.max(1));
        let items: Vec<Item> = batch.iter().map(|row| row.item.clone()).collect();
        let mut lines = self.lines();
        for item in items.iter().filter(|item| item.waited.is_some_and(|w| w.why.blocks())) {
            lines.remove(&item.subject().expect("who waits has a subject"));
        }
        self.apply(&items, &lines);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn each_subjects_commands_end_in_the_order_in_which_they_came(
        items in stream(),
        steps in prop::collection::vec((1..8_usize, 0..3_000_i64, 1..6_usize), 1..80),
    ) {
        let mut world = World::new();
        let mut rest = &items[..];
        let mut steps = steps.iter().cycle();
        let mut rounds = 0;
        while !rest.is_empty() || !world.room.0.is_empty() {
            let (size, pause, limit) = steps.next().expect("a cycle");
            let lines = world.lines();
            let (batch, later) = rest.split_at((*size).min(rest.len()));
            rest = later;
            world.apply(batch, &lines);
            world.now += TimeDelta::milliseconds(*pause + 1);
            world.due(*limit);
            rounds += 1;
            prop_assert!(rounds < 5_000, "somebody waits for ever");
        }
        // Each command has one receipt.
        let ids: HashSet<Uuid> = world.receipts.iter().map(|receipt| receipt.id).collect();
        prop_assert_eq!(ids.len(), items.len());
        prop_assert_eq!(world.receipts.len(), items.len());
        // In order, but for those that had a time of their own.
        let came: HashMap<Uuid, usize> = items.iter().enumerate().map(|(place, item)| (item.id, place)).collect();
        let timed: HashSet<Uuid> = items.iter().filter_map(|item| match &item.content {
            taskflow_core::batch::Content::Command(command) if command.not_before.is_some() => Some(item.id),
            _ => None,
        }).collect();
        let mut newest: HashMap<Option<Uuid>, usize> = HashMap::new();
        for receipt in world.receipts.iter().filter(|receipt| !timed.contains(&receipt.id)) {
            let place = came[&receipt.id];
            if let Some(before) = newest.insert(receipt.subject, place) {
                prop_assert!(before < place, "{} came before {before} and ended after it", place);
            }
        }
        // Nobody is refused for a user who came in time: all do who come at all, unless their own time is over.
        let late = TimeDelta::seconds(30);
        for receipt in &world.receipts {
            if receipt.outcome == Outcome::Rejected && receipt.code == Some(Code::UnknownUser.as_str()) {
                prop_assert!(receipt.finished_at - beginning() >= late, "rejected at once: {receipt:?}");
            }
        }
    }
}

/// Who has stood behind a parked command for as long as a user is waited for is not waited for once more.
#[test]
fn a_line_does_not_take_the_patience_for_each_of_its_commands() {
    let (retention, patience) = (Retention::default(), Patience::default());
    let now = beginning() + TimeDelta::minutes(5);
    let fold_one = |waited: i64| {
        let body = UpdateTask {
            title: Some("a".into()),
            description: None,
            priority: None,
            duedate: None,
            expectedversion: None,
        };
        let since = now - TimeDelta::seconds(waited);
        let waited = Some(Waited { why: Why::Behind, attempts: 0, since });
        let one =
            Item { waited, ..item(1, Uuid::from_u128(0x2000), late_user(0), None, Body::UpdateTask(body)) };
        let rules = Rules { now, retention: &retention, patience: &patience };
        fold(&[one], &HashMap::new(), &HashSet::new(), State::default(), rules)
    };
    let over = fold_one(31);
    assert_eq!(over.receipts[0].code, Some(Code::UnknownUser.as_str()));
    let left = fold_one(29);
    assert!(left.receipts.is_empty());
    let due_at = left.held[0].due_at.expect("a next try");
    assert!(due_at <= now + TimeDelta::seconds(1), "{due_at} is behind its end");
}
