//! Replays of many dead letters.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use taskflow_core::Fault;
use taskflow_core::dead_letter;
use taskflow_stores::clock;
use taskflow_stores::postgres::dead_letter_replays::{self, Order, RATE_MAX, RATE_MIN, View};
use taskflow_stores::postgres::dead_letters::Filter;
use uuid::Uuid;

use super::dead_letters::{Admin, Page, by, checked, page_size, read};
use crate::problem::Problem;
use crate::{App, Shared};

/// Letters a second, if the caller names no rate.
const RATE: f32 = 10.0;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    filter: Filter,
    rate: f32,
    why: Option<String>,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { filter: Filter::default(), rate: RATE, why: None }
    }
}

/// A replay that was ordered.
#[derive(Serialize)]
pub(super) struct Ordered {
    /// Letters that the filter means now.
    letters: i64,
    #[serde(flatten)]
    view: View,
}

pub(super) async fn create(
    State(app): Shared,
    Admin(caller): Admin,
    body: Bytes,
) -> Result<(StatusCode, Json<Ordered>), Problem> {
    let Wanted { filter, rate, why } = read(&body)?;
    let why = checked(why.as_deref())?;
    let mut faults = Vec::new();
    if filter == Filter::default() {
        faults.push(Fault::new("/filter", "must name something; {\"state\": \"kept\"} means all"));
    }
    if filter.state.is_some_and(|state| state != dead_letter::State::Kept) {
        faults.push(Fault::new("/filter/state", "only letters that are kept can be replayed"));
    }
    let texts = [&filter.reason, &filter.kind, &filter.source, &filter.fingerprint];
    if texts.into_iter().flatten().any(|text| text.contains('\0')) {
        faults.push(Fault::new("/filter", "must not contain the NUL character (U+0000)"));
    }
    if !(RATE_MIN..=RATE_MAX).contains(&rate) {
        faults.push(Fault::new("/rate", format!("is letters a second, {RATE_MIN} to {RATE_MAX}")));
    }
    if !faults.is_empty() {
        return Err(Problem::invalid(faults));
    }
    let postgres = &app.stores.postgres;
    let order = Order { id: clock::new_id(), filter: &filter, rate, by: by(&caller, why) };
    let letters = dead_letter_replays::count(postgres, &filter).await?;
    dead_letter_replays::create(postgres, order).await?;
    tracing::info!(replay = %order.id, letters, rate, "A replay was ordered.");
    Ok((StatusCode::ACCEPTED, Json(Ordered { letters, view: find(&app, order.id).await? })))
}

pub(super) async fn list(
    State(app): Shared,
    _: Admin,
    parameters: Result<Query<BTreeMap<String, String>>, QueryRejection>,
) -> Result<Json<Page<View>>, Problem> {
    let Query(parameters) =
        parameters.map_err(|error| Problem::bad_request("malformed", error.to_string()))?;
    let pagesize = page_size(parameters.get("pagesize").map(String::as_str))?;
    let items = dead_letter_replays::list(&app.stores.postgres, pagesize).await?;
    Ok(Json(Page { items, pagesize, next: None }))
}

pub(super) async fn show(
    State(app): Shared,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<View>, Problem> {
    Ok(Json(find(&app, replay_id(&id)?).await?))
}

pub(super) async fn cancel(
    State(app): Shared,
    _: Admin,
    Path(id): Path<String>,
) -> Result<Json<View>, Problem> {
    let id = replay_id(&id)?;
    let ended = dead_letter_replays::cancel(&app.stores.postgres, id, clock::now()).await?;
    let view = find(&app, id).await?;
    if ended || view.state == "cancelled" {
        return Ok(Json(view));
    }
    Err(Problem::conflict("not_running", format!("the replay is {} already", view.state)))
}

async fn find(app: &App, id: Uuid) -> Result<View, Problem> {
    let found = dead_letter_replays::read(&app.stores.postgres, id).await?;
    found.ok_or_else(|| Problem::not_found(format!("there is no replay {id}")))
}

fn replay_id(id: &str) -> Result<Uuid, Problem> {
    id.parse().map_err(|_| Problem::not_found("a replay's id is a UUID"))
}
