//! Announces receipts to the intakes whose callers wait for them, off the pipeline.
//!
//! Best effort: what is lost here is found in Postgres by who waits.

use std::collections::HashMap;

use taskflow_stores::postgres::receipts::View;
use taskflow_stores::redis::Redis;
use taskflow_stores::{crash, supervise};
use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Announcements that may wait; more are dropped.
const WAITING_MAX: usize = 1_000;

/// One receipt for one intake.
pub(crate) struct Announcement {
    pub intake: Uuid,
    pub receipt: View,
}

#[derive(Clone)]
pub(crate) struct Announcer(mpsc::Sender<Vec<Announcement>>);

impl Announcer {
    pub(crate) fn announce(&self, announcements: Vec<Announcement>) {
        if !announcements.is_empty() && self.0.try_send(announcements).is_err() {
            tracing::debug!("Too many announcements wait; these are dropped.");
        }
    }
}

pub(crate) fn start(redis: Redis, stop: CancellationToken) -> Announcer {
    let (sender, receiver) = mpsc::channel::<Vec<Announcement>>(WAITING_MAX);
    let receiver = Mutex::new(receiver);
    tokio::spawn(async move {
        supervise::forever("announcer", &stop, || async {
            work(&redis, &mut *receiver.lock().await, &stop).await;
        })
        .await;
    });
    Announcer(sender)
}

async fn work(redis: &Redis, receiver: &mut mpsc::Receiver<Vec<Announcement>>, stop: &CancellationToken) {
    while let Some(announcements) = tokio::select! {
        biased;
        announcements = receiver.recv() => announcements,
        () = stop.cancelled() => receiver.try_recv().ok(),
    } {
        crash::point("announcer");
        let mut by_intake: HashMap<Uuid, Vec<View>> = HashMap::new();
        for announcement in announcements {
            by_intake.entry(announcement.intake).or_default().push(announcement.receipt);
        }
        let messages: Vec<(Uuid, String)> = by_intake
            .into_iter()
            .filter_map(|(intake, views)| Some((intake, serde_json::to_string(&views).ok()?)))
            .collect();
        if let Err(error) = redis.announce(&messages).await {
            tracing::debug!(%error, "Receipts could not be announced; who waits asks Postgres.");
        }
    }
}
