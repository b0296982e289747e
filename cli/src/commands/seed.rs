//! `taskflow seed`: the specification's sample users and tasks.

use std::process::ExitCode;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value, json};
use taskflow_core::state::{Role, TaskPriority, TaskStatus};
use taskflow_core::{Task, User};
use taskflow_stores::postgres::{self, PgPool};
use taskflow_stores::{StoreError, clock};
use uuid::Uuid;

use crate::exit::Exit;
use crate::settings::{Environment, Settings};

/// Work factor of the sample passwords.
const COST: u32 = 12;
const ADMIN: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001);
const USER: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0002);
const FIRST_TASK: u128 = 0x0193_0000_0000_7000_8000_0000_0000_0100;

/// Who can log in to a development system.
pub(crate) const LOGINS: [(&str, &str); 2] =
    [("admin@taskflow.com", "admin123"), ("user@taskflow.com", "user123")];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Also outside development: everyone knows these passwords
    #[arg(long)]
    force: bool,
}

pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    if settings.environment != Environment::Development && !options.force {
        return Err(Exit::usage(
            "the sample users have passwords that everyone knows, and this is no development system; \
             set TASKFLOW_ENVIRONMENT=development, or say --force",
        ));
    }
    let pool = postgres::connect(&settings.postgres, "taskflow seed")?;
    let (users, tasks) = insert(&pool).await?;
    if json {
        println!("{}", json!({ "users": users, "tasks": tasks }));
    } else {
        println!("{users} users and {tasks} tasks are new");
    }
    Ok(ExitCode::SUCCESS)
}

/// Inserts what is not there yet.
pub(crate) async fn insert(pool: &PgPool) -> Result<(usize, usize), StoreError> {
    let now = clock::now();
    let missing = postgres::users::by_email(pool, LOGINS[0].0).await?.is_none();
    // Hashing takes a moment; a system that has its users need not wait for it.
    let users = if missing { sample_users(now) } else { Vec::new() };
    postgres::seed::insert(pool, &users, &sample_tasks(now)).await
}

fn sample_users(now: DateTime<Utc>) -> Vec<User> {
    let user = |id, (email, password): (&str, &str), role, first: &str, last: &str| User {
        id,
        email: email.to_owned(),
        // Fails only for passwords that are too long or a cost that does not exist.
        password_hash: bcrypt::non_truncating_hash(password, COST).unwrap_or_default(),
        role,
        profile: Some(Map::from_iter([
            ("firstName".to_owned(), Value::from(first)),
            ("lastName".to_owned(), Value::from(last)),
        ])),
        created_at: now,
        updated_at: now,
        version: 1,
    };
    vec![
        user(ADMIN, LOGINS[0], Role::Admin, "Admin", "User"),
        user(USER, LOGINS[1], Role::User, "John", "Doe"),
    ]
}

fn sample_tasks(now: DateTime<Utc>) -> Vec<Task> {
    let task =
        |number: u128, title: &str, status: TaskStatus, priority, assignee, due_days: Option<i64>| Task {
            version: 1,
            id: Uuid::from_u128(FIRST_TASK + number),
            title: title.to_owned(),
            description: None,
            status,
            priority,
            assignee,
            creator: ADMIN,
            created_at: now,
            updated_at: now,
            completed_at: (status == TaskStatus::Done).then_some(now),
            due_date: due_days.map(|days| now + TimeDelta::days(days)),
            deleted_at: None,
        };
    vec![
        Task {
            description: Some("Install and configure all necessary tools".to_owned()),
            ..task(0, "Setup development environment", TaskStatus::Done, TaskPriority::High, None, None)
        },
        task(1, "Send the first command", TaskStatus::Todo, TaskPriority::Medium, Some(USER), Some(7)),
        task(2, "Read the receipt", TaskStatus::InProgress, TaskPriority::Urgent, Some(USER), None),
    ]
}
