//! Reading the audit trail, for admins.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::get;
use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::Value;
use taskflow_core::cache_key;
use taskflow_stores::mongo::event_query::{self, Cursor, Query};
use taskflow_stores::postgres::outbox;
use taskflow_stores::{clock, mongo};
use uuid::Uuid;

use super::tasks::{Asked, Parameters};
use crate::problem::Problem;
use crate::reads::{Depends, Made, PAGES, Wanted};
use crate::{App, Shared, answer};

/// Clocks of workers differ by less; a batch commits, or does not, within less.
const SETTLED: TimeDelta = TimeDelta::minutes(5);
/// How long a page may take, whatever MongoDB does: twice what it may work at one, and some.
const LONGEST: Duration = Duration::from_secs(12);
/// Characters of an event's type.
const TYPE_MAX: usize = 100;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/events", get(list))
}

#[derive(Serialize)]
struct Page {
    items: Vec<Value>,
    pagesize: u32,
    /// The cursor of the next page, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

async fn list(State(app): Shared, parameters: Parameters, headers: HeaderMap) -> Result<Response, Problem> {
    let mut asked = Asked::new(parameters)?;
    let query = Query {
        entity: id(&mut asked, "entityid")?,
        actor: id(&mut asked, "actorid")?,
        correlation: id(&mut asked, "correlationid")?,
        kind: kind(&mut asked)?,
        from: time(&mut asked, "from")?,
        to: time(&mut asked, "to")?,
        after: asked
            .take("cursor")
            .map(|text| text.parse())
            .transpose()
            .map_err(|error: &str| Problem::bad_request("bad_page", error))?,
    };
    let size = asked.page_size()?;
    asked.end()?;
    let (database, postgres) = (app.stores.mongo.clone(), app.stores.postgres.clone());
    let Some(until) = until(&query).filter(|until| *until < clock::now() - SETTLED) else {
        let body = page(&database, &query, size).await?;
        return Ok(answer::respond(&headers, answer::fresh(body)));
    };
    // What lies so far back changes no more, unless it still waits in the outbox.
    let wanted = Wanted {
        cache: PAGES,
        key: key(&query, size),
        ttl_s: cache_key::RESPONSE_TTL_S,
        depends: Depends::Nothing,
    };
    let made = app.reads.document(wanted, move || async move {
        // First what waits, then what is there: in between it may arrive.
        let waits = outbox::oldest(&postgres).await?;
        let body = page(&database, &query, size).await?;
        let settled = waits.is_none_or(|oldest| until < oldest - SETTLED);
        Ok(Made { position: 0, body, holds_until: (!settled).then(clock::now) })
    });
    Ok(answer::respond(&headers, made.await?))
}

async fn page(database: &mongo::Database, query: &Query, size: u32) -> Result<Vec<u8>, Problem> {
    let asked = tokio::time::timeout(LONGEST, event_query::page(database, query, size)).await;
    let Ok(asked) = asked else {
        return Err(Problem::unavailable("mongodb gives no answer; try again, or ask for a shorter time"));
    };
    let (items, next) = asked?;
    let page = Page { items, pagesize: size, next: next.map(|next| next.to_string()) };
    Ok(serde_json::to_vec(&page).unwrap_or_default())
}

/// No event of the page is younger.
fn until(query: &Query) -> Option<DateTime<Utc>> {
    let after = query.after.and_then(|cursor| DateTime::from_timestamp_millis(cursor.at_ms));
    match (query.to, after) {
        (Some(to), Some(after)) => Some(to.min(after)),
        (to, after) => to.or(after),
    }
}

fn key(query: &Query, size: u32) -> String {
    let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let ms = |time: Option<DateTime<Utc>>| time.map(|time| time.to_rfc3339()).unwrap_or_default();
    let parameters = cache_key::query_hash(&[
        &text(query.entity),
        &text(query.actor),
        &text(query.correlation),
        query.kind.as_deref().unwrap_or_default(),
        &ms(query.from),
        &ms(query.to),
        &query.after.as_ref().map(Cursor::to_string).unwrap_or_default(),
        &size.to_string(),
    ]);
    cache_key::response(&cache_key::query_hash(&["/v1/events"]), &parameters)
}

fn id(asked: &mut Asked, name: &str) -> Result<Option<Uuid>, Problem> {
    let parsed = asked.take(name).map(|text| text.parse()).transpose();
    parsed.map_err(|_| Problem::bad_request("bad_filter", format!("{name} is a UUID")))
}

fn time(asked: &mut Asked, name: &str) -> Result<Option<DateTime<Utc>>, Problem> {
    let Some(text) = asked.take(name) else { return Ok(None) };
    match DateTime::parse_from_rfc3339(&text) {
        Ok(time) => Ok(Some(time.to_utc())),
        Err(_) => Err(Problem::bad_request(
            "bad_filter",
            format!("{name} is a time such as 2030-01-31T08:00:00Z (RFC 3339)"),
        )),
    }
}

fn kind(asked: &mut Asked) -> Result<Option<String>, Problem> {
    let kind = asked.take("type");
    match kind {
        Some(kind) if kind.is_empty() || kind.len() > TYPE_MAX || kind.contains('\0') => {
            Err(Problem::bad_request("bad_filter", "type is an event's type, such as task.created"))
        }
        kind => Ok(kind),
    }
}
