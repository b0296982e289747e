//! What one command does to what is loaded: one match on the type, nothing more. The rules are in [`crate::task`]
//! and [`crate::user`].

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use crate::command::{Body, Command};
use crate::event::Data;
use crate::receipt::{Code, Rejection};
use crate::state::{Role, State, Task, User};
use crate::{task, user};

/// What a command that broke no rule does.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Effect {
    pub change: Change,
    pub events: Vec<Draft>,
    /// The entity's version after it.
    pub version: Option<i32>,
}

/// The entity that a command leaves behind.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Change {
    #[default]
    Nothing,
    Task(Task),
    User(User),
}

/// An event before it has its id, times and the command's own data.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub kind: &'static str,
    pub payload: Data,
    /// The digest of the session that the event is about.
    pub session: Option<String>,
}

impl Draft {
    pub(crate) fn new(kind: &'static str, payload: Value) -> Self {
        Self { kind, payload: Data::new(&payload), session: None }
    }
}

/// Decides one command. `accepted_at` is when an intake took it, `now` when it is applied (never before
/// `accepted_at`).
pub fn decide(
    state: &State,
    command: &Command,
    accepted_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    match &command.body {
        Body::RegisterUser(body) => user::register(state, command, body, accepted_at, now),
        Body::UpdateProfile(body) => user::update_profile(state, command, body, now),
        Body::RecordLogin(body) => user::record_session(state, command, "user.login", body),
        Body::RecordLogout(body) => user::record_session(state, command, "user.logout", body),
        Body::CreateTask(body) => task::create(state, command, body, accepted_at, now),
        Body::UpdateTask(body) => task::update(state, command, body, accepted_at, now),
        Body::AssignTask(body) => task::assign(state, command, body, now),
        Body::ChangeStatus(body) => task::change_status(state, command, body, now),
        Body::DeleteTask(body) => task::delete(state, command, body, now),
    }
}

/// The actor's role; whoever acts must exist.
pub(crate) fn actor_role(state: &State, command: &Command) -> Result<Role, Rejection> {
    state.role(command.actor).ok_or_else(|| unknown_user("actorid", command.actor))
}

pub(crate) fn unknown_user(field: &str, id: Uuid) -> Rejection {
    Rejection::new(Code::UnknownUser, format!("{field} {id} is no user; register the user first"))
}

pub(crate) fn forbidden(detail: impl Into<String>) -> Rejection {
    Rejection::new(Code::Forbidden, detail)
}
