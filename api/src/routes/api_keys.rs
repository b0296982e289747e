//! API keys, for admins: made, listed, revoked. A key is shown once, in the answer that makes it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use axum::{Json, Router};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use taskflow_core::api_key::{self, ApiKey, NAME_MAX, SOURCE_PREFIX_MAX, Scope};
use taskflow_core::fault::{Faults, Object};
use taskflow_stores::clock;
use taskflow_stores::postgres::api_keys;
use uuid::Uuid;

use super::dead_letters::{Page, page_size};
use super::users::{Origin, fields};
use crate::auth::Caller;
use crate::problem::Problem;
use crate::{App, Shared};

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/admin/api-keys", get(list).post(create))
        .route("/v1/admin/api-keys/{id}", delete(revoke))
}

/// A new key, with what its holder sends.
#[derive(Serialize)]
struct Created {
    key: String,
    #[serde(flatten)]
    known: ApiKey,
}

/// `{name, scopes, sourceprefix?, expiresat?}`.
async fn create(
    State(app): Shared,
    caller: Caller,
    body: Bytes,
) -> Result<(StatusCode, Json<Created>), Problem> {
    let Wanted { name, scopes, source_prefix, expires_at } = read(&body, clock::now())?;
    let id = clock::new_id();
    let key = api_key::token(id, rand::random());
    let origin = Origin::of(&caller);
    let change = origin.change();
    let known = ApiKey {
        id,
        name,
        scopes,
        source_prefix,
        created_at: change.at,
        created_by: caller.user,
        expires_at,
        last_used_at: None,
        revoked_at: None,
    };
    api_keys::create(&app.stores.postgres, &known, &api_key::digest(&key), &change).await?;
    tracing::warn!(key = %id, name = known.name, author = %caller.user, "An API key was made.");
    Ok((StatusCode::CREATED, Json(Created { key, known })))
}

async fn list(
    State(app): Shared,
    _: Caller,
    parameters: Result<Query<BTreeMap<String, String>>, QueryRejection>,
) -> Result<Json<Page<ApiKey>>, Problem> {
    let Query(parameters) =
        parameters.map_err(|_| Problem::bad_request("malformed", "the query has the form name=value&…"))?;
    let pagesize = page_size(parameters.get("pagesize").map(String::as_str))?;
    let before = parameters.get("cursor").map(|cursor| cursor.parse::<Uuid>()).transpose();
    let before =
        before.map_err(|_| Problem::bad_request("bad_page", "cursor is what the last page's next says"))?;
    let mut items = api_keys::list(&app.stores.postgres, before, i64::from(pagesize) + 1).await?;
    let more = items.len() > pagesize as usize;
    items.truncate(pagesize as usize);
    let next = items.last().filter(|_| more).map(|key| key.id.to_string());
    Ok(Json(Page { items, pagesize, next }))
}

async fn revoke(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<StatusCode, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("an API key's id is a UUID"))?;
    let origin = Origin::of(&caller);
    let revoked = api_keys::revoke(&app.stores.postgres, id, &origin.change()).await?;
    app.credentials.forget_key(id);
    match revoked {
        Some(key) => {
            tracing::warn!(key = %id, name = key.name, author = %caller.user, "An API key was revoked.");
            Ok(StatusCode::NO_CONTENT)
        }
        None => Err(Problem::not_found(format!("there is no API key {id}"))),
    }
}

struct Wanted {
    name: String,
    scopes: Vec<Scope>,
    source_prefix: Option<String>,
    expires_at: Option<DateTime<Utc>>,
}

fn read(body: &Bytes, now: DateTime<Utc>) -> Result<Wanted, Problem> {
    let mut faults = Faults::default();
    let mut object = Object::new(fields(body, "name and scopes")?, "", &mut faults);
    let name = object.required("name", |object, name| object.text(name, 1, NAME_MAX));
    let scopes = object.required("scopes", read_scopes);
    let source_prefix = object.text("sourceprefix", 1, SOURCE_PREFIX_MAX);
    let expires_at = object.time("expiresat");
    if expires_at.is_some_and(|end| end <= now) {
        object.fault("expiresat", "must be in the future");
    }
    let writes = scopes.as_ref().is_some_and(|scopes| scopes.contains(&Scope::CommandsWrite));
    if writes && source_prefix.is_none() {
        object.fault("sourceprefix", "is required for commands:write: the sources that the key speaks for");
    }
    object.finish();
    match (name, scopes) {
        (Some(name), Some(scopes)) if faults.0.is_empty() => {
            Ok(Wanted { name, scopes, source_prefix, expires_at })
        }
        _ => Err(Problem::invalid(faults.0)),
    }
}

fn read_scopes(object: &mut Object<'_>, name: &'static str) -> Option<Vec<Scope>> {
    let scope = |value: &Value| value.as_str().and_then(Scope::from_word);
    let scopes = match object.value(name) {
        Some(Value::Array(words)) if words.len() <= Scope::WORDS.len() => {
            words.iter().map(scope).collect::<Option<Vec<_>>>()
        }
        _ => None,
    };
    if scopes.as_ref().is_none_or(Vec::is_empty) {
        let words = Scope::WORDS.map(|(word, _)| word).join(", ");
        object.fault(name, format!("must be a list of one or more of: {words}"));
        return None;
    }
    scopes
}
