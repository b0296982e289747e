//! Logging in and out.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use taskflow_core::command::{Body, EMAIL_MAX, Metadata, Priority, RecordSession};
use taskflow_core::fault::{Faults, Object};
use taskflow_core::{Command, cache_key, metric};
use taskflow_stores::postgres::users;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::redis::sessions::Session;
use taskflow_stores::{clock, observe};
use tracing::Instrument;
use uuid::Uuid;

use crate::address::ClientAddress;
use crate::auth::{self, Caller};
use crate::passwords::PASSWORD_MAX;
use crate::problem::Problem;
use crate::{App, Shared, trace};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/sessions", post(log_in)).route("/v1/sessions/current", delete(log_out))
}

#[derive(Serialize)]
struct LoggedIn {
    token: String,
    userid: Uuid,
    expiresat: DateTime<Utc>,
}

async fn log_in(
    State(app): Shared,
    Extension(ClientAddress(ip)): Extension<ClientAddress>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (email, password) = read(&body)?;
    // In a task of its own: whoever hangs up has tried all the same, and is counted.
    let tried = async move { try_to_log_in(&app, ip, &headers, email, password).await };
    let tried = tokio::spawn(tried.instrument(tracing::Span::current()));
    tried
        .await
        .unwrap_or_else(|_| Err(Problem::unavailable("the login was not brought to its end; try again")))
}

async fn try_to_log_in(
    app: &App,
    ip: IpAddr,
    headers: &HeaderMap,
    email: String,
    password: String,
) -> Result<Response, Problem> {
    let attempt = app.begin_login(&email, Some(ip)).await?;
    let user = users::by_email(&app.stores.postgres, &email).await?;
    let known = user.as_ref().map(|user| user.id);
    let hash = user.as_ref().map(|user| user.password_hash.clone());
    let checked = app.passwords.check(password, hash).await;
    let count = |result| observe::counter(&metric::LOGINS, &[("result", result)]).increment(1);
    let Ok(fits) = checked else {
        count("busy");
        return Err(Problem::unavailable("too many people log in at the moment"));
    };
    let Some(user) = user.filter(|_| fits) else {
        count("failed");
        app.login_failed(attempt, known).await;
        return Err(Problem::unauthorized("there is no user with this email and password"));
    };
    let token = auth::new_token();
    let digest = auth::token_digest(&token);
    let now = clock::now();
    let expires_at = now + TimeDelta::seconds(cache_key::SESSION_TTL_S as i64);
    let session =
        Session { user_id: user.id, role: user.role, created_at: now, expires_at, version: user.version };
    if !app.stores.redis.begin_session(&digest, &session).await? {
        return Err(Problem::unavailable("the user has changed at this moment"));
    }
    app.login_succeeded(attempt).await;
    let metadata = Metadata {
        user_agent: auth::user_agent(headers),
        ip_address: Some(ip.to_string()),
        session_id: Some(digest.clone()),
    };
    let body = Body::RecordLogin(RecordSession { sessionid: digest });
    record(app, user.id, metadata, body, headers).await;
    count("ok");
    let answer = LoggedIn { token, userid: user.id, expiresat: expires_at };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

async fn log_out(State(app): Shared, caller: Caller, headers: HeaderMap) -> Result<StatusCode, Problem> {
    // Before Redis is told: if it can't be, the session ends here all the same. And afterwards: an answer may have come
    // in between.
    app.forget_session(&caller.session);
    app.stores.redis.end_session(&caller.session).await?;
    app.forget_session(&caller.session);
    let metadata = caller.metadata();
    let body = Body::RecordLogout(RecordSession { sessionid: caller.session.clone() });
    record(&app, caller.user, metadata, body, &headers).await;
    Ok(StatusCode::NO_CONTENT)
}

/// Has the login or logout written to the audit trail. While the broker is away people log in all the same, operators
/// above all; the log then has the only trace of it.
async fn record(app: &App, user: Uuid, metadata: Metadata, body: Body, headers: &HeaderMap) {
    let (id, now) = (clock::new_id(), clock::now());
    let command = Command {
        id,
        source: "/taskflow/api".to_owned(),
        subject: user,
        actor: user,
        correlation: id,
        issued_at: Some(now),
        priority: Priority::Normal,
        not_before: None,
        expires_at: None,
        traceparent: Some(trace::continued(None, headers)),
        metadata,
        body,
    };
    match app.stores.publisher.publish(Message::command(&command, now, None)).await {
        Ok(()) => observe::counter(&metric::COMMANDS_ACCEPTED, &[("type", command.kind())]).increment(1),
        Err(error) => {
            tracing::error!(%user, kind = command.kind(), %error, "A login or logout is missing in the audit trail.");
        }
    }
}

/// Reads a clear password. Nothing that is said about it quotes it.
pub(super) fn read_password(object: &mut Object<'_>, name: &'static str, min: usize) -> Option<String> {
    match object.value(name) {
        Some(Value::String(password))
            if password.len() <= PASSWORD_MAX
                && !password.contains('\0')
                && password.chars().take(min).count() == min =>
        {
            Some(password)
        }
        _ => {
            let least = if min > 0 { format!("at least {min} characters and ") } else { String::new() };
            object.fault(name, format!("must be a text of {least}at most {PASSWORD_MAX} bytes, without NUL"));
            None
        }
    }
}

fn read(body: &Bytes) -> Result<(String, String), Problem> {
    let value: Value = serde_json::from_slice(body)
        // The parser's own message could quote a part of the password.
        .map_err(|_| Problem::bad_request("malformed", "the body is not valid JSON"))?;
    let Value::Object(fields) = value else {
        return Err(Problem::bad_request("malformed", "the body is a JSON object with email and password"));
    };
    let mut faults = Faults::default();
    let mut object = Object::new(fields, "", &mut faults);
    let email = object.required("email", |object, name| object.text(name, 1, EMAIL_MAX));
    let password = object.required("password", |object, name| read_password(object, name, 0));
    object.finish();
    match (email, password) {
        (Some(email), Some(password)) if faults.0.is_empty() => Ok((email, password)),
        _ => Err(Problem::invalid(faults.0)),
    }
}
