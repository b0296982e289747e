//! The API's description, for machines and for people.

use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::routing::get;

use crate::{App, asyncapi, openapi};

/// One page without anything from elsewhere.
const PAGE: &str = include_str!("docs.html");
/// The page runs its own script and asks this server, nothing else.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/asyncapi.json", get(asyncapi))
        .route("/docs", get(page))
}

async fn openapi() -> (HeaderMap, &'static str) {
    (of_type("application/json"), openapi::text())
}

async fn asyncapi() -> (HeaderMap, &'static str) {
    (of_type("application/json"), asyncapi::text())
}

async fn page() -> (HeaderMap, &'static str) {
    let mut headers = of_type("text/html; charset=utf-8");
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    (headers, PAGE)
}

fn of_type(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))])
}
