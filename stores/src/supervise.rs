//! No task dies in silence: one that ends before its time is started again, and that is logged and counted.
//!
//! Where starting again makes no sense (the parts of a process), the end takes the process down: `cli/src/lifecycle.rs`.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use taskflow_core::metric;
use tokio_util::sync::CancellationToken;

use crate::observe;

/// The rest before a new start, doubled at each end in a row.
const REST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(10);
/// A task that has run for so long starts with a short rest again.
const WELL_AFTER: Duration = Duration::from_secs(60);

/// Runs a task that must go on until `stop`: whenever it panics or returns before, it is started again.
pub async fn forever<F: Future<Output = ()>>(
    task: &'static str,
    stop: &CancellationToken,
    start: impl Fn() -> F,
) {
    run(task, stop, start, || stop.is_cancelled()).await;
}

/// Runs a task to its end: only when it panics it is started again.
pub async fn to_its_end<F: Future<Output = ()>>(task: &'static str, start: impl Fn() -> F) {
    run(task, &CancellationToken::new(), start, || true).await;
}

async fn run<F: Future<Output = ()>>(
    task: &'static str,
    stop: &CancellationToken,
    start: impl Fn() -> F,
    may_end: impl Fn() -> bool,
) {
    let mut rest = REST;
    // There from the start: an alert is about the first of them.
    observe::counter(&metric::TASK_RESTARTS, &[("task", task)]).increment(0);
    loop {
        let started = Instant::now();
        // What a panic leaves behind is thrown away: each start makes its own state.
        let ended = AssertUnwindSafe(async { start().await }).catch_unwind().await;
        let cause = match ended {
            Ok(()) if may_end() => return,
            Ok(()) => "it returned".to_owned(),
            Err(panic) => words(panic.as_ref()),
        };
        if stop.is_cancelled() {
            return;
        }
        died(task, &cause);
        if started.elapsed() > WELL_AFTER {
            rest = REST;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest) => {}
        }
        rest = (rest * 2).min(REST_MAX);
    }
}

/// Tells of a task that ended before its time and is started again.
pub fn died(task: &'static str, cause: &str) {
    observe::counter(&metric::TASK_RESTARTS, &[("task", task)]).increment(1);
    tracing::error!(task, cause, "A task ended before its time; it is started again.");
}

/// What a panic said.
pub fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "it panicked".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_or_returns_is_started_again_until_the_stop() {
        let (stop, starts) = (CancellationToken::new(), AtomicU32::new(0));
        forever("test", &stop, || async {
            match starts.fetch_add(1, Ordering::SeqCst) {
                0 => panic!("the first time"),
                1 => {}
                _ => stop.cancel(),
            }
        })
        .await;
        assert_eq!(starts.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_task_with_an_end_is_started_again_only_when_it_panics() {
        let starts = AtomicU32::new(0);
        to_its_end("test", || async {
            assert!(starts.fetch_add(1, Ordering::SeqCst) > 0, "the first time");
        })
        .await;
        assert_eq!(starts.load(Ordering::SeqCst), 2);
    }
}
