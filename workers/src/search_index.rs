//! Keeps the search index up to date, aside and in bulk. Searches do not wait for it: they look through what it lacks.

use std::time::{Duration, Instant};

use taskflow_stores::StoreError;
use taskflow_stores::postgres::task_search;
use tokio_util::sync::CancellationToken;

use crate::Context;
use taskflow_stores::backoff::Backoff;

/// Notes that are taken together: enough for the index to profit from it, few enough to be soon done.
const TOGETHER: i64 = 1_000;
/// Time between two looks when there was little.
const IDLE: Duration = Duration::from_millis(1_000);
/// It rests for so many times as long as it has worked.
const REST: u32 = 2;
/// While normal commands come, they come first: pieces that are over before one of them has to wait, and longer rests …
const PIECE: i64 = 100;
const LONG_REST: u32 = 9;
/// … unless the index lacks so much: twice as much, and searches are refused.
const FAR_BEHIND: i64 = task_search::PENDING_MAX / 2;
/// How long an answer to that question holds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How it works at the moment.
#[derive(Clone, Copy)]
struct Pace {
    notes: i64,
    rest: u32,
}

/// Works until `stop`.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let fresh = || Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut backoff = fresh();
    let mut behind = (false, None::<Instant>);
    loop {
        let indexed = async {
            let pace = pace(context, &mut behind).await?;
            let begun = Instant::now();
            let taken = task_search::index(&context.stores.postgres, pace.notes).await?;
            Ok::<_, StoreError>(if taken < pace.notes as u64 { IDLE } else { begun.elapsed() * pace.rest })
        };
        let rest = match indexed.await {
            Ok(rest) => {
                backoff = fresh();
                rest
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

/// `behind` is the last answer to whether the index lacks much, and when it was given.
async fn pace(context: &Context, behind: &mut (bool, Option<Instant>)) -> Result<Pace, StoreError> {
    let hurried = Pace { notes: TOGETHER, rest: REST };
    if !context.give_way.is_busy() {
        return Ok(hurried);
    }
    if behind.1.is_none_or(|asked| asked.elapsed() >= LOOK_EVERY) {
        let lacks = task_search::lacks_more_than(&context.stores.postgres, FAR_BEHIND).await?;
        *behind = (lacks, Some(Instant::now()));
    }
    Ok(if behind.0 { hurried } else { Pace { notes: PIECE, rest: LONG_REST } })
}
