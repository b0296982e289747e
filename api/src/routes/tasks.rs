//! Reading tasks: one, what a search finds.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use serde::Serialize;
use taskflow_core::{Task, cache_key};
use taskflow_stores::postgres::task_lists::At;
use taskflow_stores::postgres::task_search;
use uuid::Uuid;

use crate::auth::Caller;
use crate::problem::Problem;
use crate::reads::{Depends, Made, Wanted};
use crate::{App, Shared, answer};

/// Items of a page, if the caller names no number, and at most.
const PAGE: u32 = 20;
const PAGE_MAX: u32 = 100;
/// Items that can be reached by pages. Who wants more asks more narrowly.
const REACH: u32 = 10_000;
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
        self.number("pagesize", PAGE, PAGE_MAX)
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

#[derive(Debug, Clone, Copy)]
pub(super) struct Paging {
    pub page: u32,
    pub size: u32,
}

/// A page of tasks, as it is answered.
#[derive(Serialize)]
struct Page<'t> {
    items: &'t [Task],
    page: u32,
    pagesize: u32,
    /// The number of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<u32>,
}

impl Paging {
    pub(super) fn offset(self) -> i64 {
        i64::from((self.page - 1) * self.size)
    }

    /// One more than a page has: it tells whether there is a next one.
    pub(super) fn limit(self) -> i64 {
        i64::from(self.size) + 1
    }

    /// The size, where it is not the usual one.
    pub(super) fn unusual_size(self) -> Option<u32> {
        (self.size != PAGE).then_some(self.size)
    }

    /// The answer that holds the page.
    pub(super) fn made(self, At { position, found }: At<Vec<Task>>) -> Made {
        let more = found.len() > self.size as usize && (self.page + 1) * self.size <= REACH;
        let items = &found[..found.len().min(self.size as usize)];
        let page = Page { items, page: self.page, pagesize: self.size, next: more.then_some(self.page + 1) };
        Made { position, body: serde_json::to_vec(&page).unwrap_or_default(), holds_until: None }
    }
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
        cache: "search",
        key: cache_key::task_search(&cache_key::query_hash(&[&scope, &text, &size]), paging.page),
        ttl_s: cache_key::SEARCH_TTL_S,
        depends: user.map_or(Depends::AllTasks, Depends::TasksOf),
    };
    let query = task_search::Query { text, user, offset: paging.offset(), limit: paging.limit() };
    let postgres = app.reads.postgres.clone();
    let made = app.reads.document(wanted, move || async move {
        match task_search::search(&postgres, &query).await? {
            Some(found) => Ok(paging.made(found)),
            None => Err(Problem::unavailable("the search index is behind with new tasks; try again")),
        }
    });
    Ok(answer::respond(&headers, made.await?))
}
