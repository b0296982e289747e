//! What every request gets: an id, its time in the metrics, a line in the log; and what every answer gets: the headers
//! that keep a browser from guessing, and errors in one form.

use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use taskflow_core::metric;
use taskflow_stores::{clock, observe};
use tracing::Instrument;

use crate::limits::Limits;
use crate::problem::Problem;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// For answers to programs. A page for people brings its own.
const SECURITY: [(HeaderName, &str); 6] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CACHE_CONTROL, "no-store"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Watches over an answer: `answer` makes it.
pub(crate) async fn observe<A: Future<Output = Response>>(
    limits: &Limits,
    request: Request,
    answer: impl FnOnce(Request) -> A,
) -> Response {
    let start = Instant::now();
    let id = request_id(&request);
    let method = request.method().clone();
    // The pattern, not the path: a label must not grow with the data.
    let route = request.extensions().get::<MatchedPath>().map_or("unknown", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id = id.to_str().unwrap_or_default(), %method, route);
    let large = has_large_body(request.headers());
    let uri = request.uri();
    let too_long = uri.path().len() > limits.path_bytes
        || uri.query().is_some_and(|query| query.len() > limits.query_bytes);
    let mut response = if too_long {
        Problem::uri_too_long(limits.path_bytes, limits.query_bytes).into_response()
    } else {
        in_one_form(answer(request).instrument(span.clone()).await)
    };
    let status = response.status();
    let refused = status.is_client_error() || status.is_server_error();
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if status == StatusCode::REQUEST_TIMEOUT || refused && large {
        // What is left of the body is not read: the connection ends, and the client should know before it sends more.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    for (name, value) in SECURITY {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    // A method is a word that the caller chooses.
    let method = if KNOWN_METHODS.contains(&method.as_str()) { method.as_str() } else { "other" };
    let labels = [("route", route.as_str()), ("method", method), ("status", status.as_str())];
    observe::histogram(&metric::HTTP_REQUEST, &labels).record(start.elapsed());
    span.in_scope(|| tracing::debug!(status = status.as_u16(), took = ?start.elapsed(), "Answered."));
    response
}

const KNOWN_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Bytes of a body that come with its head, or right behind it.
const SMALL_BODY: u64 = 8 * 1024;

/// Whether an answer may come before the body has.
fn has_large_body(headers: &HeaderMap) -> bool {
    let length =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length > SMALL_BODY)
}

/// An error that the framework has made is plain text, and may tell more than it should: it becomes a problem document.
fn in_one_form(response: Response) -> Response {
    let status = response.status();
    let told = |headers: &HeaderMap| {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        kind.is_some_and(|kind| !kind.starts_with("text/plain"))
    };
    if !(status.is_client_error() || status.is_server_error()) || told(response.headers()) {
        return response;
    }
    let mut problem = Problem::of_status(status).into_response();
    for name in [header::ALLOW, header::RETRY_AFTER, header::UPGRADE] {
        if let Some(value) = response.headers().get(&name) {
            problem.headers_mut().insert(name, value.clone());
        }
    }
    problem
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
