//! Is the process alive, can it work, and what does it measure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use taskflow_stores::postgres::pauses;
use taskflow_stores::postgres::silence;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, mongo, observe, postgres};
use tokio::sync::Mutex;

use crate::{App, Shared};

/// How long readiness waits for what is only a note.
const PATIENCE: Duration = Duration::from_secs(3);
static COMPLAINTS: Seldom = Seldom::new();

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/healthz", get(async || Json(serde_json::json!({ "status": "ok" }))))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

#[derive(Serialize)]
struct Readiness {
    /// `ready`, `degraded` (something is slower or late), or `unready`.
    status: &'static str,
    stores: Vec<Row>,
    /// What is wrong beside the stores, by part.
    faults: BTreeMap<String, String>,
    /// What a reader should know though nothing is wrong: what is paused.
    notes: BTreeMap<String, String>,
}

/// What the stores have said, for a moment: anyone may ask, as often as it likes, and a look occupies connections.
#[derive(Default)]
pub(crate) struct Looks(Mutex<Option<(Instant, Looked)>>);

/// How long it holds.
const HOLDS: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Looked {
    rows: Vec<Row>,
    /// Whether the stores are there without which nothing is taken.
    works: bool,
    notes: BTreeMap<String, String>,
}

#[derive(Clone, Serialize)]
struct Row {
    store: &'static str,
    up: bool,
    /// What does not work while it is away.
    needed: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

async fn ready(State(app): Shared) -> Response {
    let Looked { rows, works, notes } = look(&app).await;
    let faults = app.vitals.faults();
    let works = works && faults.is_empty();
    let status = match (works, rows.iter().all(|row| row.up)) {
        (true, true) => "ready",
        (true, false) => "degraded",
        (false, _) => "unready",
    };
    let code = if works { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Readiness { status, stores: rows, faults, notes })).into_response()
}

/// One look at a time; who comes meanwhile is told what it has found.
async fn look(app: &App) -> Looked {
    let mut kept = app.looks.0.lock().await;
    if let Some((_, looked)) = kept.as_ref().filter(|(at, _)| at.elapsed() < HOLDS) {
        return looked.clone();
    }
    let stores = &app.stores;
    let (rabbitmq, redis, postgres, mongodb, paused) = tokio::join!(
        std::future::ready(stores.publisher.probe()),
        stores.redis.probe(),
        postgres::probe(&stores.postgres),
        mongo::probe(&stores.mongo),
        silence::within(PATIENCE, "list pauses", pauses::list(&stores.postgres)),
    );
    // Taking commands needs the broker, and the sessions in Redis to know from whom.
    let works = rabbitmq.is_ok() && redis.is_ok();
    // Reasons are for those who may log in; anyone may ask here.
    let paused = paused.unwrap_or_default();
    let notes = paused.into_iter().map(|pause| (pause.scope, "paused by an operator".to_owned())).collect();
    let rows = vec![
        row("rabbitmq", "taking commands", rabbitmq),
        row("redis", "sessions", redis),
        row("postgres", "logins and receipts", postgres),
        row("mongodb", "the audit trail (it catches up)", mongodb),
    ];
    let looked = Looked { rows, works, notes };
    *kept = Some((Instant::now(), looked.clone()));
    looked
}

fn row(store: &'static str, needed: &'static str, probe: Result<(), StoreError>) -> Row {
    observe::store_up(store, probe.is_ok());
    if let Err(error) = &probe
        && let Some(held_back) = COMPLAINTS.due()
    {
        tracing::warn!(%error, held_back, "A store does not answer.");
    }
    // Anyone may ask: addresses and users of the stores stay in the log.
    let detail = probe.err().map(|_| "does not answer; the log has the cause".to_owned());
    Row { store, up: detail.is_none(), needed, detail }
}

async fn metrics(State(app): Shared) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], (app.metrics)()).into_response()
}
