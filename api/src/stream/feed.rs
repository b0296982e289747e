//! Listening to the event exchange for all streams of this process, while there are any.

use std::time::Duration;

use std::sync::Arc;

use taskflow_core::stream::About;
use taskflow_core::stream::order::{Hole, Order};
use taskflow_stores::StoreError;
use taskflow_stores::rabbit::feed::{Feed, Told};
use taskflow_stores::rabbit::link::Link;
use tokio_util::sync::CancellationToken;

use super::hub::{Hub, Live};

/// So long after the last reader has left, events are no longer listened to: most processes have no reader at all.
const LINGER: Duration = Duration::from_secs(30);
/// Between two tries to listen.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) async fn run(link: &Link, hub: &Hub, stop: &CancellationToken) {
    // Of a run that ended in a panic nothing is kept.
    hub.set_fed(false);
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => return,
            () = hub.wanted() => {}
        }
        let ended = listen(link, hub, stop).await;
        if stop.is_cancelled() {
            // Readers are told that the process stops.
            return;
        }
        hub.set_fed(false);
        if let Err(error) = ended {
            tracing::warn!(%error, "The live stream has no feed; its readers are asked to come again.");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(AGAIN.mul_f64(rand::random_range(0.5..=1.5))) => {}
        }
    }
}

/// Listens until nobody has been connected for a while, or something is missing.
async fn listen(link: &Link, hub: &Hub, stop: &CancellationToken) -> Result<(), StoreError> {
    let mut feed = Feed::open(link).await?;
    hub.set_fed(true);
    let mut order = Order::default();
    let mut unwanted = std::pin::pin!(unwanted(hub));
    let ended = loop {
        let told = tokio::select! {
            told = feed.next() => told,
            () = &mut unwanted => break Ok(()),
            // Sockets say goodbye; what is told meanwhile they find again by their cursors.
            () = stop.cancelled() => return Ok(()),
        };
        match told.map(|told| told.into_iter().try_for_each(|one| take(hub, &mut order, one))) {
            Ok(Ok(())) => {}
            Ok(Err(Hole)) => {
                let why = "an event never came: is a queue's policy dropping messages?";
                break Err(StoreError::unavailable("rabbitmq", "listen to the events", why));
            }
            Err(error) => break Err(error),
        }
    };
    feed.close().await;
    ended
}

async fn unwanted(hub: &Hub) {
    loop {
        hub.empty().await;
        if tokio::time::timeout(LINGER, hub.wanted()).await.is_err() {
            return;
        }
    }
}

fn take(hub: &Hub, order: &mut Order<(About, Told)>, told: Told) -> Result<(), Hole> {
    let Some(about) = About::read(&told.json) else {
        tracing::error!(
            bytes = told.json.len(),
            "An event that can't be read is on the exchange; is it ours?"
        );
        return Ok(());
    };
    let Some(place) = told.place.clone() else {
        hub.dispatch(vec![Live { about, place: None, json: told.json, before: hub.positions() }]);
        return Ok(());
    };
    if let Some(batch) = order.take(&place, (about, told))? {
        let before = hub.positions();
        let live = |(about, told): (About, Told)| Live {
            about,
            place: told.place,
            json: told.json,
            before: Arc::clone(&before),
        };
        hub.dispatch(batch.into_iter().map(live).collect());
    }
    Ok(())
}
