//! Keeps the search index up to date, aside and in bulk. Searches do not wait for it: they look through what it lacks.

use std::time::{Duration, Instant};

use taskflow_stores::postgres::task_search;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::backoff::Backoff;

/// Notes that are taken together: enough for the index to profit from it, few enough to be soon done.
const TOGETHER: i64 = 1_000;
/// Time between two looks when there was little.
const IDLE: Duration = Duration::from_millis(1_000);
/// It rests for so many times as long as it has worked: commands come first.
const REST: u32 = 2;

/// Works until `stop`.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let fresh = || Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut backoff = fresh();
    loop {
        let start = Instant::now();
        let rest = match task_search::index(&context.stores.postgres, TOGETHER).await {
            Ok(taken) => {
                backoff = fresh();
                if taken < TOGETHER as u64 { IDLE } else { start.elapsed() * REST }
            }
            Err(error) => {
                if backoff.tries() == 0 {
                    tracing::warn!(%error, "The search index can't be kept; searches look through what it lacks.");
                }
                if !backoff.wait(stop).await {
                    return;
                }
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}
