//! Users: registering one, what one may do, another role, another password.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use taskflow_core::User;
use taskflow_core::envelope::{self, Malformed};
use taskflow_core::fault::{Fault, Faults, Object};
use taskflow_core::state::Role;
use taskflow_core::system_event::Change;
use taskflow_stores::clock;
use taskflow_stores::postgres::user_deeds::{self, Refused};
use taskflow_stores::postgres::users;
use uuid::Uuid;

use super::commands::{self, Taken};
use super::sessions::read_password;
use crate::auth::Caller;
use crate::passwords::PASSWORD_MIN;
use crate::problem::Problem;
use crate::reads::Answer;
use crate::{App, Shared, answer};

/// Where users come from that people register here; those of an API key come from its source prefix.
const SOURCE: &str = "/taskflow/api";
/// Stands in for the hash while the rest is checked: hashing is dear, and done only for what is good.
const ANY_HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/users", post(register))
        .route("/v1/users/{id}/permissions", get(permissions))
        .route("/v1/users/{id}/password", put(change_own_password))
        .route("/v1/admin/users/{id}/role", put(change_role))
        .route("/v1/admin/users/{id}/password", put(change_password))
}

/// `{id?, email, password, profile?}`: hashes the password, then does what `POST /v1/commands` does with a
/// `user.register` of the caller. The answer is the same, with the new user's id beside it.
async fn register(
    State(app): Shared,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (mut command, user, password) = read_registration(&caller, &body)?;
    // What nobody may send, or is no registration, costs no hash.
    let parsed = envelope::parse(command.to_string().as_bytes())
        .map_err(|Malformed { faults, .. }| Problem::invalid(renamed(faults)))?;
    caller.may_send(&parsed)?;
    let hash = hash(&app, password).await?;
    command["data"]["passwordhash"] = hash.into();
    let command = Bytes::from(command.to_string());
    Ok(match commands::take(&app, &caller, &headers, &command).await? {
        Taken::Ended(receipt) => Json(receipt).into_response(),
        Taken::Accepted(id) => commands::accepted(id, Some(user)),
    })
}

fn read_registration(caller: &Caller, body: &Bytes) -> Result<(Value, Uuid, String), Problem> {
    let mut faults = Faults::default();
    let mut object = Object::new(fields(body, "email and password")?, "", &mut faults);
    let id = object.uuid("id").unwrap_or_else(clock::new_id);
    let password = object.required("password", |object, name| read_password(object, name, PASSWORD_MIN));
    // These two are the command's: it has the rules for them.
    let email = object.required("email", Object::value);
    let profile = object.value("profile");
    object.finish();
    let (Some(password), Some(email), true) = (password, email, faults.0.is_empty()) else {
        return Err(Problem::invalid(faults.0));
    };
    let prefix = caller.key.as_ref().map(|key| key.source_prefix.as_deref().unwrap_or_default());
    let mut command = json!({
        "specversion": "1.0", "id": clock::new_id(), "source": prefix.unwrap_or(SOURCE), "type": "user.register",
        "subject": id,
        // A key is no user: whom it registers registers itself.
        "actorid": if caller.key.is_some() { id } else { caller.user },
        "data": { "email": email, "passwordhash": ANY_HASH },
    });
    if let Some(profile) = profile {
        command["data"]["profile"] = profile;
    }
    Ok((command, id, password))
}

/// Faults of the command as faults of what was sent here.
fn renamed(faults: Vec<Fault>) -> Vec<Fault> {
    let own = |fault: Fault| {
        let pointer = fault.pointer.strip_prefix("/data").unwrap_or(&fault.pointer).to_owned();
        Fault { pointer, ..fault }
    };
    faults.into_iter().map(own).collect()
}

/// What a user may do, in words: `["task:create", …]`.
async fn permissions(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = user_id(&id)?;
    let unknown = || Problem::not_found(format!("there is no user {user} whom you may see"));
    if !caller.may_see(Some(user)) {
        return Err(unknown());
    }
    let (text, hit) = app.reads.permissions(user).await?.ok_or_else(unknown)?;
    Ok(words(&headers, text, hit))
}

fn words(asked: &HeaderMap, text: String, hit: bool) -> Response {
    answer::respond(asked, Answer { hit, ..answer::fresh(text.into_bytes()) })
}

/// `{role}`: gives a user another role and ends that user's sessions.
async fn change_role(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let user = user_id(&id)?;
    let mut faults = Faults::default();
    let mut object = Object::new(fields(&body, "role")?, "", &mut faults);
    let role = object.required("role", |object, name| object.word(name, &Role::WORDS));
    object.finish();
    let (Some(role), true) = (role, faults.0.is_empty()) else { return Err(Problem::invalid(faults.0)) };
    let origin = Origin::of(&caller);
    let changed = user_deeds::change_role(&app.stores.postgres, user, role, &origin.change()).await?;
    tracing::warn!(%user, role = role.as_str(), author = %caller.user, "A role was changed.");
    let sessions = end_sessions(&app, user).await;
    Ok(Json(json!({ "id": user, "role": changed.role, "version": changed.version, "sessions": sessions })))
}

/// `{password}`: gives a user another password and ends that user's sessions.
async fn change_password(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let user = user_id(&id)?;
    if caller.user == user {
        let own = format!(
            "change your own password with PUT /v1/users/{user}/password, which asks for the old one"
        );
        return Err(Problem::conflict("own_password", own));
    }
    let (_, password) = read_passwords(&body, false)?;
    put_password(&app, &caller, user, password, None).await
}

/// `{current, password}`: the same for the caller itself, who shows that it knows the old one.
async fn change_own_password(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let user = user_id(&id)?;
    if caller.user != user {
        let other = "this is for one's own password; an admin changes others' under /v1/admin/users";
        return Err(Problem::forbidden("forbidden", other));
    }
    let (current, password) = read_passwords(&body, true)?;
    let known = users::by_id(&app.stores.postgres, user).await?;
    let known = known.ok_or_else(|| Problem::not_found("you are not there any more"))?;
    // A stolen session must not be a way to try passwords without end.
    let attempt = app.begin_login(&known.email, caller.ip).await?;
    let hash = Some(known.password_hash.clone());
    let fits = app.passwords.check(current, hash).await.map_err(|_| busy())?;
    if !fits {
        app.login_failed(attempt, Some(user)).await;
        return Err(Problem::invalid(vec![Fault::new("/current", "is not your password")]));
    }
    drop(attempt);
    put_password(&app, &caller, user, password, Some(&known.password_hash)).await
}

async fn put_password(
    app: &App,
    caller: &Caller,
    user: Uuid,
    password: String,
    checked: Option<&str>,
) -> Result<Json<Value>, Problem> {
    let hash = hash(app, password).await?;
    let origin = Origin::of(caller);
    let User { version, .. } =
        user_deeds::change_password(&app.stores.postgres, user, &hash, checked, &origin.change()).await?;
    tracing::warn!(%user, author = %caller.user, "A password was changed.");
    let sessions = end_sessions(app, user).await;
    Ok(Json(json!({ "id": user, "version": version, "sessions": sessions })))
}

/// Ends the sessions of a user who has changed. If Redis is away, that is done as soon as it is back.
async fn end_sessions(app: &App, user: Uuid) -> &'static str {
    app.forget_user(user);
    match app.end_sessions().await {
        Ok(()) => "ended",
        Err(error) => {
            tracing::warn!(%error, %user, "The user's sessions end later.");
            "ending"
        }
    }
}

/// Where a change comes from, for its event.
pub(super) struct Origin {
    author: Uuid,
    address: Option<String>,
    session: String,
}

impl Origin {
    pub(super) fn of(caller: &Caller) -> Self {
        Self {
            author: caller.user,
            address: caller.ip.map(|ip| ip.to_string()),
            session: caller.session.clone(),
        }
    }

    pub(super) fn change(&self) -> Change<'_> {
        Change {
            id: clock::new_id(),
            author: self.author,
            address: self.address.as_deref(),
            session: Some(&self.session),
            at: clock::now(),
        }
    }
}

async fn hash(app: &App, password: String) -> Result<String, Problem> {
    app.passwords.hash(password).await.map_err(|_| busy())
}

fn busy() -> Problem {
    Problem::unavailable("too many passwords are looked at at the moment")
}

fn read_passwords(body: &Bytes, with_current: bool) -> Result<(String, String), Problem> {
    let mut faults = Faults::default();
    let mut object = Object::new(fields(body, "password")?, "", &mut faults);
    let current = if with_current {
        object.required("current", |object, name| read_password(object, name, 0))
    } else {
        Some(String::new())
    };
    let password = object.required("password", |object, name| read_password(object, name, PASSWORD_MIN));
    object.finish();
    match (current, password) {
        (Some(current), Some(password)) if faults.0.is_empty() => Ok((current, password)),
        _ => Err(Problem::invalid(faults.0)),
    }
}

/// The fields of a body. The parser's own message could quote a part of a password.
pub(super) fn fields(body: &Bytes, what: &str) -> Result<Map<String, Value>, Problem> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(Problem::bad_request("malformed", format!("the body is a JSON object with {what}"))),
    }
}

fn user_id(id: &str) -> Result<Uuid, Problem> {
    id.parse().map_err(|_| Problem::not_found("a user's id is a UUID"))
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        match refused {
            Refused::Unknown(_) => Self::not_found(detail),
            Refused::LastAdmin => Self::conflict("last_admin", detail),
            Refused::ChangedMeanwhile => Self::conflict("changed_meanwhile", detail),
            Refused::Store(error) => error.into(),
        }
    }
}
