//! Looks at the stores while the demonstration runs: what was applied, and whether each partition goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use taskflow_stores::postgres::{PgPool, leases, receipts};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::scene::Scene;
use crate::verify::Progress;

const EVERY: Duration = Duration::from_millis(100);
/// Receipts are counted at each so-manieth look.
const COUNT_EVERY: u32 = 4;
/// A look that takes longer is given up: the store is away.
const LOOK: Duration = Duration::from_secs(1);

/// The number of each partition's newest batch.
type Batches = HashMap<String, i64>;

/// Looks until it is dropped.
pub(super) struct Watch {
    looker: Looker,
    batches: watch::Receiver<Batches>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Looker {
    postgres: PgPool,
    /// Whose commands are counted.
    user: Uuid,
    progress: Arc<Progress>,
    scene: Arc<Scene>,
}

impl Watch {
    pub(super) fn start(postgres: PgPool, user: Uuid, progress: Arc<Progress>, scene: Arc<Scene>) -> Self {
        let (sender, batches) = watch::channel(Batches::new());
        let looker = Looker { postgres, user, progress, scene };
        let other = looker.clone();
        let task = tokio::spawn(async move {
            for turn in 0_u32.. {
                if turn.is_multiple_of(COUNT_EVERY) {
                    other.count().await;
                }
                if let Some(batches) = other.look().await {
                    sender.send_replace(batches);
                }
                tokio::time::sleep(EVERY).await;
            }
        });
        Self { looker, batches, task }
    }

    /// Counts once more.
    pub(super) async fn last_look(&self) {
        self.looker.count().await;
    }

    /// Waits until commands have been applied in as many partitions as there are, or nothing new is seen.
    pub(super) async fn wait_for_all(&self, subjects: usize) {
        let mut batches = self.batches.clone();
        let mut quiet = 0;
        let mut seen = 0;
        // Few subjects may leave a partition without any.
        while quiet < 20 && seen < subjects {
            let _ = batches.changed().await;
            let now = batches.borrow_and_update().len();
            quiet = if now > seen { 0 } else { quiet + 1 };
            seen = now;
        }
    }

    /// Waits until every partition that has worked before has applied a batch again.
    pub(super) async fn wait_for_all_again(&self) {
        let mut batches = self.batches.clone();
        batches.mark_unchanged();
        // What is seen first from now on is what there was.
        let _ = batches.changed().await;
        let before = batches.borrow_and_update().clone();
        let goes_on = |now: &Batches| {
            let mut worked = before.iter().filter(|(_, then)| **then > 0);
            worked.all(|(partition, then)| now.get(partition) > Some(then))
        };
        while !goes_on(&batches.borrow_and_update()) {
            let _ = batches.changed().await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Looker {
    async fn look(&self) -> Option<Batches> {
        let found = tokio::time::timeout(LOOK, leases::newest_batches(&self.postgres)).await;
        found.ok().and_then(Result::ok).map(|rows| rows.into_iter().collect())
    }

    async fn count(&self) {
        let accepted = self.progress.accepted.load(Ordering::Relaxed);
        let refused = self.progress.refused.load(Ordering::Relaxed);
        let found = tokio::time::timeout(LOOK, receipts::count_of(&self.postgres, self.user)).await;
        // All but the one that has made the user.
        let applied = found.ok().and_then(Result::ok).map(|count| (count as u64).saturating_sub(1));
        self.scene.sample(accepted, refused, applied);
    }
}
