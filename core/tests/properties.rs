//! What must hold for any commands: a batch is its commands one by one, however it is cut; subjects do not disturb each
//! other; nothing but the arguments matters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use taskflow_core::batch::{Content, Rules, Verdict};
use taskflow_core::command::{
    AssignTask, Body, ChangeStatus, Command, CreateTask, DeleteTask, Fingerprint, RecordSession,
    RegisterUser, UpdateProfile, UpdateTask,
};
use taskflow_core::event::Retention;
use taskflow_core::state::{Role, TaskPriority, TaskStatus};
use taskflow_core::wait::Patience;
use taskflow_core::{Event, Folded, Item, Outcome, Receipt, State, User, fold, needs};
use uuid::Uuid;

const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000, 0).expect("a time")
}

fn rules() -> Rules<'static> {
    static RETENTION: LazyLock<Retention> = LazyLock::new(Retention::default);
    Rules { now: now(), retention: &RETENTION, patience: &Patience::NONE }
}

fn user_id(number: u8) -> Uuid {
    Uuid::from_u128(0x1000 + u128::from(number))
}

fn task_id(number: u8) -> Uuid {
    Uuid::from_u128(0x2000 + u128::from(number))
}

/// Two users are there from the start: 0 is an admin, 1 is not.
fn start() -> State {
    let user = |number: u8, role| User {
        id: user_id(number),
        email: format!("user{number}@example.org"),
        password_hash: HASH.into(),
        role,
        profile: None,
        created_at: now(),
        updated_at: now(),
        version: 1,
    };
    let mut state = State::default();
    for user in [user(0, Role::Admin), user(1, Role::User)] {
        state.emails.insert(user.email.clone(), user.id);
        state.users.insert(user.id, user);
    }
    state
}

fn command(id: u16, subject: Uuid, actor: Uuid, body: Body) -> Command {
    Command::new(Uuid::from_u128(0x9_0000 + u128::from(id)), "/test", subject, actor, body)
}

fn status() -> impl Strategy<Value = TaskStatus> {
    prop::sample::select(TaskStatus::WORDS.map(|(_, status)| status).to_vec())
}

fn task_body() -> impl Strategy<Value = Body> {
    let expected = || prop::option::weighted(0.3, 1..5_i32);
    let user = || (0..4_u8).prop_map(user_id);
    let due = || {
        prop::option::of(prop::option::of((-5..50_i64).prop_map(|s| now() + chrono::TimeDelta::seconds(s))))
    };
    prop_oneof![
        3 => ("[a-c]{1,2}", prop::option::of(user()), due()).prop_map(|(title, assigneeid, due)| {
            Body::CreateTask(CreateTask {
                title, description: None, priority: TaskPriority::Low, assigneeid, duedate: due.flatten(),
            })
        }),
        3 => ("[a-c]{1,2}", due(), expected()).prop_map(|(title, duedate, expectedversion)| {
            Body::UpdateTask(UpdateTask {
                title: Some(title), description: Some(None), priority: None, duedate, expectedversion,
            })
        }),
        2 => (prop::option::of(user()), expected()).prop_map(|(assigneeid, expectedversion)| {
            Body::AssignTask(AssignTask { assigneeid, expectedversion })
        }),
        3 => (status(), expected()).prop_map(|(status, expectedversion)| {
            Body::ChangeStatus(ChangeStatus { status, expectedversion })
        }),
        1 => expected().prop_map(|expectedversion| Body::DeleteTask(DeleteTask { expectedversion })),
    ]
}

fn user_body() -> impl Strategy<Value = Body> {
    let email =
        prop::sample::select(vec!["user0@example.org", "a@example.org", "A@example.org", "b@example.org"]);
    prop_oneof![
        2 => (email, any::<bool>()).prop_map(|(email, admin)| Body::RegisterUser(RegisterUser {
            email: email.into(),
            passwordhash: HASH.into(),
            role: if admin { Role::Admin } else { Role::User },
            profile: None,
        })),
        2 => ("[xy]", prop::option::of(0..3_u8)).prop_map(|(key, value)| {
            Body::UpdateProfile(UpdateProfile { profile: Map::from_iter([(key, json!(value))]) })
        }),
        1 => Just(Body::RecordLogin(RecordSession { sessionid: "digest".into() })),
    ]
}

/// Few ids, so that commands meet: the same entities, the same addresses, sometimes the same command.
fn item() -> impl Strategy<Value = Item> {
    let about_task = ((0..5_u8).prop_map(task_id), task_body());
    let about_user = ((0..4_u8).prop_map(user_id), user_body());
    let what = prop_oneof![3 => about_task.boxed(), 1 => about_user.boxed()];
    (0..300_u16, what, 0..4_u8, 0..3_i64, prop::option::weighted(0.1, -3..3_i64)).prop_map(
        |(id, (subject, body), actor, age, expiry)| {
            let mut command = command(id, subject, user_id(actor), body);
            command.expires_at = expiry.map(|seconds| now() + chrono::TimeDelta::seconds(seconds));
            Item::command(command, now() - chrono::TimeDelta::seconds(age))
        },
    )
}

/// Everything that a run of batches leaves behind.
#[derive(Debug, Default, PartialEq)]
struct Trail {
    receipts: Vec<Receipt>,
    events: Vec<Event>,
    state: State,
}

/// Applies batches one after the other, as workers do: what one leaves is what the next one loads.
fn run(batches: &[&[Item]]) -> Trail {
    let mut trail = Trail { state: start(), ..Trail::default() };
    let mut known: HashMap<Uuid, Fingerprint> = HashMap::new();
    for batch in batches {
        let state = std::mem::take(&mut trail.state);
        let folded = fold(batch, &known, &HashSet::new(), state, rules());
        sane(batch, &folded);
        known.extend(folded.receipts.iter().map(|receipt| (receipt.id, receipt.fingerprint)));
        trail.receipts.extend(folded.receipts);
        trail.events.extend(folded.events);
        trail.state = folded.state;
    }
    trail
}

/// What holds for every batch.
fn sane(batch: &[Item], folded: &Folded) {
    assert_eq!(folded.verdicts.len(), batch.len());
    let finished = folded.verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Finished(_))).count();
    assert_eq!(finished, folded.receipts.len());
    let new: HashSet<Uuid> = folded.new_tasks.iter().map(|task| task.id).collect();
    assert!(folded.changed_tasks.iter().all(|task| !new.contains(&task.id)), "a task is new and changed");
    assert!(
        folded.new_tasks.is_sorted_by_key(|task| task.id)
            && folded.changed_tasks.is_sorted_by_key(|task| task.id)
    );
    let events: HashSet<_> = folded.events.iter().map(|event| event.id).collect();
    assert_eq!(events.len(), folded.events.len(), "two events have one id");
    let told: HashSet<_> = folded.receipts.iter().flat_map(Receipt::event_ids).collect();
    assert_eq!(told, events, "receipts and events disagree");
    for task in folded.state.tasks.values() {
        // The table's own rules: a row that breaks them would poison a batch.
        assert!(task.due_date.is_none_or(|due| due > task.created_at), "{task:?}");
        assert_eq!(task.status == TaskStatus::Done, task.completed_at.is_some(), "{task:?}");
        assert!(task.version > 0 && !task.title.is_empty());
    }
    let needs = needs(batch);
    for item in batch {
        let Content::Command(command) = &item.content else { continue };
        let subjects = [&needs.tasks, &needs.created, &needs.users];
        assert_eq!(subjects.iter().filter(|subjects| subjects.contains(&command.subject)).count(), 1);
        assert!(needs.roles.contains(&command.actor) || needs.users.contains(&command.actor));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_batch_is_its_commands_one_by_one(items in prop::collection::vec(item(), 1..60)) {
        let singles: Vec<&[Item]> = items.chunks(1).collect();
        prop_assert_eq!(run(&[&items]), run(&singles));
    }

    #[test]
    fn the_borders_of_batches_make_no_difference(
        items in prop::collection::vec(item(), 1..60), size in 1..20_usize,
    ) {
        let batches: Vec<&[Item]> = items.chunks(size).collect();
        prop_assert_eq!(run(&[&items]), run(&batches));
    }

    /// A batch that was applied and comes again, whole or in part, changes nothing.
    #[test]
    fn what_comes_again_changes_nothing(items in prop::collection::vec(item(), 1..40), from in 0..40_usize) {
        let again = &items[from.min(items.len())..];
        prop_assert_eq!(run(&[&items, again, &items]), run(&[&items]));
    }

    #[test]
    fn nothing_but_the_arguments_matters(items in prop::collection::vec(item(), 1..40)) {
        prop_assert_eq!(run(&[&items]), run(&[&items]));
    }

    /// Any interleaving that keeps each task's own order gives each task the same end. Commands about users are left
    /// out: tasks depend on who exists.
    #[test]
    fn tasks_do_not_disturb_each_other(
        bodies in prop::collection::vec((0..4_u8, task_body(), 0..2_u8), 1..50), order in any::<u64>(),
    ) {
        let items: Vec<Item> = bodies.into_iter().enumerate().map(|(id, (task, body, actor))| {
            Item::command(command(id as u16, task_id(task), user_id(actor), body), now())
        }).collect();
        let mut queues: BTreeMap<Uuid, Vec<Item>> = BTreeMap::new();
        for item in &items {
            if let Content::Command(command) = &item.content {
                queues.entry(command.subject).or_default().push(item.clone());
            }
        }
        let (mut mixed, mut turn) = (Vec::new(), order);
        while mixed.len() < items.len() {
            turn = turn.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let queue = (turn >> 33) as usize % queues.len();
            if let Some(queue) = queues.values_mut().nth(queue).filter(|queue| !queue.is_empty()) {
                mixed.push(queue.remove(0));
            }
        }
        let (one, other) = (run(&[&items]), run(&[&mixed]));
        prop_assert_eq!(one.state.tasks, other.state.tasks);
        let by_id = |trail: Vec<Receipt>| trail.into_iter().map(|r| (r.id, r)).collect::<BTreeMap<_, _>>();
        prop_assert_eq!(by_id(one.receipts), by_id(other.receipts));
    }

    /// Each change of a task raises its version by one, and its events tell of each version.
    #[test]
    fn versions_have_no_gaps(items in prop::collection::vec(item(), 1..80)) {
        let trail = run(&[&items]);
        for task in trail.state.tasks.values() {
            let mut versions: Vec<i32> =
                trail.events.iter().filter(|event| event.entity == task.id).filter_map(|event| event.version).collect();
            versions.dedup();
            prop_assert_eq!(versions, (1..=task.version).collect::<Vec<_>>());
        }
        let applied = trail.receipts.iter().filter(|receipt| receipt.outcome == Outcome::Applied);
        prop_assert!(applied.clone().all(|receipt| receipt.code.is_none() && receipt.version.is_some()));
    }

    #[test]
    fn addresses_and_passwords_are_kept(items in prop::collection::vec(item(), 1..60)) {
        let trail = run(&[&items]);
        let addresses: HashSet<String> = trail.state.users.values().map(|user| user.email.to_lowercase()).collect();
        prop_assert_eq!(addresses.len(), trail.state.users.len(), "two users have one address");
        for event in &trail.events {
            prop_assert!(!Value::Object(event.payload.object()).to_string().contains("$2b$"), "a hash is told");
        }
    }

    /// Loading what `needs` says gives the same as loading everything.
    #[test]
    fn what_is_needed_is_enough(items in prop::collection::vec(item(), 1..60), size in 1..20_usize) {
        let whole = run(&[&items]);
        let mut database = start();
        let mut known: HashMap<Uuid, Fingerprint> = HashMap::new();
        let mut receipts = Vec::new();
        for batch in items.chunks(size) {
            let needs = needs(batch);
            let loaded = State {
                tasks: needs.tasks.iter().chain(&needs.created).filter_map(|id| Some((*id, database.tasks.get(id)?.clone()))).collect(),
                users: needs.users.iter().filter_map(|id| Some((*id, database.users.get(id)?.clone()))).collect(),
                roles: needs.roles.iter().filter_map(|id| Some((*id, database.users.get(id)?.role))).collect(),
                emails: needs.emails.iter().filter_map(|key| Some((key.clone(), *database.emails.get(key)?))).collect(),
            };
            let folded = fold(batch, &known, &HashSet::new(), loaded, rules());
            known.extend(folded.receipts.iter().map(|receipt| (receipt.id, receipt.fingerprint)));
            receipts.extend(folded.receipts);
            // Only what the fold says is written.
            database.tasks.extend(folded.new_tasks.into_iter().chain(folded.changed_tasks).map(|task| (task.id, task)));
            for user in folded.new_users.into_iter().chain(folded.changed_users) {
                database.emails.insert(taskflow_core::state::email_key(&user.email), user.id);
                database.users.insert(user.id, user);
            }
        }
        prop_assert_eq!(receipts, whole.receipts);
        prop_assert_eq!(database, whole.state);
    }
}
