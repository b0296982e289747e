//! Reading tasks: one, what a search finds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use taskflow_core::task_page::{Paging, REACH, SIZE, SIZE_MAX};
use taskflow_core::{Task, cache_key};
use taskflow_stores::Kind;
use taskflow_stores::postgres::silence;
use taskflow_stores::postgres::task_lists::At;
use taskflow_stores::postgres::task_search::{self, Searched};
use uuid::Uuid;

use crate::auth::Caller;
use crate::problem::Problem;
use crate::reads::{Depends, Made, SEARCH, Wanted};
use crate::{App, Shared, answer};

/// Characters of what is looked for.
const QUERY_MAX: usize = 200;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/tasks/{id}", get(show))
        .route("/v1/tasks/{id}/changes", get(changes))
        .route("/v1/tasks/search", get(search))
}

/// Query parameters.
pub(super) type Parameters = Result<Query<BTreeMap<String, String>>, QueryRejection>;

/// Query parameters that are taken one by one: what is left at the end is unknown.
pub(super) struct Asked(BTreeMap<String, String>);

impl Asked {
    pub(super) fn new(parameters: Parameters) -> Result<Self, Problem> {
        let Query(parameters) =
            parameters.map_err(|error| Problem::bad_request("malformed", error.to_string()))?;
        Ok(Self(parameters))
    }

    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    fn number(&mut self, name: &str, default: u32, most: u32) -> Result<u32, Problem> {
        let Some(text) = self.take(name) else { return Ok(default) };
        let number = text.parse().ok().filter(|number| (1..=most).contains(number));
        number.ok_or_else(|| Problem::bad_request("bad_page", format!("{name} is a number from 1 to {most}")))
    }

    pub(super) fn page_size(&mut self) -> Result<u32, Problem> {
        self.number("pagesize", SIZE, SIZE_MAX)
    }

    /// `page` and `pagesize`.
    pub(super) fn page(&mut self) -> Result<Paging, Problem> {
        let size = self.page_size()?;
        let page = self.number("page", 1, REACH)?;
        if page * size > REACH {
            let detail = format!("pages reach as far as item {REACH}; narrow the list instead");
            return Err(Problem::bad_request("bad_page", detail));
        }
        Ok(Paging { page, size })
    }

    /// Nothing may be left.
    pub(super) fn end(self) -> Result<(), Problem> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(name) => Err(Problem::bad_request(
                "unknown_parameter",
                format!("there is no query parameter {name:?} here"),
            )),
        }
    }
}

/// The answer that holds a page.
pub(super) fn made(paging: Paging, At { position, found }: At<Vec<Task>>) -> Made {
    Made { position, body: paging.body(&found), holds_until: None }
}

async fn show(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("a task's id is a UUID"))?;
    let found = app.reads.task(id, |creator, assignee| caller.may_see_task(creator, assignee)).await?;
    match found {
        Some(found) => Ok(answer::respond(&headers, found)),
        None => Err(Problem::not_found(format!("no task {id} that you may read"))),
    }
}

async fn changes(
    State(app): Shared,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("a task's id is a UUID"))?;
    let may = |creator, assignee| caller.may_see_task(creator, assignee);
    match app.reads.changes(&app.stores.mongo, id, may).await? {
        Some(found) => Ok(answer::respond(&headers, found)),
        None => Err(Problem::not_found(format!("no task {id} that you may read"))),
    }
}

/// Postgres is there: the search is too much for it.
fn given_up(patience: Duration) -> Problem {
    Problem::unavailable(format!(
        "the search was given up after {} ms (http.search_patience_ms): look for fewer or longer words, or try again",
        patience.as_millis()
    ))
}

async fn search(
    State(app): Shared,
    caller: Caller,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut asked = Asked::new(parameters)?;
    let text = asked.take("q").unwrap_or_default();
    let paging = asked.page()?;
    asked.end()?;
    // Spaces and capitals make no difference to what is found, so they make none to the key.
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    if text.is_empty() || text.chars().count() > QUERY_MAX || text.contains('\0') {
        return Err(Problem::bad_request(
            "bad_query",
            format!("q says what to look for, in 1 to {QUERY_MAX} characters without NUL"),
        ));
    }
    let user = caller.finds_tasks_of();
    let scope = user.map_or_else(|| "all".to_owned(), |user| user.to_string());
    let size = paging.size.to_string();
    let wanted = Wanted {
        cache: SEARCH,
        key: cache_key::task_search(&cache_key::query_hash(&[&scope, &text, &size]), paging.page),
        ttl_s: cache_key::SEARCH_TTL_S,
        depends: user.map_or(Depends::AllTasks, Depends::TasksOf),
    };
    let query = task_search::Query { text, user, offset: paging.offset(), limit: paging.limit() };
    let patience = Duration::from_millis(app.settings.search_patience_ms);
    let postgres = app.reads.postgres.clone();
    let page = app.reads.document(wanted, move || async move {
        let searched = task_search::search(&postgres, &query, patience);
        match silence::within(patience + silence::ANSWER, "search tasks", searched).await {
            Ok(Searched::Found(found)) => Ok(made(paging, found)),
            Ok(Searched::Boundless) => Err(Problem::bad_request(
                "bad_query",
                "q needs a word that is looked for, not only such that are left out, nor as one of two ways (or)",
            )),
            Ok(Searched::Behind) => Err(Problem::unavailable("the search index is behind with new tasks; try again")),
            Err(error) if error.kind == Kind::Conflict => Err(given_up(patience)),
            Err(error) => Err(error.into()),
        }
    });
    Ok(answer::respond(&headers, page.await?))
}
