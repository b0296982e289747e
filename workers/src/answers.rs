//! How long a worker waits for Postgres.
//!
//! One whose machine is gone answers nothing (`stores/src/postgres/silence.rs`), and the leases may be renewed meanwhile,
//! over another connection. So what is not answered in time is broken off, and tried again over another one; and since a server may
//! also be slow, each try in a row waits twice as long as the one before it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use taskflow_stores::StoreError;
use taskflow_stores::rabbit::topology::Partition;

/// How long the first try waits: longer than anybody waits for a connection (`postgres.acquire_timeout_ms`, 5 s) and a
/// lock (`postgres.lock_timeout_ms`, 10 s) together.
const FIRST: Duration = Duration::from_secs(17);
/// The last try that is given more time than the one before it: then more than an hour.
const DOUBLED_MAX: u32 = 8;

/// Calls, each known by its name.
pub(crate) struct Answers {
    first: Duration,
    /// How often in a row a call was not answered.
    silences: Mutex<HashMap<&'static str, u32>>,
}

impl Default for Answers {
    fn default() -> Self {
        Self { first: FIRST, silences: Mutex::default() }
    }
}

impl Answers {
    /// Waits for an answer, but not for ever. Nothing but Postgres may be waited for in it.
    ///
    /// # Errors
    /// Those of the call; [`taskflow_stores::Kind::Unavailable`] when none comes in time. Whether it was carried out is
    /// not known then.
    pub(crate) async fn wait<T>(
        &self,
        call: &'static str,
        asked: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let patience = self.patience(call);
        let Ok(answer) = tokio::time::timeout(patience, asked).await else {
            *self.silences().entry(call).or_default() += 1;
            let detail = format!("no answer within {} s; the connection is given up", patience.as_secs());
            return Err(StoreError::unavailable("postgres", call, detail));
        };
        if answer.is_ok() {
            self.silences().remove(call);
        }
        answer
    }

    fn patience(&self, call: &str) -> Duration {
        let silences = self.silences().get(call).copied().unwrap_or_default();
        self.first * 2_u32.pow(silences.min(DOUBLED_MAX))
    }

    fn silences(&self) -> MutexGuard<'_, HashMap<&'static str, u32>> {
        self.silences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of the partitions, whichever pipeline asks.
#[derive(Default)]
pub(crate) struct OfPartitions(Mutex<BTreeMap<Partition, Arc<Answers>>>);

impl OfPartitions {
    pub(crate) fn of(&self, partition: Partition) -> Arc<Answers> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(partition).or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test]
    async fn each_try_waits_longer_until_one_is_answered() {
        let answers = Answers { first: Duration::from_millis(1), ..Answers::default() };
        let waits = |call| answers.patience(call).as_millis();
        for expected in [1, 2, 4] {
            assert_eq!(waits("ask"), expected);
            let answer = answers.wait("ask", pending::<Result<(), StoreError>>()).await;
            assert!(answer.is_err_and(|error| error.kind == taskflow_stores::Kind::Unavailable));
        }
        // What is refused says nothing of how long the next one takes, and another call nothing of this one.
        let refused = StoreError::unavailable("postgres", "ask", "full");
        assert!(answers.wait("ask", async { Err::<(), _>(refused) }).await.is_err());
        answers.wait("ask for less", async { Ok(()) }).await.unwrap();
        assert_eq!((waits("ask"), waits("ask for less")), (8, 1));
        answers.wait("ask", async { Ok(()) }).await.unwrap();
        assert_eq!(waits("ask"), 1);
    }
}
