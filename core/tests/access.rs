//! API keys and permissions: what a key looks like, and that the words of a role say what the rules do.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use taskflow_core::api_key::{self, covers};
use taskflow_core::command::{Body, Command, DeleteTask, RegisterUser, UpdateProfile, UpdateTask};
use taskflow_core::decide::decide;
use taskflow_core::state::{Role, State, Task, TaskPriority, TaskStatus, User};
use taskflow_core::{Code, permission};
use uuid::Uuid;

proptest! {
    #[test]
    fn a_key_is_known_by_its_form_and_any_slip_is_found(
        id: [u8; 16], secret: [u8; 32], place in 0usize..120, letter in "[0-9A-Za-z_]",
    ) {
        let id = Uuid::from_bytes(id);
        let token = api_key::token(id, secret);
        prop_assert_eq!(api_key::id_of(&token), Some(id));
        prop_assert!(token.starts_with(api_key::PREFIX) && token.len() <= 128);
        let place = place % token.len();
        let slip = format!("{}{letter}{}", &token[..place], &token[place + 1..]);
        prop_assert_eq!(api_key::id_of(&slip), (slip == token).then_some(id));
        prop_assert_eq!(api_key::id_of(&token[..place]), None);
        prop_assert!(api_key::same(&api_key::digest(&token), &api_key::digest(&token)));
        prop_assert_eq!(api_key::same(&api_key::digest(&token), &api_key::digest(&slip)), slip == token);
    }

    #[test]
    fn different_secrets_are_different_keys(one: [u8; 32], other: [u8; 32]) {
        let token = |secret| api_key::token(Uuid::nil(), secret);
        prop_assert_eq!(token(one) == token(other), one == other);
    }

    #[test]
    fn anything_else_is_no_key(text in ".{0,150}") {
        prop_assert_eq!(api_key::id_of(&text), None);
    }

    #[test]
    fn a_prefix_covers_what_goes_on_at_a_border(prefix in "/[a-z]{1,8}(/[a-z]{1,8})?", rest in "[a-z/.]{0,12}") {
        let below = format!("{prefix}/{rest}");
        prop_assert_eq!(covers(&prefix, &below), !below.split('/').any(|part| part == ".."));
        prop_assert!(covers(&prefix, &prefix));
        let longer = format!("{prefix}x{rest}");
        prop_assert!(!covers(&prefix, &longer));
    }
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000, 0).expect("a time")
}

const ACTOR: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);
const TASK: Uuid = Uuid::from_u128(3);

/// The actor with a role, somebody else, and a task that one of them has created.
fn state(role: Role, creator: Uuid) -> State {
    let user = |id: Uuid, role| User {
        id,
        email: format!("{id}@example.org"),
        password_hash: String::new(),
        role,
        profile: None,
        created_at: now(),
        updated_at: now(),
        version: 1,
    };
    let task = Task {
        version: 1,
        id: TASK,
        title: "a task".into(),
        description: None,
        status: TaskStatus::Todo,
        priority: TaskPriority::Medium,
        assignee: None,
        creator,
        created_at: now(),
        updated_at: now(),
        completed_at: None,
        due_date: None,
        deleted_at: None,
    };
    State {
        tasks: HashMap::from([(TASK, task)]),
        users: HashMap::from([(ACTOR, user(ACTOR, role)), (OTHER, user(OTHER, Role::User))]),
        ..State::default()
    }
}

#[test]
fn the_words_of_a_role_say_what_the_rules_allow() {
    let update = || {
        Body::UpdateTask(UpdateTask {
            title: Some("another".into()),
            description: None,
            priority: None,
            duedate: None,
            expectedversion: None,
        })
    };
    let delete = || Body::DeleteTask(DeleteTask { expectedversion: None });
    let profile = || Body::UpdateProfile(UpdateProfile { profile: serde_json::Map::new() });
    let register = |role| {
        Body::RegisterUser(RegisterUser {
            email: "new@example.org".into(),
            passwordhash: String::new(),
            role,
            profile: None,
        })
    };
    for role in [Role::User, Role::Admin] {
        for own in [true, false] {
            let about = if own { ACTOR } else { OTHER };
            let state = state(role, about);
            let allowed = |subject, body| {
                let command = Command::new(Uuid::from_u128(9), "/test", subject, ACTOR, body);
                !matches!(decide(&state, &command, now(), now()), Err(rejection) if rejection.code == Code::Forbidden)
            };
            let says = |word: &str| {
                let words = permission::of(role);
                words.contains(&word) || own && words.contains(&format!("{word}:own").as_str())
            };
            assert_eq!(allowed(TASK, update()), says("task:update"), "{role:?} {own}");
            assert_eq!(allowed(TASK, delete()), says("task:delete"), "{role:?} {own}");
            assert_eq!(allowed(about, profile()), says("user:update"), "{role:?} {own}");
            let new = Uuid::from_u128(7);
            assert_eq!(allowed(new, register(Role::User)), says("user:register"), "{role:?}");
            assert_eq!(allowed(new, register(Role::Admin)), says("user:register:admin"), "{role:?}");
        }
    }
}
