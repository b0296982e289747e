//! The scheduler's process frame: it starts, is seen to be alive, and leaves when told. Its jobs come with the ledger.

pub mod canary;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// How the scheduler works.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

/// Runs until `stop`.
pub async fn run(_settings: Settings, stop: CancellationToken) {
    tracing::info!("The scheduler starts; it has no jobs yet.");
    stop.cancelled().await;
    tracing::info!("The scheduler has left.");
}
