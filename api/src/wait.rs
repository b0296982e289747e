//! Waiting for receipts (`Prefer: wait`): workers announce them over Redis; what is not announced is found in
//! Postgres, for all who wait in one statement.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use taskflow_stores::postgres::receipts::{self, View};
use taskflow_stores::{crash, supervise};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::Stores;

/// How often Postgres is asked for receipts that were not announced.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Ids in one statement.
const IDS_MAX: usize = 2_000;

#[derive(Clone, Default)]
pub(crate) struct Waiters(Arc<Mutex<HashMap<Uuid, Vec<Waiter>>>>);

struct Waiter {
    since: Instant,
    tell: oneshot::Sender<View>,
}

impl Waiters {
    /// Registers for a receipt. Do so before publishing, or the announcement may come first.
    pub(crate) fn register(&self, id: Uuid) -> oneshot::Receiver<View> {
        let (tell, told) = oneshot::channel();
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.entry(id).or_default().push(Waiter { since: Instant::now(), tell });
        told
    }

    fn tell(&self, receipt: &View) {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for waiter in waiters.remove(&receipt.id).unwrap_or_default() {
            let _ = waiter.tell.send(receipt.clone());
        }
    }

    /// Whoever has waited for long enough, without those who have left.
    fn overdue(&self) -> Vec<Uuid> {
        let mut waiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiters.retain(|_, waiting| {
            waiting.retain(|waiter| !waiter.tell.is_closed());
            !waiting.is_empty()
        });
        let overdue = |waiting: &Vec<Waiter>| waiting.iter().any(|w| w.since.elapsed() >= ASK_EVERY);
        waiters.iter().filter(|(_, waiting)| overdue(waiting)).map(|(id, _)| *id).take(IDS_MAX).collect()
    }
}

pub(crate) fn start(stores: Stores, intake: Uuid, stop: CancellationToken) -> Waiters {
    let waiters = Waiters::default();
    let (listening, asking) =
        ((stores.clone(), waiters.clone(), stop.clone()), (stores, waiters.clone(), stop));
    tokio::spawn(async move {
        let (stores, waiters, stop) = listening;
        supervise::forever("listen", &stop, || listen(&stores, &waiters, intake, &stop)).await;
    });
    tokio::spawn(async move {
        let (stores, waiters, stop) = asking;
        supervise::forever("ask", &stop, || ask(&stores, &waiters, &stop)).await;
    });
    waiters
}

async fn listen(stores: &Stores, waiters: &Waiters, intake: Uuid, stop: &CancellationToken) {
    while !stop.is_cancelled() {
        match stores.redis.announcements(intake).await {
            Ok(announcements) => {
                let mut announcements = std::pin::pin!(announcements);
                while let Some(message) = tokio::select! {
                    message = announcements.next() => message,
                    () = stop.cancelled() => None,
                } {
                    crash::point("listen");
                    let views: Vec<View> = serde_json::from_slice(&message).unwrap_or_default();
                    for view in &views {
                        waiters.tell(view);
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "Receipts are not announced here; Postgres is asked."),
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn ask(stores: &Stores, waiters: &Waiters, stop: &CancellationToken) {
    loop {
        crash::point("ask");
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let ids = waiters.overdue();
        if ids.is_empty() {
            continue;
        }
        match receipts::read_many(&stores.postgres, &ids).await {
            Ok(found) => found.iter().for_each(|receipt| waiters.tell(receipt)),
            Err(error) => tracing::debug!(%error, "Receipts can't be read."),
        }
    }
}
