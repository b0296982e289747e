//! Notices that the caches were emptied (a flush, a restart without data), and asks for the run that fills them.

use std::time::Duration;

use taskflow_stores::StoreError;
use taskflow_stores::postgres::job_runs;

use crate::engine::Engine;
use crate::jobs::CACHE_WARM;

/// How long readers go without, at most, before the run is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const BY: &str = "scheduler: the caches were emptied";

/// Looks for as long as this process leads. A store that is away is looked for again: the engine complains of it.
pub(crate) async fn watch(engine: &Engine) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(LOOK_EVERY.mul_f64(rand::random_range(0.8..=1.2))).await;
        if let Err(error) = look(engine).await {
            tracing::debug!(%error, "Whether the caches were emptied is not known.");
        }
    }
}

async fn look(engine: &Engine) -> Result<(), StoreError> {
    if !engine.stores.redis.was_emptied().await? {
        return Ok(());
    }
    if let Some(run) = job_runs::ask_unless_paused(&engine.stores.postgres, CACHE_WARM, BY).await? {
        tracing::info!(run, "The caches were emptied; they are filled again.");
    }
    // Asked as a person asks, outside the lead: a former leader that wakes up asks once too often, at the worst.
    // Afterwards: whoever dies in between asks once too often, not never.
    engine.stores.redis.set_filled().await
}
