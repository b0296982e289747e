//! Keeps the register of open sockets in Redis true, and ends streams whose session is over.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use taskflow_stores::clock;
use taskflow_stores::redis::Redis;
use taskflow_stores::redis::sockets::Open;
use taskflow_stores::seldom::Seldom;
use tokio_util::sync::CancellationToken;

use super::hub::{End, Hub, Seat};

/// How soon a session's end is noticed; well below the time that a process's sign of life lasts.
const EVERY: Duration = Duration::from_secs(3);

static COMPLAINTS: Seldom = Seldom::new();

pub(super) async fn keep(redis: &Redis, hub: &Hub, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        let seats = hub.all();
        if seats.is_empty() {
            continue;
        }
        // Whatever Redis says, or does not.
        let now = clock::now();
        let is_over = |seat: &&Arc<Seat>| seat.until.is_some_and(|until| until <= now);
        seats.iter().filter(is_over).for_each(|seat| seat.end(End::SessionOver));
        let open: Vec<Open> = seats
            .iter()
            .map(|seat| Open { socket: seat.socket.clone(), user: seat.user, session: seat.session.clone() })
            .collect();
        drop(seats);
        match redis.refresh_sockets(hub.process, &open).await {
            Ok(ended) => {
                let ended: HashSet<String> = ended.into_iter().collect();
                let seats = hub.all();
                seats
                    .iter()
                    .filter(|seat| ended.contains(&seat.socket))
                    .for_each(|seat| seat.end(End::SessionOver));
                // Who has left meanwhile may have been entered again just now.
                let here: HashSet<&str> = seats.iter().map(|seat| seat.socket.as_str()).collect();
                let left = open.into_iter().filter(|one| !here.contains(one.socket.as_str()));
                let left: Vec<_> = left.map(|one| (one.socket, one.user)).collect();
                if !left.is_empty() {
                    // If this fails too, their time to live ends them.
                    let _ = redis.remove_sockets(&left).await;
                }
            }
            // While Redis is away nobody can end a session either.
            Err(error) => {
                if let Some(held_back) = COMPLAINTS.due() {
                    tracing::warn!(%error, held_back, "The register of sockets can't be kept.");
                }
            }
        }
    }
}
