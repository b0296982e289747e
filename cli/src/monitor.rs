//! Metrics and health of a process that has no HTTP of its own: a worker, a scheduler.

use std::net::SocketAddr;

use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use taskflow_api::Metrics;
use taskflow_stores::postgres::{self, PgPool};
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::vitals::Vitals;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;

/// Binds the address, so that a port in use stops the start.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, Exit> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Exit::failed(format!(
            "metrics.listen {address}: {error}; choose another with TASKFLOW_METRICS__LISTEN"
        ))
    })?;
    tracing::info!("Metrics on http://{}/metrics", listener.local_addr().unwrap_or(address));
    Ok(listener)
}

/// Serves until `stop`.
pub(crate) async fn run(
    listener: TcpListener,
    metrics: Metrics,
    postgres: PgPool,
    broker: Link,
    vitals: Vitals,
    stop: CancellationToken,
) {
    let ready = async move || {
        let (up, database) = (broker.is_up(), postgres::probe(&postgres).await.is_ok());
        let faults = vitals.faults();
        let ready = up && database && faults.is_empty();
        let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let row = |store, up: bool| json!({ "store": store, "up": up });
        let answer = json!({
            "status": if ready { "ready" } else { "unready" },
            "stores": [row("rabbitmq", up), row("postgres", database)],
            "faults": faults,
            "notes": vitals.all_notes(),
        });
        (code, Json(answer))
    };
    let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    let router = Router::new()
        .route("/healthz", get(async || Json(json!({ "status": "ok" }))))
        .route("/readyz", get(ready))
        .route("/metrics", get(async move || (text, metrics())));
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "The monitor ended.");
    }
}
