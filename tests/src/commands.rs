//! Commands and users for tests.

use anyhow::Result;
use serde_json::{Map, Value, json};
use taskflow_core::User;
use taskflow_core::state::Role;
use taskflow_stores::postgres::{self, PgPool};
use uuid::Uuid;

pub const ADMIN: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001);
pub const USER: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0002);
pub const ADMIN_EMAIL: &str = "admin@taskflow.test";
pub const ADMIN_PASSWORD: &str = "a password of the admin";
pub const USER_EMAIL: &str = "User@taskflow.test";
pub const USER_PASSWORD: &str = "a password of the user";
/// A bcrypt hash in the form that commands carry.
pub const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

/// A new random id.
pub fn id() -> Uuid {
    taskflow_stores::clock::new_id()
}

/// A subject of the given slot.
pub fn subject_in_slot(slot: u8) -> Uuid {
    let mut bytes = *id().as_bytes();
    bytes[15] = slot;
    Uuid::from_bytes(bytes)
}

/// A command of the admin.
pub fn command(kind: &str, subject: Uuid, data: Value) -> Value {
    command_of(ADMIN, kind, subject, data)
}

pub fn command_of(actor: Uuid, kind: &str, subject: Uuid, data: Value) -> Value {
    json!({
        "specversion": "1.0", "id": id(), "source": "/test", "type": kind, "subject": subject, "actorid": actor,
        "data": data,
    })
}

/// An array as a body of JSON lines.
pub fn ndjson(commands: &[Value]) -> String {
    commands.iter().map(|command| command.to_string() + "\n").collect()
}

/// Two users, one of them an admin, with the cheapest passwords that are allowed.
pub async fn seed(pool: &PgPool) -> Result<()> {
    let now = taskflow_stores::clock::now();
    let user = |id, email: &str, password: &str, role| -> Result<User> {
        Ok(User {
            id,
            email: email.to_owned(),
            password_hash: taskflow::hash_password(password, 10)?,
            role,
            profile: Some(Map::new()),
            created_at: now,
            updated_at: now,
            version: 1,
        })
    };
    let users = [
        user(ADMIN, ADMIN_EMAIL, ADMIN_PASSWORD, Role::Admin)?,
        user(USER, USER_EMAIL, USER_PASSWORD, Role::User)?,
    ];
    postgres::seed::insert(pool, &users, &[]).await?;
    Ok(())
}
