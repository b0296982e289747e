//! How long a pipeline waits for Postgres.
//!
//! Postgres ends by itself what takes long, but a server whose machine is gone answers nothing for as long as its
//! connection lives, which may be a quarter of an hour and more. The leases may be renewed meanwhile, over another
//! connection. So what is not answered in time is broken off, and tried again over another one; and since a server may
//! also be slow, each try in a row waits twice as long as the one before it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use taskflow_stores::StoreError;
use taskflow_stores::postgres::silence;

/// How long the first try waits: longer than Postgres lets anybody wait for a lock (`postgres.lock_timeout_ms`).
const FIRST: Duration = Duration::from_secs(12);
/// The last try that is given more time than the one before it: then more than an hour.
const DOUBLED_MAX: u32 = 9;

/// The calls of one kind, one after the other.
pub(crate) struct Answers {
    first: Duration,
    /// Calls in a row that were not answered.
    silences: AtomicU32,
}

impl Default for Answers {
    fn default() -> Self {
        Self { first: FIRST, silences: AtomicU32::default() }
    }
}

impl Answers {
    /// Waits for an answer, but not for ever.
    ///
    /// # Errors
    /// Those of the call; [`taskflow_stores::Kind::Unavailable`] when none comes in time. Whether it was carried out is
    /// not known then.
    pub(crate) async fn wait<T>(
        &self,
        call: &'static str,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let patience = self.patience();
        let mut asked = std::pin::pin!(asked);
        match tokio::time::timeout(patience, asked.as_mut()).await {
            Ok(answer) => {
                if answer.is_ok() {
                    self.silences.store(0, Ordering::Relaxed);
                }
                answer
            }
            Err(_) => {
                silence::note();
                self.silences.fetch_add(1, Ordering::Relaxed);
                let detail = format!("no answer within {} s; the connection is given up", patience.as_secs());
                Err(StoreError::unavailable("postgres", call, detail))
            }
        }
    }

    fn patience(&self) -> Duration {
        self.first * 2_u32.pow(self.silences.load(Ordering::Relaxed).min(DOUBLED_MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn each_try_waits_longer_until_one_is_answered() {
        let answers = Answers { first: Duration::from_millis(1), ..Answers::default() };
        let waits = || answers.patience().as_millis();
        for expected in [1, 2, 4] {
            assert_eq!(waits(), expected);
            let answer = answers.wait("ask", pending::<Result<(), StoreError>>()).await;
            assert!(answer.is_err_and(|error| error.kind == taskflow_stores::Kind::Unavailable));
        }
        // What is refused says nothing of how long the next one takes.
        let refused = StoreError::unavailable("postgres", "ask", "full");
        assert!(answers.wait("ask", async { Err::<(), _>(refused) }).await.is_err());
        assert_eq!(waits(), 8);
        answers.wait("ask", async { Ok(()) }).await.unwrap();
        assert_eq!(waits(), 1);
    }
}
