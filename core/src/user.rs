//! The rules of a user: registration, profile, logins.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};

use crate::command::{Command, PROFILE_MAX, RecordSession, RegisterUser, UpdateProfile};
use crate::decide::{Change, Draft, Effect, actor_role, forbidden};
use crate::receipt::{Code, Rejection};
use crate::state::{Role, State, User, email_key};

pub(crate) fn register(
    state: &State,
    command: &Command,
    body: &RegisterUser,
    accepted_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    if state.users.contains_key(&command.subject) {
        return Err(Rejection::new(Code::AlreadyExists, format!("user {} exists already", command.subject)));
    }
    let role = if command.actor == command.subject { Role::User } else { actor_role(state, command)? };
    if body.role == Role::Admin && role != Role::Admin {
        return Err(forbidden("only an admin may register an admin"));
    }
    if state.emails.contains_key(&email_key(&body.email)) {
        return Err(Rejection::new(Code::EmailTaken, "another user has this email address"));
    }
    let user = User {
        id: command.subject,
        email: body.email.clone(),
        password_hash: body.passwordhash.clone(),
        role: body.role,
        profile: body.profile.clone(),
        created_at: accepted_at,
        updated_at: now,
        version: 1,
    };
    let mut payload = json!({ "email": user.email, "role": user.role });
    if let Some(profile) = &user.profile {
        payload["profile"] = Value::Object(profile.clone());
    }
    let events = vec![Draft::new("user.registered", payload)];
    Ok(Effect { version: Some(1), change: Change::User(user), events })
}

pub(crate) fn update_profile(
    state: &State,
    command: &Command,
    body: &UpdateProfile,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    let user = changeable(state, command)?;
    let before = user.profile.clone().unwrap_or_default();
    let mut after = Value::Object(before.clone());
    merge(&mut after, &Value::Object(body.profile.clone()));
    let Value::Object(after) = after else { return Ok(unchanged(user)) };
    if after == before {
        return Ok(unchanged(user));
    }
    if Value::Object(after.clone()).to_string().len() > PROFILE_MAX {
        return Err(Rejection::new(
            Code::ValidationFailed,
            format!("the profile would grow beyond {PROFILE_MAX} bytes"),
        ));
    }
    let previous: Map<String, Value> = body
        .profile
        .keys()
        .map(|key| (key.clone(), before.get(key).cloned().unwrap_or(Value::Null)))
        .collect();
    let payload = json!({ "profile": body.profile, "previous": { "profile": previous } });
    let next = User { profile: Some(after), updated_at: now, version: user.version + 1, ..user.clone() };
    let events = vec![Draft::new("user.profile_updated", payload)];
    Ok(Effect { version: Some(next.version), change: Change::User(next), events })
}

pub(crate) fn record_session(
    state: &State,
    command: &Command,
    kind: &'static str,
    body: &RecordSession,
) -> Result<Effect, Rejection> {
    let user = changeable(state, command)?;
    let event = Draft { session: Some(body.sessionid.clone()), ..Draft::new(kind, json!({})) };
    Ok(Effect { change: Change::Nothing, events: vec![event], version: Some(user.version) })
}

fn changeable<'s>(state: &'s State, command: &Command) -> Result<&'s User, Rejection> {
    let role = actor_role(state, command)?;
    let user = state
        .users
        .get(&command.subject)
        .ok_or_else(|| Rejection::new(Code::NotFound, format!("there is no user {}", command.subject)))?;
    if command.actor != command.subject && role != Role::Admin {
        return Err(forbidden("only the user itself and an admin may change a user"));
    }
    Ok(user)
}

fn unchanged(user: &User) -> Effect {
    Effect { change: Change::Nothing, events: Vec::new(), version: Some(user.version) }
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}
