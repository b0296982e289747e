//! Reading users: one, its tasks, how many there are.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use taskflow_core::cache_key;
use taskflow_core::state::TaskStatus;
use taskflow_stores::clock;
use taskflow_stores::postgres::task_lists::{self, Order, Page};
use uuid::Uuid;

use super::tasks::{Asked, Parameters, made};
use crate::auth::Caller;
use crate::problem::Problem;
use crate::reads::{Depends, Made, Wanted};
use crate::{App, Shared, answer};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/users/{id}", get(show))
        .route("/v1/users/{id}/tasks", get(tasks))
        .route("/v1/users/{id}/task-stats", get(stats))
}

/// The user that a path names, if the caller may read what belongs to it.
fn named(id: &str, caller: &Caller) -> Result<Uuid, Problem> {
    let id = id.parse().map_err(|_| Problem::not_found("a user's id is a UUID"))?;
    caller.may_read_user(id)?;
    Ok(id)
}

async fn show(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = named(&id, &caller)?;
    match app.reads.user(id).await? {
        Some(found) => Ok(answer::respond(&headers, found)),
        None => Err(Problem::not_found(format!("there is no user {id}"))),
    }
}

async fn tasks(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = named(&id, &caller)?;
    let mut asked = Asked::new(parameters)?;
    let status = asked.take("status").filter(|status| status != "all");
    let status = status.map(|word| TaskStatus::from_word(&word).ok_or_else(bad_status)).transpose()?;
    let order = match asked.take("order").as_deref() {
        None | Some("newest") => Order::Newest,
        Some("work") => Order::Work,
        Some(_) => return Err(Problem::bad_request("bad_filter", "order is newest or work")),
    };
    let paging = asked.page()?;
    asked.end()?;
    let wanted = Wanted {
        cache: "list",
        key: cache_key::task_list(
            user,
            status.map_or("all", TaskStatus::as_str),
            (order == Order::Work).then_some("work"),
            paging.page,
            paging.unusual_size(),
        ),
        ttl_s: cache_key::LIST_TTL_S,
        depends: Depends::TasksOf(user),
    };
    let page = Page { user, status, order, offset: paging.offset(), limit: paging.limit() };
    let postgres = app.reads.postgres.clone();
    let page = app
        .reads
        .document(wanted, move || async move { Ok(made(paging, task_lists::page(&postgres, page).await?)) });
    Ok(answer::respond(&headers, page.await?))
}

fn bad_status() -> Problem {
    let words: Vec<&str> = TaskStatus::WORDS.iter().map(|(word, _)| *word).collect();
    Problem::bad_request("bad_filter", format!("status is one of {}, all", words.join(", ")))
}

async fn stats(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let user = named(&id, &caller)?;
    let wanted = Wanted {
        cache: "stats",
        key: cache_key::task_stats(user),
        ttl_s: cache_key::STATS_TTL_S,
        depends: Depends::TasksOf(user),
    };
    let postgres = app.reads.postgres.clone();
    let made = app.reads.document(wanted, move || async move {
        let counted = task_lists::stats(&postgres, user, clock::now()).await?;
        Ok(Made {
            position: counted.position,
            body: serde_json::to_vec(&counted.found).unwrap_or_default(),
            holds_until: counted.found.next_due,
        })
    });
    Ok(answer::respond(&headers, made.await?))
}
