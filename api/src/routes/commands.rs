//! Sending commands and reading their receipts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_json::value::RawValue;
use taskflow_core::{Command, command, envelope, metric};
use taskflow_stores::postgres::receipts::View;
use taskflow_stores::postgres::waiting;
use taskflow_stores::{Kind, StoreError, clock, observe};
use uuid::Uuid;

use super::ndjson;
use crate::auth::Caller;
use crate::body::{is_too_slow, media_type};
use crate::intake::{Incoming, NotTaken, Outcome, Refused};
use crate::problem::Problem;
use crate::{App, Shared};

/// Longest wait for a receipt, in seconds.
const WAIT_MAX_S: u64 = 30;

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/commands", post(send)).route("/v1/commands/{id}", get(receipt).delete(cancel))
}

/// The answer to one command.
#[derive(Serialize)]
struct Accepted {
    id: Uuid,
    status: &'static str,
    status_url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    userid: Option<Uuid>,
}

/// Faults of refused commands that an answer names; more commands are counted.
const FAULTS_LISTED: usize = 10_000;

/// The answer to many.
#[derive(Serialize, Default)]
pub(super) struct Batch {
    pub accepted: u64,
    pub refused: Vec<Refused>,
    /// How many more were refused than the list names.
    #[serde(skip_serializing_if = "is_zero")]
    pub unlisted: u64,
    /// Faults that the list names.
    #[serde(skip)]
    faults: usize,
}

impl Batch {
    pub(super) fn add(&mut self, Outcome { accepted, refused }: Outcome) {
        self.accepted += accepted;
        for one in refused {
            // What can't be sent now decides the answer's status: it is kept whatever the list's length.
            let decides = one.problem.is_unavailable() && !self.is_unavailable();
            if self.faults < FAULTS_LISTED || decides {
                self.faults += one.problem.faults();
                self.refused.push(one);
            } else {
                self.unlisted += 1;
            }
        }
    }

    /// Whether the broker did not take one of the newest.
    pub(super) fn is_unavailable(&self) -> bool {
        self.refused.iter().rev().take(ndjson::GROUP).any(|Refused { problem, .. }| problem.is_unavailable())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde asks for")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

async fn send(State(app): Shared, caller: Caller, request: Request) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    match media_type(&parts.headers).as_str() {
        "application/x-ndjson" | "application/ndjson" => {
            let batch = ndjson::stream(&app, &caller, &parts.headers, body).await?;
            answer_many(&app, batch)
        }
        "application/cloudevents-batch+json" => {
            let body = whole(&app, body).await?;
            many(&app, &caller, &parts.headers, &body).await
        }
        "application/json" | envelope::CONTENT_TYPE => {
            let body = whole(&app, body).await?;
            if body.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[') {
                return many(&app, &caller, &parts.headers, &body).await;
            }
            one(&app, &caller, &parts.headers, &body).await
        }
        other => Err(Problem::wrong_type(format!(
            "{other:?} is not taken here; send application/json, application/cloudevents+json, \
             application/cloudevents-batch+json or application/x-ndjson"
        ))),
    }
}

/// What became of one command while its caller waited.
pub(super) enum Taken {
    Accepted(Uuid),
    Ended(Box<View>),
}

async fn one(app: &App, caller: &Caller, headers: &HeaderMap, body: &Bytes) -> Result<Response, Problem> {
    Ok(match take(app, caller, headers, body).await? {
        Taken::Ended(receipt) => Json(receipt).into_response(),
        Taken::Accepted(id) => accepted(id, None),
    })
}

/// 202, with `userid` where the command registers a user.
pub(super) fn accepted(id: Uuid, userid: Option<Uuid>) -> Response {
    let status_url = format!("/v1/commands/{id}");
    let location = HeaderValue::try_from(&status_url).unwrap_or_else(|_| HeaderValue::from_static("/"));
    let answer = Accepted { id, status: "accepted", status_url, userid };
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(answer)).into_response()
}

/// Takes one command; waits for its receipt if the caller wants to.
pub(super) async fn take(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    body: &Bytes,
) -> Result<Taken, Problem> {
    let wait = wait_seconds(headers);
    // Registered before it is sent: the receipt may be there before the confirm is. Only who waits pays for reading it
    // twice.
    let command = wait.and_then(|_| envelope::parse(body).ok());
    let told = command.as_ref().map(|command| app.waiters.register(command.id));
    let incoming = [Incoming { index: 0, text: body }];
    let mut not_taken = NotTaken::new();
    let sent = app.send(caller, headers, &incoming, wait.is_some(), &mut not_taken).await;
    let id = sent.first_id();
    let (known, at) = (!sent.known.is_empty(), sent.at);
    let mut outcome = sent.confirmed(app, &mut not_taken).await;
    if let Some(Refused { problem, .. }) = outcome.refused.pop() {
        return Err(problem);
    }
    let Some(id) = id else { return Err(Problem::bad_request("malformed", "the body holds no command")) };
    if let (Some(seconds), Some(told)) = (wait, told) {
        if known && let Some(receipt) = read_receipt(app, id).await? {
            return Ok(Taken::Ended(Box::new(receipt)));
        }
        if let Ok(Ok(receipt)) = tokio::time::timeout(Duration::from_secs(seconds), told).await {
            // Accepted at another time, it may be the receipt of another command that had the id before this one.
            let ours = receipt.acceptedat.map(|at| at.timestamp_micros()) == Some(at.timestamp_micros());
            match command.as_ref() {
                Some(command) if !ours => match is_anothers(app, command).await {
                    Some(true) => return Err(Problem::mismatch(id)),
                    Some(false) => return Ok(Taken::Ended(Box::new(receipt))),
                    // Not known now: who asks for the receipt is told.
                    None => {}
                },
                _ => return Ok(Taken::Ended(Box::new(receipt))),
            }
        }
    }
    Ok(Taken::Accepted(id))
}

/// Whether the receipt under a command's id is that of another command; `None` if that can't be read now.
async fn is_anothers(app: &App, command: &Command) -> Option<bool> {
    let first = app.lookup.find(vec![command.id]).await?;
    first.get(&command.id).map(|first| first.fingerprint != command.fingerprint())
}

async fn many(app: &App, caller: &Caller, headers: &HeaderMap, body: &Bytes) -> Result<Response, Problem> {
    let most = app.settings.batch_max;
    let mut reader = serde_json::Deserializer::from_slice(body);
    let texts = AtMost(most).deserialize(&mut reader).and_then(|texts| reader.end().map(|()| texts));
    let texts = texts
        .map_err(|error| Problem::bad_request("malformed", format!("not a valid JSON array: {error}")))?;
    let Some(texts) = texts else {
        return Err(Problem::too_large(format!(
            "an array holds at most {most} commands; send application/x-ndjson for more"
        )));
    };
    if texts.is_empty() {
        return Err(Problem::bad_request("empty", "the array holds no command"));
    }
    let incoming: Vec<Incoming<'_>> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| Incoming { index: index as u64, text: text.get().as_bytes() })
        .collect();
    let mut batch = Batch::default();
    let mut not_taken = NotTaken::new();
    let sent = app.send(caller, headers, &incoming, false, &mut not_taken).await;
    batch.add(sent.confirmed(app, &mut not_taken).await);
    answer_many(app, batch)
}

/// Reads an array of so many elements; of a longer one nothing is kept, and it is `None`. The places of its elements alone
/// would take many times the memory of its body.
struct AtMost(usize);

impl<'de> DeserializeSeed<'de> for AtMost {
    type Value = Option<Vec<&'de RawValue>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for AtMost {
    type Value = Option<Vec<&'de RawValue>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = elements.next_element()? {
            if texts.len() == self.0 {
                while elements.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(None);
            }
            texts.push(text);
        }
        Ok(Some(texts))
    }
}

/// 202 if all good commands were taken; 400 if there was no good one; 503 if the broker did not take some, 429 if the
/// backlog is too old for some.
fn answer_many(app: &App, batch: Batch) -> Result<Response, Problem> {
    if batch.refused.iter().any(|refused| refused.problem.is_unavailable()) {
        let mut problem = Problem::unavailable(
            "the broker did not take all commands; send the same again, under the same ids each takes effect once",
        )
        .retry_after(app.pressure.retry_after_any_s());
        problem.accepted = Some(batch.accepted);
        return Err(problem);
    }
    if let Some(behind) = batch.refused.iter().find(|refused| refused.problem.is_backlog()) {
        let mut problem = behind.problem.clone().retry_after(app.pressure.retry_after_any_s());
        problem.accepted = Some(batch.accepted);
        return Err(problem);
    }
    let status = match (batch.accepted, batch.refused.len()) {
        (0, refused) if refused > 0 => StatusCode::BAD_REQUEST,
        _ => StatusCode::ACCEPTED,
    };
    Ok((status, Json(batch)).into_response())
}

async fn receipt(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<Json<View>, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("a command's id is a UUID"))?;
    let found = read_receipt(&app, id).await?.or_else(|| app.recent.find(id));
    match found.filter(|receipt| caller.may_see_receipt(receipt.actor, receipt.source.as_deref())) {
        Some(receipt) => Ok(Json(receipt)),
        None => Err(Problem::not_found(format!(
            "no receipt for {id}: it was never accepted, is still on its way, or was sent by somebody else"
        ))),
    }
}

/// Cancels a command that waits for its time.
async fn cancel(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<Json<View>, Problem> {
    let id: Uuid = id.parse().map_err(|_| Problem::not_found("a command's id is a UUID"))?;
    let found = read_receipt(&app, id).await?.or_else(|| app.recent.find(id));
    let Some(found) = found.filter(|found| caller.may_cancel(found.actor, found.source.as_deref())) else {
        return Err(Problem::not_found(format!("no command {id} that is yours")));
    };
    if found.status != "scheduled" {
        return Err(Problem::not_scheduled(id, &found.status));
    }
    let (postgres, source) = (&app.stores.postgres, found.source.as_deref());
    let cancelled = match waiting::cancel(postgres, id, source, clock::now()).await {
        Ok(cancelled) => cancelled,
        Err(StoreError { kind: Kind::Conflict, .. }) => false,
        Err(error) => return Err(error.into()),
    };
    let receipt = read_receipt(&app, id).await?;
    match receipt {
        Some(receipt) if cancelled => {
            let kind =
                receipt.kind.as_deref().filter(|kind| command::TYPES.contains(kind)).unwrap_or("unknown");
            let labels = [("type", kind), ("outcome", "cancelled")];
            observe::counter(&metric::COMMANDS_FINISHED, &labels).increment(1);
            tracing::info!(command = %id, "A scheduled command was cancelled.");
            Ok(Json(receipt))
        }
        // Nobody was faster: Postgres did not let it happen this time.
        Some(receipt) if receipt.status == "scheduled" => {
            Err(Problem::unavailable("it could not be cancelled just now and still waits; try again"))
        }
        // A worker was faster, or somebody else who cancelled it.
        other => {
            Err(Problem::not_scheduled(id, other.as_ref().map_or("unknown", |view| view.status.as_str())))
        }
    }
}

async fn read_receipt(app: &App, id: Uuid) -> Result<Option<View>, Problem> {
    Ok(waiting::find(&app.stores.postgres, id).await?)
}

/// Reads a body whole, up to the limit.
async fn whole(app: &App, body: Body) -> Result<Bytes, Problem> {
    let most = app.settings.body_max;
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if is_too_slow(&*error) => Err(Problem::too_slow()),
        Err(error) if error.is::<LengthLimitError>() => Err(Problem::too_large(format!(
            "a body has at most {most} bytes; send application/x-ndjson for more"
        ))),
        Err(_) => Err(Problem::bad_request(
            "incomplete",
            "the body ended before it was complete; nothing was taken",
        )),
    }
}

/// `Prefer: wait=N` (RFC 7240), in seconds; its name in whatever letters.
fn wait_seconds(headers: &HeaderMap) -> Option<u64> {
    let preferences = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let wait = preferences
        .flat_map(|value| value.split([',', ';']))
        .filter_map(|preference| preference.split_once('='))
        .find_map(|(name, wait)| name.trim().eq_ignore_ascii_case("wait").then_some(wait))?;
    wait.trim().trim_matches('"').parse::<u64>().ok().map(|seconds| seconds.min(WAIT_MAX_S))
}
