//! The live stream: events to whoever may have them, as they happen, over WebSockets.
//!
//! One task a process listens to the event exchange, while anybody is connected ([`feed`]): it hears within milliseconds
//! of the commit, and asks no store. It hands each event to the seats that it concerns ([`hub`]). A seat's own task
//! writes to its socket ([`reader`]); who comes back with a cursor first gets what it missed, from the outbox and the
//! audit trail ([`gap`]), the system's events since a time at which all had been told ([`told`]). Redis knows the open
//! sockets of all processes ([`register`]); a stream ends with its session, or with its API key ([`keys`]).

pub(crate) mod credential;
mod feed;
pub(crate) mod gap;
pub(crate) mod hub;
pub(crate) mod keys;
pub(crate) mod reader;
mod register;
mod told;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::redis::Redis;
use taskflow_stores::{StoreError, supervise};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use self::hub::{End, Hub};
use crate::Stores;

/// Bounds of the live stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Sockets of this process.
    pub sockets_max: usize,
    /// Sockets of one user, at all processes together.
    pub user_sockets_max: usize,
    /// Events that wait for one reader before it is dropped as too slow.
    pub buffer: usize,
    /// Bytes of them. One event may be longer.
    pub buffer_bytes: usize,
    /// How long a reader may take for one event, in milliseconds.
    pub write_timeout_ms: u64,
    /// Between two pings, in milliseconds.
    pub ping_ms: u64,
    /// How long a reader may be silent, pongs included, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Events that are filled in for who comes back; with more it has to read the audit trail.
    pub gap_max: usize,
    /// Bytes of them. An API process reads for four readers at a time.
    pub gap_bytes: usize,
    /// How old a cursor may be, in seconds; who comes back with an older one has to read the audit trail. Below what
    /// retention keeps of any event: a stream tells of no hole.
    pub gap_age_max_s: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sockets_max: 10_000,
            user_sockets_max: 20,
            buffer: 4_096,
            buffer_bytes: 8 * 1024 * 1024,
            write_timeout_ms: 10_000,
            ping_ms: 20_000,
            idle_timeout_ms: 60_000,
            gap_max: 10_000,
            gap_bytes: 32 * 1024 * 1024,
            gap_age_max_s: 86_400,
        }
    }
}

/// What a process needs for its streams.
pub(crate) struct Streams {
    pub hub: Arc<Hub>,
    pub settings: Settings,
    stop: CancellationToken,
}

/// How long closing sockets may take at the end.
const GOODBYE: Duration = Duration::from_secs(5);

/// Starts the tasks behind the streams. They end with `stop`.
///
/// # Errors
/// The broker's address can't be understood.
pub(crate) fn start(
    settings: Settings,
    stores: &Stores,
    process: Uuid,
    stop: &CancellationToken,
) -> Result<Streams, StoreError> {
    let hub = Arc::new(Hub::new(process, settings.sockets_max));
    // Not with `stop` itself: what is told while sockets say goodbye may still go to them.
    let link = Link::start(&stores.rabbit, "taskflow stream", stop.clone())?;
    let (fed, listening) = (Arc::clone(&hub), stop.clone());
    tokio::spawn(async move {
        supervise::forever("feed", &listening, || feed::run(&link, &fed, &listening)).await;
    });
    let (kept, redis, keeping) = (Arc::clone(&hub), stores.redis.clone(), stop.clone());
    tokio::spawn(async move {
        supervise::forever("sockets", &keeping, || register::keep(&redis, &kept, &keeping)).await;
    });
    let (told, postgres, looking) = (Arc::clone(&hub), stores.postgres.clone(), stop.clone());
    tokio::spawn(async move {
        supervise::forever("told", &looking, || told::keep(&postgres, &told, &looking)).await;
    });
    Ok(Streams { hub, settings, stop: stop.clone() })
}

impl Streams {
    /// Closes every socket, and waits until they are gone, from the register too.
    pub(crate) async fn close(&self, redis: &Redis) {
        let open: Vec<_> = self.hub.all().iter().map(|seat| (seat.socket.clone(), seat.user)).collect();
        self.hub.end_all(End::Stopping);
        let _ = tokio::time::timeout(GOODBYE, self.hub.empty()).await;
        if !open.is_empty() && redis.remove_sockets(&open).await.is_err() {
            tracing::debug!("Redis is away: the register forgets this process's sockets by itself.");
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }
}
