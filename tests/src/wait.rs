//! Waiting for a condition. Tests never sleep for a guess.

use std::time::Duration;

use anyhow::{Result, bail};

/// Longest wait, in seconds: generous, since a busy machine is slow and a right test never needs it.
const PATIENCE_S: u64 = 240;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits until the condition holds; an error names it.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(PATIENCE_S);
    loop {
        let last = condition().await;
        if matches!(last, Ok(true)) {
            return Ok(());
        }
        if tokio::time::Instant::now() > deadline {
            match last {
                Err(error) => return Err(error.context(format!("waited {PATIENCE_S} s until {what}"))),
                Ok(_) => bail!("waited {PATIENCE_S} s in vain until {what}"),
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
