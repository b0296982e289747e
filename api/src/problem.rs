//! What a caller is told when something is wrong: RFC 9457 problem documents. The only place that knows status codes.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use taskflow_core::fault::Fault;
use taskflow_stores::rabbit::publish::PublishError;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{Kind, StoreError, seldom};

/// Seconds after which a caller may try again when a store is away.
const RETRY_AFTER_S: u64 = 2;

/// Every request fails while a store is away; a line now and then is enough.
static COMPLAINTS: Seldom = Seldom::new();

/// A problem document.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    pub status: u16,
    pub detail: String,
    /// A word for programs, such as `actor_not_allowed`.
    pub code: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorAt>,
    /// The policies whose quota is used up (draft-ietf-httpapi-ratelimit-headers-11, 5.1).
    #[serde(rename = "violated-policies", skip_serializing_if = "Vec::is_empty")]
    violated_policies: Vec<&'static str>,
    /// What a batch did before it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    #[serde(skip)]
    retry_after_s: Option<u64>,
}

/// One fault of an input.
#[derive(Debug, Clone, Serialize)]
struct ErrorAt {
    pointer: String,
    detail: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("taskflow:/problems/{code}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            code,
            errors: Vec::new(),
            violated_policies: Vec::new(),
            accepted: None,
            retry_after_s: None,
        }
    }

    pub(crate) fn invalid(faults: Vec<Fault>) -> Self {
        let errors = faults.into_iter().map(|f| ErrorAt { pointer: f.pointer, detail: f.detail }).collect();
        Self {
            errors,
            ..Self::bad_request("validation_failed", "the input breaks the rules that errors names")
        }
    }

    /// How many faults it names, at least itself.
    pub(crate) fn faults(&self) -> usize {
        self.errors.len().max(1)
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, "Invalid input", detail)
    }

    pub(crate) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "Who are you?", detail)
    }

    pub(crate) fn forbidden(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, "Not allowed", detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "Not found", detail)
    }

    pub(crate) fn wrong_method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "Wrong method",
            "this path exists, but not with this method; the header allow names those it has",
        )
    }

    pub(crate) fn mismatch(id: uuid::Uuid) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "idempotency_mismatch",
            "The id is taken",
            format!("another command with the id {id} was accepted before; use a new id for a new command"),
        )
    }

    /// The thing is not in a state for that.
    pub(crate) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "Not now, or not so", detail)
    }

    pub(crate) fn not_scheduled(id: uuid::Uuid, status: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "not_scheduled",
            "Too late to cancel",
            format!("only a command that waits for its notbefore can be cancelled; {id} is {status}"),
        )
    }

    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "Too large", detail)
    }

    pub(crate) fn wrong_type(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Wrong content type", detail)
    }

    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "not_acceptable",
            "No such form",
            "answers are application/json, errors application/problem+json; the header accept excludes both",
        )
    }

    pub(crate) fn too_slow() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "too_slow",
            "Too slow",
            "the body did not come in time; nothing of it was taken",
        )
    }

    pub(crate) fn stream_too_slow() -> Self {
        Self {
            detail: "the next line did not come in time; what came before was taken as accepted counts it"
                .into(),
            ..Self::too_slow()
        }
    }

    pub(crate) fn uri_too_long(path_max: usize, query_max: usize) -> Self {
        Self::new(
            StatusCode::URI_TOO_LONG,
            "uri_too_long",
            "Address too long",
            format!("a path has at most {path_max} bytes and a query {query_max}"),
        )
    }

    /// A call that nobody has been given.
    pub(crate) fn closed() -> Self {
        Self::forbidden("forbidden", "nobody may make this call")
    }

    /// Too many requests of a user, or from an address.
    pub(crate) fn quota_exceeded(policies: Vec<&'static str>, left_s: u64) -> Self {
        Self {
            kind: "https://iana.org/assignments/http-problem-types#quota-exceeded".to_owned(),
            retry_after_s: Some(left_s),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "quota_exceeded",
                "Too many requests",
                format!(
                    "the quota of {} is used up; the header ratelimit-policy tells it, and it begins anew in {left_s} s",
                    policies.join(" and ")
                ),
            )
        }
        .violating(policies)
    }

    fn violating(self, violated_policies: Vec<&'static str>) -> Self {
        Self { violated_policies, ..self }
    }

    /// Too many failed logins, or too many at once; alike whether there is such an account or not.
    pub(crate) fn too_many_logins(wait_s: u64) -> Self {
        Self {
            retry_after_s: Some(wait_s),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_logins",
                "Too many failed logins",
                format!("too many logins have failed; the next try is in {wait_s} s"),
            )
        }
    }

    /// What is said where the framework has only a status.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let (code, title, detail) = match status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                ("too_large", "Too large", "the body is too large for this call")
            }
            StatusCode::UNSUPPORTED_MEDIA_TYPE => {
                ("unsupported_media_type", "Wrong content type", "send application/json")
            }
            StatusCode::NOT_FOUND => ("not_found", "Not found", "there is nothing at this path"),
            StatusCode::REQUEST_TIMEOUT => ("too_slow", "Too slow", "the request did not come in time"),
            status if status.is_client_error() => {
                ("malformed", "Invalid input", "the request does not have the form that this call takes")
            }
            _ => (
                "internal",
                "Our fault",
                "the request could not be handled; the log has the cause under this x-request-id",
            ),
        };
        Self::new(status, code, title, detail)
    }

    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "Try again soon", detail)
        }
    }

    /// Too many bodies are in hand.
    pub(crate) fn busy() -> Self {
        Self {
            retry_after_s: Some(RETRY_AFTER_S),
            ..Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "busy",
                "Try again soon",
                "too much is being sent at the moment; send the same again, under the same id it takes effect once",
            )
        }
    }

    /// The backlog is older than the operators want it to grow.
    pub(crate) fn backlog(age_s: u64, most_s: u64) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "backlog",
            "The workers are behind",
            format!(
                "commands wait for {age_s} s already, and no more are taken beyond {most_s} s; send the same again \
                 later, under the same id it takes effect once"
            ),
        )
    }

    pub(crate) fn too_many_streams(most: usize) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_streams",
            "Too many streams",
            format!("you have {most} open streams already, as many as one may have; close one"),
        )
        .retry_after(RETRY_AFTER_S)
    }

    /// Tells the caller when to try again, in seconds.
    #[must_use]
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// Whether it is about the backlog.
    pub(crate) fn is_backlog(&self) -> bool {
        self.code == "backlog"
    }

    pub(crate) fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE.as_u16()
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error.kind {
            Kind::Unavailable | Kind::Conflict => {
                if let Some(held_back) = seldom::about(error.store) {
                    tracing::warn!(%error, held_back, "A request failed since a store is away.");
                }
                Self::unavailable(format!(
                    "{} is not available at the moment; send the same again",
                    error.store
                ))
            }
            Kind::Data | Kind::Bug => {
                tracing::error!(%error, "A request failed.");
                Self::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "internal",
                    "Our fault",
                    "the request could not be handled; the log has the cause under this x-request-id",
                )
            }
        }
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        if let Some(held_back) = COMPLAINTS.due() {
            tracing::warn!(%error, held_back, "A command could not be published.");
        }
        // The broker's state is told, its words are not.
        let detail = match error {
            PublishError::Unroutable | PublishError::NoExchange => {
                "no queue takes this command: the broker's topology is incomplete"
            }
            PublishError::Refused => "the broker's queue is full",
            PublishError::Unavailable(_) => "the broker is not available",
        };
        Self::unavailable(format!("{detail}; send the same again, under the same id it takes effect once"))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
