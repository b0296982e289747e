//! The backups, for admins. They are made and pruned by jobs: `POST /v1/admin/jobs/backup.postgres/runs`.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::backups::Backups;
use crate::problem::Problem;
use crate::{App, Shared};

/// The place of the backups may be far away; an admin waits so long for it.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/admin/backups", get(list)).route("/v1/admin/backups/{id}", get(show))
}

async fn list(State(app): Shared, caller: Caller) -> Result<Json<Value>, Problem> {
    caller.must_be_admin()?;
    let items = looked(backups(&app)?.list()).await?;
    Ok(Json(json!({ "items": items })))
}

async fn show(State(app): Shared, caller: Caller, Path(id): Path<String>) -> Result<Json<Value>, Problem> {
    caller.must_be_admin()?;
    let found = looked(backups(&app)?.show(&id)).await?;
    found.map(Json).ok_or_else(|| Problem::not_found("there is no such backup"))
}

fn backups(app: &App) -> Result<&dyn Backups, Problem> {
    app.stores.backups.as_deref().ok_or_else(|| {
        Problem::conflict(
            "no_backups",
            "backup.destination is not set for this process, so it sees no backups",
        )
    })
}

async fn looked<T>(look: BoxFuture<'_, Result<T, String>>) -> Result<T, Problem> {
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(why)) => {
            tracing::warn!(why, "The backups can't be looked at.");
            Err(Problem::unavailable(
                "the place of the backups does not answer as it should; the log says more",
            ))
        }
        Err(_) => Err(Problem::unavailable("the place of the backups does not answer in time")),
    }
}
