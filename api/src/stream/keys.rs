//! Ends the streams of API keys that were revoked or have expired. Apart from the register: keys are in Postgres, and a
//! Redis that is slow must not keep a revoked key's streams open.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use taskflow_stores::{clock, supervise};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::hub::{End, Seat};
use crate::App;

/// How soon a key's end is noticed: as a session's.
const EVERY: Duration = Duration::from_secs(3);

pub(crate) fn start(app: &Arc<App>, stop: &CancellationToken) {
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        supervise::forever("key_streams", &stop, || keep(&app, &stop)).await;
    });
}

async fn keep(app: &App, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let now = clock::now();
        let mut by_key: HashMap<Uuid, Vec<Arc<Seat>>> = HashMap::new();
        for seat in app.streams.hub.all() {
            match seat.key.as_ref().map(|key| (key.id, key.is_good(now))) {
                None => {}
                // Its time is over, whatever Postgres knows.
                Some((_, false)) => seat.end(End::KeyOver),
                Some((id, true)) => by_key.entry(id).or_default().push(seat),
            }
        }
        for (id, seats) in by_key {
            match app.credentials.is_key_good(&app.stores.postgres, id).await {
                Ok(true) => {}
                Ok(false) => seats.iter().for_each(|seat| seat.end(End::KeyOver)),
                // Nobody can revoke a key meanwhile either.
                Err(_) => break,
            }
        }
    }
}
