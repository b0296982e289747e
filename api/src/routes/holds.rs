//! Legal holds, for admins: what must not be removed while a matter lasts.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};
use taskflow_core::fault::{Faults, Object};
use taskflow_stores::clock;
use taskflow_stores::postgres::job_runs;
use taskflow_stores::postgres::legal_holds::{self, Hold, New, WHY_MAX};
use uuid::Uuid;

use crate::auth::Caller;
use crate::problem::Problem;
use crate::{App, Shared};

/// The job that marks the events.
const JOB: &str = "retention.holds";

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/admin/holds", get(list).post(put))
        .route("/v1/admin/holds/{id}", get(show).delete(release))
}

/// `?all=true`: those that were released too.
async fn list(
    State(app): Shared,
    caller: Caller,
    Query(parameters): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, Problem> {
    caller.must_be_admin()?;
    let all = match parameters.get("all").map_or("false", String::as_str) {
        "true" => true,
        "false" => false,
        _ => return Err(Problem::bad_request("bad_filter", "all is true or false")),
    };
    Ok(Json(json!({ "items": legal_holds::list(&app.stores.postgres, all).await? })))
}

async fn show(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<Json<Hold>, Problem> {
    caller.must_be_admin()?;
    find(&app, &id).await.map(Json)
}

async fn find(app: &App, id: &str) -> Result<Hold, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("a hold's id is a UUID"))?;
    let found = legal_holds::read(&app.stores.postgres, id).await?;
    found.ok_or_else(|| Problem::not_found(format!("there is no hold {id}")))
}

/// `{entity, why}` or `{actor, why}`. The hold is carried out when its `appliedat` is set: the scheduler marks the audit
/// trail's events.
async fn put(State(app): Shared, caller: Caller, body: Bytes) -> Result<(StatusCode, Json<Hold>), Problem> {
    caller.must_be_admin()?;
    let (scope, subject, why) = read(&body)?;
    let author = format!("user {}", caller.user);
    let new = New { id: clock::new_id(), scope, subject, why: &why, author: &author };
    let Some(hold) = legal_holds::put(&app.stores.postgres, &new).await? else {
        let most = legal_holds::HOLDS_MAX;
        return Err(Problem::conflict("too_many", format!("{most} holds stand already; release some")));
    };
    carry_out(&app, &author).await?;
    tracing::warn!(scope, %subject, author, "An admin puts a legal hold.");
    Ok((StatusCode::ACCEPTED, Json(hold)))
}

async fn release(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Hold>), Problem> {
    caller.must_be_admin()?;
    let author = format!("user {}", caller.user);
    let hold = find(&app, &id).await?;
    let Some(hold) = legal_holds::release(&app.stores.postgres, hold.id, &author).await? else {
        return Err(Problem::conflict("is_released", format!("hold {id} is released already")));
    };
    carry_out(&app, &author).await?;
    tracing::warn!(hold = %hold.id, author, "An admin releases a legal hold.");
    Ok((StatusCode::ACCEPTED, Json(hold)))
}

async fn carry_out(app: &App, by: &str) -> Result<(), Problem> {
    job_runs::ask(&app.stores.postgres, JOB, JOB, &json!({}), by).await?;
    Ok(())
}

fn read(body: &Bytes) -> Result<(&'static str, Uuid, String), Problem> {
    let malformed =
        || Problem::bad_request("malformed", "the body is a JSON object with entity or actor, and why");
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Err(malformed()) };
    let mut faults = Faults::default();
    let mut object = Object::new(fields, "", &mut faults);
    let why = object.required("why", |object, name| object.text(name, 1, WHY_MAX));
    let both = object.has("entity") == object.has("actor");
    if both {
        object.fault("entity", "name either an entity or an actor");
    }
    let entity = object.unless_absent("entity", Object::uuid).map(|id| ("entity", id));
    let subject = entity.or_else(|| object.unless_absent("actor", Object::uuid).map(|id| ("actor", id)));
    object.finish();
    match (subject, why) {
        (Some((scope, subject)), Some(why)) if faults.0.is_empty() => Ok((scope, subject, why)),
        _ => Err(Problem::invalid(faults.0)),
    }
}
