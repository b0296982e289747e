//! What every request gets: an id, its time in the metrics, a line in the log.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use taskflow_core::metric;
use taskflow_stores::{clock, observe};
use tracing::Instrument;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(crate) async fn observe(request: Request, next: Next) -> Response {
    let start = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    // The pattern, not the path: a label must not grow with the data.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), %method, route);
    let mut response = next.run(request).instrument(span.clone()).await;
    response.headers_mut().insert(REQUEST_ID, id);
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response.headers_mut().insert("cache-control", HeaderValue::from_static("no-store"));
    let status = response.status();
    let labels = [("route", route.as_str()), ("method", method.as_str()), ("status", status.as_str())];
    observe::histogram(&metric::HTTP_REQUEST, &labels).record(start.elapsed());
    span.in_scope(|| tracing::debug!(status = status.as_u16(), took = ?start.elapsed(), "Answered."));
    response
}

/// The caller's own id if it is a plain word, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let plain = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=64).contains(&bytes.len())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
    };
    match request.headers().get(REQUEST_ID).filter(plain) {
        Some(given) => given.clone(),
        None => HeaderValue::try_from(clock::new_id().to_string())
            .unwrap_or_else(|_| HeaderValue::from_static("unknown")),
    }
}
