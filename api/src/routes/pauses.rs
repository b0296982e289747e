//! What operators hold back: listed, paused and resumed by admins.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use taskflow_core::fault::{Faults, Object};
use taskflow_core::pause::Scope;
use taskflow_stores::postgres::pauses::{self, Pause, REASON_MAX};

use crate::auth::Caller;
use crate::problem::Problem;
use crate::{App, Shared};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/admin/pauses", get(list).post(pause))
        .route("/v1/admin/pauses/{scope}", delete(resume))
}

#[derive(Serialize)]
struct List {
    items: Vec<Pause>,
}

async fn list(State(app): Shared, caller: Caller) -> Result<Json<List>, Problem> {
    caller.must_be_admin()?;
    Ok(Json(List { items: pauses::list(&app.stores.postgres).await? }))
}

/// `{scope, reason}`: pauses a scope, or gives a paused one another reason.
async fn pause(State(app): Shared, caller: Caller, body: Bytes) -> Result<Response, Problem> {
    caller.must_be_admin()?;
    let (scope, reason) = read(&app, &body)?;
    let author = format!("user {}", caller.user);
    let paused = pauses::put(&app.stores.postgres, &scope, &reason, &author).await?;
    tracing::warn!(%scope, reason, author, "Paused by an admin.");
    Ok((StatusCode::CREATED, Json(paused)).into_response())
}

async fn resume(
    State(app): Shared,
    caller: Caller,
    Path(scope): Path<String>,
) -> Result<StatusCode, Problem> {
    caller.must_be_admin()?;
    let scope: Scope = scope.parse().map_err(Problem::not_found)?;
    match pauses::remove(&app.stores.postgres, &scope).await? {
        Some(_) => {
            tracing::warn!(%scope, author = %caller.user, "Resumed by an admin.");
            Ok(StatusCode::NO_CONTENT)
        }
        None => Err(Problem::not_found(format!("{scope} is not paused"))),
    }
}

fn read(app: &App, body: &Bytes) -> Result<(Scope, String), Problem> {
    let malformed = || Problem::bad_request("malformed", "the body is a JSON object with scope and reason");
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Err(malformed()) };
    let mut faults = Faults::default();
    let mut object = Object::new(fields, "", &mut faults);
    let scope = object.required("scope", |object, name| object.text(name, 1, 200));
    let scope = match scope.as_deref().map(str::parse::<Scope>) {
        Some(Ok(Scope::Partition(name))) if !is_there(app, &name) => {
            object.fault("scope", format!("there is no partition {name}"));
            None
        }
        Some(Ok(scope)) => Some(scope),
        Some(Err(detail)) => {
            object.fault("scope", detail);
            None
        }
        None => None,
    };
    let reason = object.required("reason", |object, name| object.text(name, 1, REASON_MAX));
    object.finish();
    match (scope, reason) {
        (Some(scope), Some(reason)) if faults.0.is_empty() => Ok((scope, reason)),
        _ => Err(Problem::invalid(faults.0)),
    }
}

fn is_there(app: &App, name: &str) -> bool {
    app.pressure.course().layout().named(name).is_some()
}
