//! Keeps the search index up to date, aside and in bulk. Searches do not wait for it: they look through what it lacks.

use std::time::{Duration, Instant};

use taskflow_stores::StoreError;
use taskflow_stores::postgres::task_search;
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::answers::Answers;
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
/// … unless the index lacks so much: twice as much, and searches are refused …
const FAR_BEHIND: i64 = task_search::PENDING_MAX / 2;
/// … and when they are, hurry gains nothing until the commands are through. A load that goes on for so long is no burst:
/// the index gets its share of it then.
const BURST: Duration = Duration::from_secs(60);
/// How long an answer to these questions holds.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How it works at the moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pace {
    notes: i64,
    rest: u32,
}

const HURRIED: Pace = Pace { notes: TOGETHER, rest: REST };
const GENTLE: Pace = Pace { notes: PIECE, rest: LONG_REST };
/// It looks again in a while.
const NONE: Pace = Pace { notes: 0, rest: 0 };

/// What the index lacks, as it was when somebody looked.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Lack {
    Little,
    Much,
    /// So much that searches are refused, since then.
    TooMuch(Instant),
}

impl Lack {
    /// The pace beside normal commands.
    fn pace(self, now: Instant) -> Pace {
        match self {
            Self::Little => GENTLE,
            Self::TooMuch(since) if now.duration_since(since) < BURST => NONE,
            Self::Much | Self::TooMuch(_) => HURRIED,
        }
    }
}

/// Works until `stop`.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let fresh = || Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    let mut backoff = fresh();
    let answers = Answers::default();
    let mut lack = None;
    loop {
        let indexed = async {
            let pace = pace(context, &mut lack).await?;
            if pace == NONE {
                return Ok(LOOK_EVERY);
            }
            let begun = Instant::now();
            let taken = task_search::index(&context.stores.postgres, pace.notes).await?;
            Ok::<_, StoreError>(if taken < pace.notes as u64 { IDLE } else { begun.elapsed() * pace.rest })
        };
        let rest = match answers.wait("keep the search index", indexed).await {
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

/// `lack` is the last look, and when it was.
async fn pace(context: &Context, lack: &mut Option<(Lack, Instant)>) -> Result<Pace, StoreError> {
    if !context.give_way.is_busy() {
        return Ok(HURRIED);
    }
    let now = Instant::now();
    let known = lack.filter(|(_, at)| now.duration_since(*at) < LOOK_EVERY);
    let known = match known {
        Some((known, _)) => known,
        None => {
            let postgres = &context.stores.postgres;
            let before = lack.map(|(before, _)| before);
            let fresh = if !task_search::lacks_more_than(postgres, FAR_BEHIND).await? {
                Lack::Little
            } else if !task_search::lacks_more_than(postgres, task_search::PENDING_MAX).await? {
                Lack::Much
            } else {
                match before {
                    Some(Lack::TooMuch(since)) => Lack::TooMuch(since),
                    _ => Lack::TooMuch(now),
                }
            };
            *lack = Some((fresh, now));
            fresh
        }
    };
    Ok(known.pace(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_let_through_and_a_lasting_load_is_not() {
        let since = Instant::now();
        assert_eq!(Lack::Little.pace(since), GENTLE);
        assert_eq!(Lack::Much.pace(since), HURRIED);
        assert_eq!(Lack::TooMuch(since).pace(since + BURST / 2), NONE);
        assert_eq!(Lack::TooMuch(since).pace(since + BURST), HURRIED);
    }
}
