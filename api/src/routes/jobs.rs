//! Scheduled jobs, for admins: looking, running, pausing, cancelling.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use taskflow_core::Fault;
use taskflow_core::job;
use taskflow_stores::postgres::job_history::{self, Filter, Row};
use taskflow_stores::postgres::job_schedules::{self, Listed};
use taskflow_stores::postgres::{job_runs, leader};

use super::dead_letters::{Page, page_size, read};
use crate::auth::Caller;
use crate::problem::Problem;
use crate::{App, Shared};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/admin/jobs", get(list))
        .route("/v1/admin/jobs/runs", get(history))
        .route("/v1/admin/jobs/runs/{id}", get(show_run).delete(cancel))
        .route("/v1/admin/jobs/{schedule}", get(show))
        .route("/v1/admin/jobs/{schedule}/runs", post(run))
        .route("/v1/admin/jobs/{schedule}/pause", post(pause).delete(resume))
}

async fn list(State(app): Shared, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.must_be_admin()?;
    let items = job_schedules::list(&app.stores.postgres, None).await?;
    let leader = leader::read(&app.stores.postgres).await?;
    Ok(Json(json!({ "items": items, "leader": leader })))
}

async fn show(State(app): Shared, caller: Caller, Path(name): Path<String>) -> Result<Json<Value>, Problem> {
    caller.must_be_admin()?;
    let schedule = find(&app, &name).await?;
    let newest = job_history::newest(&app.stores.postgres, &name).await?;
    Ok(Json(json!({ "schedule": schedule, "newest": newest })))
}

async fn find(app: &App, name: &str) -> Result<Listed, Problem> {
    let found = job_schedules::list(&app.stores.postgres, Some(name)).await?;
    found.into_iter().next().ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Problem {
    Problem::not_found(format!("there is no schedule {name:?}; GET /v1/admin/jobs lists them"))
}

/// `?schedule=&state=&met=&pagesize=&cursor=`
async fn history(
    State(app): Shared,
    caller: Caller,
    parameters: Result<Query<BTreeMap<String, String>>, QueryRejection>,
) -> Result<Json<Page<Row>>, Problem> {
    caller.must_be_admin()?;
    let Query(mut parameters) =
        parameters.map_err(|error| Problem::bad_request("malformed", error.to_string()))?;
    let pagesize = page_size(parameters.remove("pagesize").as_deref())?;
    let before = parameters.remove("cursor").map(|cursor| cursor.parse::<i64>());
    let before = before.transpose().map_err(|_| {
        Problem::bad_request("bad_page", "cursor is no cursor; take the one of a list's next")
    })?;
    let mut word = |name: &str, known: &dyn Fn(&str) -> bool| match parameters.remove(name) {
        Some(word) if !known(&word) => {
            Err(Problem::bad_request("bad_filter", format!("{word:?} is no {name} of a run")))
        }
        word => Ok(word),
    };
    let state = word("state", &|word| job::State::from_word(word).is_some())?;
    let met = word("met", &|word| job::Met::from_word(word).is_some())?;
    let schedule = parameters.remove("schedule");
    if let Some(name) = parameters.keys().next() {
        return Err(Problem::bad_request(
            "bad_filter",
            format!("{name:?} is no filter; there are schedule, state, met, pagesize, cursor"),
        ));
    }
    let filter = Filter { schedule, state, met, before };
    let mut items = job_history::list(&app.stores.postgres, &filter, pagesize + 1).await?;
    let more = items.len() > pagesize as usize;
    items.truncate(pagesize as usize);
    let next = items.last().filter(|_| more).map(|row| row.id.to_string());
    Ok(Json(Page { items, pagesize, next }))
}

fn run_id(id: &str) -> Result<i64, Problem> {
    id.parse().map_err(|_| Problem::not_found("a run is known by its number"))
}

async fn show_run(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<Json<Row>, Problem> {
    caller.must_be_admin()?;
    let row = job_history::read(&app.stores.postgres, run_id(&id)?).await?;
    row.map(Json).ok_or_else(|| Problem::not_found(format!("there is no run {id}")))
}

/// `{dryrun?, arguments?}`: asks for a run beside the schedule.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    dryrun: bool,
    arguments: Map<String, Value>,
}

async fn run(
    State(app): Shared,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    caller.must_be_admin()?;
    let Asked { dryrun, mut arguments } = read(&body)?;
    if arguments.keys().any(|name| name.contains('\0')) {
        return Err(Problem::invalid(vec![Fault::new("/arguments", "a name must not hold NUL (U+0000)")]));
    }
    if let Some((name, _)) = arguments.iter().find(|(_, value)| !value.is_boolean()) {
        let pointer = format!("/arguments/{name}");
        return Err(Problem::invalid(vec![Fault::new(pointer, "is true or false")]));
    }
    let schedule = find(&app, &name).await?;
    if dryrun {
        arguments.insert("dry_run".to_owned(), true.into());
    }
    let by = format!("user {}", caller.user);
    let id = job_runs::ask(&app.stores.postgres, &name, &schedule.job, &arguments.into(), &by).await?;
    let Some(id) = id else {
        return Err(Problem::conflict("too_many", format!("too many runs of {name} wait already")));
    };
    tracing::info!(schedule = name, run = id, by, "An admin asks for a run.");
    Ok((StatusCode::ACCEPTED, Json(json!({ "id": id, "status_url": format!("/v1/admin/jobs/runs/{id}") }))))
}

async fn cancel(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    caller.must_be_admin()?;
    let by = format!("user {}", caller.user);
    let number = run_id(&id)?;
    if job_runs::ask_cancel(&app.stores.postgres, number, &by).await? {
        tracing::info!(run = number, by, "An admin cancels a run.");
        return Ok(StatusCode::ACCEPTED);
    }
    match job_history::read(&app.stores.postgres, number).await? {
        Some(row) => {
            Err(Problem::conflict("is_over", format!("run {id} of {} is over: {}", row.schedule, row.state)))
        }
        None => Err(Problem::not_found(format!("there is no run {id}"))),
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Reason {
    reason: String,
}

async fn pause(
    State(app): Shared,
    caller: Caller,
    Path(name): Path<String>,
    body: Bytes,
) -> Result<Json<Listed>, Problem> {
    caller.must_be_admin()?;
    let Reason { reason } = read(&body)?;
    let reason = reason.trim();
    let most = job_schedules::REASON_MAX;
    if !(1..=most).contains(&reason.chars().count()) || reason.contains('\0') {
        return Err(Problem::invalid(vec![Fault::new("/reason", format!("has 1 to {most} characters"))]));
    }
    let by = format!("user {}", caller.user);
    if !job_schedules::pause(&app.stores.postgres, &name, &by, reason).await? {
        return Err(unknown(&name));
    }
    tracing::warn!(schedule = name, reason, by, "A schedule is paused by an admin.");
    Ok(Json(find(&app, &name).await?))
}

async fn resume(State(app): Shared, caller: Caller, Path(name): Path<String>) -> Result<StatusCode, Problem> {
    caller.must_be_admin()?;
    if job_schedules::resume(&app.stores.postgres, &name).await? {
        tracing::warn!(schedule = name, author = %caller.user, "A schedule is resumed by an admin.");
        return Ok(StatusCode::NO_CONTENT);
    }
    find(&app, &name).await?;
    Err(Problem::conflict("not_paused", format!("{name} is not paused")))
}
