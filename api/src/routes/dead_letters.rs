//! Dead letters, for admins: looking, rehearsing, replaying, editing, discarding.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use taskflow_core::Fault;
use taskflow_stores::clock;
use taskflow_stores::postgres::dead_letter_deeds::{self as deeds, By, Refused};
use taskflow_stores::postgres::dead_letters::{self, Filter, Group, Letter, Summary};
use taskflow_stores::postgres::rehearse::{self, Rehearsal};
use uuid::Uuid;

use super::dead_letter_replays as replays;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::{App, Shared};

/// Items of a page, if the caller names no number, and at most.
pub(super) const PAGE: u32 = 20;
pub(super) const PAGE_MAX: u32 = 100;
/// Characters of a reason that a person gives.
pub(crate) const WHY_MAX: usize = 1_000;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/admin/dead-letters", get(list))
        .route("/v1/admin/dead-letters/groups", get(groups))
        .route("/v1/admin/dead-letters/replays", get(replays::list).post(replays::create))
        .route("/v1/admin/dead-letters/replays/{id}", get(replays::show).delete(replays::cancel))
        .route("/v1/admin/dead-letters/{id}", get(show))
        .route("/v1/admin/dead-letters/{id}/dry-run", post(dry_run))
        .route("/v1/admin/dead-letters/{id}/replay", post(replay))
        .route("/v1/admin/dead-letters/{id}/edit", post(edit))
        .route("/v1/admin/dead-letters/{id}/discard", post(discard))
}

/// A caller who is an admin: dead letters show what others have sent.
pub(super) struct Admin(pub Caller);

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, app).await?;
        caller.must_be_admin()?;
        Ok(Self(caller))
    }
}

/// A list, and where it goes on.
#[derive(Serialize)]
pub(super) struct Page<T> {
    pub items: Vec<T>,
    pub pagesize: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Query parameters: the filter's fields, `pagesize`, `cursor`.
type Parameters = Result<Query<BTreeMap<String, String>>, QueryRejection>;

/// What is asked for: a filter, a page's size, where it begins.
struct Asked {
    filter: Filter,
    pagesize: u32,
    cursor: Option<String>,
}

fn asked(parameters: Parameters) -> Result<Asked, Problem> {
    let Query(mut parameters) =
        parameters.map_err(|error| Problem::bad_request("malformed", error.to_string()))?;
    let cursor = parameters.remove("cursor");
    let pagesize = page_size(parameters.remove("pagesize").as_deref())?;
    let filter = serde_json::to_value(parameters).and_then(serde_json::from_value);
    let filter = filter.map_err(|error| Problem::bad_request("bad_filter", error.to_string()))?;
    Ok(Asked { filter, pagesize, cursor })
}

pub(super) fn page_size(text: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = text else { return Ok(PAGE) };
    let size = text.parse().ok().filter(|size| (1..=PAGE_MAX).contains(size));
    size.ok_or_else(|| Problem::bad_request("bad_page", format!("pagesize is a number from 1 to {PAGE_MAX}")))
}

async fn list(State(app): Shared, _: Admin, parameters: Parameters) -> Result<Json<Page<Summary>>, Problem> {
    let Asked { filter, pagesize, cursor } = asked(parameters)?;
    let cursor = cursor.map(|cursor| cursor.parse()).transpose();
    let cursor = cursor.map_err(|error| Problem::bad_request("bad_page", error))?;
    let (items, next) = dead_letters::list(&app.stores.postgres, &filter, cursor, pagesize).await?;
    Ok(Json(Page { items, pagesize, next: next.map(|next| next.to_string()) }))
}

async fn groups(State(app): Shared, _: Admin, parameters: Parameters) -> Result<Json<Page<Group>>, Problem> {
    let Asked { filter, pagesize, cursor } = asked(parameters)?;
    if cursor.is_some() {
        return Err(Problem::bad_request("bad_page", "groups have one page; narrow them with a filter"));
    }
    let items = dead_letters::groups(&app.stores.postgres, &filter, pagesize).await?;
    Ok(Json(Page { items, pagesize, next: None }))
}

async fn show(State(app): Shared, _: Admin, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    Ok(Json(find(&app, &id).await?.shown()))
}

async fn find(app: &App, id: &str) -> Result<Letter, Problem> {
    let id = letter_id(id)?;
    let found = dead_letters::read(&app.stores.postgres, id).await?;
    found.ok_or_else(|| Problem::not_found(Refused::Unknown(id).to_string()))
}

fn letter_id(id: &str) -> Result<Uuid, Problem> {
    id.parse().map_err(|_| Problem::not_found("a dead letter's id is a UUID (not its command's)"))
}

/// Why a person does it.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Reason {
    why: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Edit {
    command: Option<Value>,
    why: Option<String>,
}

/// Reads a body; none at all is an empty object.
pub(super) fn read<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Problem> {
    if body.is_empty() {
        return Ok(T::default());
    }
    // An array would be taken for the fields in their order.
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Problem::bad_request("malformed", "the body is a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| Problem::bad_request("malformed", error.to_string()))
}

pub(super) fn checked(why: Option<&str>) -> Result<Option<&str>, Problem> {
    match why.map(str::trim) {
        Some(why) if why.chars().count() > WHY_MAX || why.contains('\0') => {
            Err(Problem::invalid(vec![Fault::new(
                "/why",
                format!("must have at most {WHY_MAX} characters, none of them NUL"),
            )]))
        }
        why => Ok(why.filter(|why| !why.is_empty())),
    }
}

async fn dry_run(
    State(app): Shared,
    _: Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Rehearsal>, Problem> {
    let Edit { command, why } = read(&body)?;
    checked(why.as_deref())?;
    let letter = find(&app, &id).await?;
    let edited = command.map(|command| serde_json::to_vec(&command).unwrap_or_default());
    let bytes = edited.as_deref().unwrap_or(letter.sent());
    Ok(Json(rehearse::rehearse(&app.stores.postgres, &letter, bytes, clock::now()).await?))
}

async fn replay(
    State(app): Shared,
    Admin(caller): Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let Reason { why } = read(&body)?;
    let (id, by) = (letter_id(&id)?, by(&caller, checked(why.as_deref())?));
    let attempt = deeds::replay(&app.stores.postgres, id, by).await?;
    Ok(begun(id, attempt))
}

async fn edit(
    State(app): Shared,
    Admin(caller): Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<(StatusCode, Json<Value>), Problem> {
    let Edit { command, why } = read(&body)?;
    let Some(command) = command else {
        return Err(Problem::invalid(vec![Fault::new("/command", "is required: the whole command, edited")]));
    };
    let (id, by) = (letter_id(&id)?, by(&caller, checked(why.as_deref())?));
    let attempt = deeds::edit(&app.stores.postgres, id, &command, by).await?;
    Ok(begun(id, attempt))
}

fn begun(id: Uuid, attempt: i32) -> (StatusCode, Json<Value>) {
    tracing::info!(letter = %id, attempt, "A dead letter is replayed.");
    (StatusCode::ACCEPTED, Json(json!({ "id": id, "state": "replaying", "attempt": attempt })))
}

async fn discard(
    State(app): Shared,
    Admin(caller): Admin,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, Problem> {
    let Reason { why } = read(&body)?;
    let Some(why) = checked(why.as_deref())? else {
        return Err(Problem::invalid(vec![Fault::new("/why", "is required: the audit trail keeps it")]));
    };
    let id = letter_id(&id)?;
    deeds::discard(&app.stores.postgres, id, by(&caller, Some(why))).await?;
    Ok(Json(json!({ "id": id, "state": "discarded" })))
}

pub(super) fn by<'b>(caller: &Caller, why: Option<&'b str>) -> By<'b> {
    By { author: caller.user, why, at: clock::now() }
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        match refused {
            Refused::Unknown(_) => Self::not_found(detail),
            Refused::NotKept(_) => Self::conflict("not_kept", detail),
            Refused::Unsettled => Self::conflict("unsettled", detail),
            Refused::NoRoute => Self::conflict("no_route", detail),
            Refused::Mismatch => Self::conflict("id_taken", detail),
            Refused::TooLarge => Self::conflict("too_large", detail),
            Refused::Faults(faults) => Self::invalid(
                faults.into_iter().map(|f| Fault::new(format!("/command{}", f.pointer), f.detail)).collect(),
            ),
            Refused::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_or_nothing() {
        let why = |body: &'static str| read::<Reason>(&Bytes::from_static(body.as_bytes())).map(|r| r.why);
        assert_eq!(why("").unwrap(), None);
        assert_eq!(why(" {\"why\": \"so\"}").unwrap().as_deref(), Some("so"));
        for body in ["[null]", "[\"so\"]", "null", "7", "{\"how\": 1}"] {
            assert!(why(body).is_err(), "{body}");
        }
    }
}
