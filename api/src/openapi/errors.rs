//! What may go wrong with a call: statuses, codes, and the headers that tell of limits.

use serde_json::{Map, Value, json};

use super::calls::{Call, Who};
use super::shapes;

/// What every call can be answered whose caller is asked for and counted ([`crate::gate`]), beside its own.
const GATED: [u16; 6] = [406, 414, 415, 429, 500, 503];
/// The same for who has to say who it is.
const CLOSED: [u16; 2] = [401, 403];
/// The same for what has a body.
const WITH_BODY: [u16; 2] = [408, 413];

/// Every code of a problem document. A test holds this against the code.
pub(super) const CODES: &[&str] = &[
    "actor_not_allowed",
    "admin_only",
    "backlog",
    "bad_filter",
    "bad_page",
    "bad_query",
    "busy",
    "changed_meanwhile",
    "empty",
    "forbidden",
    "id_taken",
    "idempotency_mismatch",
    "incomplete",
    "internal",
    "is_over",
    "is_released",
    "last_admin",
    "malformed",
    "method_not_allowed",
    "no_backups",
    "no_route",
    "not_acceptable",
    "not_found",
    "not_kept",
    "not_paused",
    "not_running",
    "not_scheduled",
    "own_password",
    "quota_exceeded",
    "scope_missing",
    "session_only",
    "too_large",
    "too_many",
    "too_many_logins",
    "too_many_streams",
    "too_slow",
    "unauthorized",
    "unavailable",
    "unknown_cursor",
    "unknown_parameter",
    "unknown_type",
    "unsettled",
    "unsupported_media_type",
    "uri_too_long",
    "validation_failed",
    "websocket_wanted",
];

/// Whether a call passes the gate's checks: all but those that anybody reads. A login does, with its body.
pub(super) fn is_gated(call: &Call) -> bool {
    call.who != Who::Anybody || call.body.is_some()
}

/// The statuses of a call's errors.
pub(super) fn of(call: &Call) -> Vec<u16> {
    let parts = [
        (true, call.errors),
        (is_gated(call), &GATED),
        (call.who != Who::Anybody, &CLOSED),
        (is_gated(call) && call.body.is_some(), &WITH_BODY),
    ];
    let mut statuses: Vec<u16> =
        parts.into_iter().filter(|(so, _)| *so).flat_map(|(_, statuses)| statuses).copied().collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}

/// A reference to the response of a status.
pub(super) fn reference(status: u16) -> Value {
    json!({ "$ref": format!("#/components/responses/{}", error(status).0) })
}

/// The headers that answers of gated calls bear where there are limits.
pub(super) fn limits() -> Map<String, Value> {
    let headers = ["ratelimit", "ratelimit-policy"].into_iter();
    headers.map(|name| (name.to_owned(), json!({ "$ref": format!("#/components/headers/{name}") }))).collect()
}

/// Headers that several answers bear.
pub(super) fn headers() -> Value {
    let text = |says: &str, example: &str| json!({ "description": says, "schema": { "type": "string" }, "example": example });
    json!({
        "ratelimit": text(
            "What is left of each quota (r), and in how many seconds it begins anew (t)",
            "\"user\";r=59999;t=60, \"address\";r=999999;t=3600",
        ),
        "ratelimit-policy": text(
            "The quotas (q) and their windows in seconds (w)",
            "\"user\";q=60000;w=60, \"address\";q=1000000;w=3600",
        ),
        "retry-after": { "description": "Seconds", "schema": { "type": "integer", "minimum": 0 } },
    })
}

/// The name of an error's response, and when it comes.
fn error(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("Invalid", "The input breaks rules; errors names each place by its JSON pointer"),
        401 => ("Unauthorized", "No token, or one that is not valid (any more)"),
        403 => ("Forbidden", "The token is good, but not for this"),
        404 => ("NotFound", "There is no such thing, or none that the caller may see"),
        406 => ("NotAcceptable", "The header accept excludes JSON"),
        408 => ("TooSlow", "The body did not come in time"),
        409 => ("Conflict", "Not in this state, or the id was used for another command"),
        413 => ("TooLarge", "The body or the array is too large"),
        414 => ("TooLong", "The path or the query is too long"),
        415 => ("WrongType", "This content type is not taken, nor a content-encoding"),
        429 => (
            "TooMany",
            "quota_exceeded: too many requests; backlog: the workers are behind; too_many_logins: too many have \
             failed; too_many_streams: the caller has as many as it may have. retry-after says when to try again",
        ),
        500 => ("Internal", "Our fault; the log has the cause under the answer's x-request-id"),
        _ => (
            "Unavailable",
            "A store is away or there is no room; retry-after says when to try again. A command takes effect once, however often it is sent; what else was asked for may have been done where the detail says that this is not known",
        ),
    }
}

pub(super) fn responses() -> Map<String, Value> {
    let statuses = [400, 401, 403, 404, 406, 408, 409, 413, 414, 415, 429, 500, 503];
    let response = |status: u16| {
        let (name, says) = error(status);
        let content = json!({
            "application/problem+json": { "schema": shapes::reference("Problem"), "example": shapes::problem(status) },
        });
        let mut headers = limits();
        if matches!(status, 429 | 503) {
            headers.insert("retry-after".to_owned(), json!({ "$ref": "#/components/headers/retry-after" }));
        }
        (name.to_owned(), json!({ "description": says, "headers": headers, "content": content }))
    };
    statuses.into_iter().map(response).collect()
}
