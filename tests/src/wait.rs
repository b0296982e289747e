//! Waiting for a condition. Tests never sleep for a guess.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use anyhow::Result;

/// Longest wait, in seconds: generous, since a busy machine is slow and a right test never needs it.
const PATIENCE_S: u64 = 240;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What was waited for in vain, though nothing failed.
#[derive(Debug, thiserror::Error)]
#[error("waited {patience_s} s in vain until {until}")]
pub struct Waited {
    patience_s: u64,
    until: String,
}

/// Waits until the condition holds; an error names it, a [`Waited`] if the condition itself never failed at the end.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(PATIENCE_S);
    loop {
        let last = condition().await;
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            let waited = Waited { patience_s: PATIENCE_S, until: what.to_owned() };
            return Err(match last {
                // It may be more than late: whoever asks for [`Waited`] does not find it.
                Err(error) => error.context(waited.to_string()),
                Ok(_) => waited.into(),
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Looks at a future so many times, then drops it, as a caller does that gives up there. `None` if it was not done by then.
pub async fn looked_at<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = Box::pin(future);
    let mut looks = 0;
    poll_fn(|context| {
        looks += 1;
        match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if looks >= times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
