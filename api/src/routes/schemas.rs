//! What commands look like, for machines. Open to all: who wants to send one must know.

use std::sync::Arc;

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use taskflow_core::schema;

use crate::App;
use crate::problem::Problem;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/schemas", get(list)).route("/schemas/{type}/{major}", get(show))
}

async fn list() -> Json<Value> {
    let names: Vec<String> = schema::all().keys().map(|name| format!("/schemas/{name}")).collect();
    Json(json!({ "items": names }))
}

async fn show(Path((kind, major)): Path<(String, String)>) -> Result<Response, Problem> {
    let found = major.parse().ok().and_then(|major| schema::command(&kind, major));
    let Some(found) = found else {
        return Err(Problem::not_found(format!("there is no schema {kind}/{major}; /schemas lists them")));
    };
    let kind = HeaderValue::from_static("application/schema+json");
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, kind)]);
    Ok((headers, serde_json::to_vec(&found).unwrap_or_default()).into_response())
}
