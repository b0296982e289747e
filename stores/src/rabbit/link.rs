//! One supervised connection. Whatever breaks it, it is made anew as a whole; channels of the old one are dead.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, Event};
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::{STORE, Settings, failed};
use crate::{Kind, StoreError};

/// Longest pause between two tries to connect.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// A connection that is made anew for as long as it lives. Clones share it.
#[derive(Clone)]
pub struct Link {
    live: watch::Receiver<Option<Arc<Live>>>,
    patience: Duration,
    /// For passive declarations, which close their channel when the queue does not exist.
    probes: Arc<Mutex<Option<Channel>>>,
}

struct Live {
    connection: Connection,
    blocked: AtomicBool,
}

/// What the broker says of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Messages that nobody holds.
    pub ready: u32,
    pub consumers: u32,
}

impl Link {
    /// Starts connecting, under a name that the broker's operators see. Ends with `stop`.
    ///
    /// # Errors
    /// [`Kind::Bug`] when the URL can't be understood.
    pub fn start(settings: &Settings, name: &str, stop: CancellationToken) -> Result<Self, StoreError> {
        let mut uri: AMQPUri = settings.url.parse().map_err(|error: String| {
            StoreError::new(
                STORE,
                "read amqp.url",
                Kind::Bug,
                format!("{error}; expected amqp://user:password@host:port/vhost"),
            )
        })?;
        uri.query.heartbeat = Some(settings.heartbeat_s);
        uri.query.connection_timeout = Some(settings.connect_timeout_ms);
        let (sender, live) = watch::channel(None);
        let timeout = Duration::from_millis(settings.connect_timeout_ms);
        tokio::spawn(supervise(uri, name.to_owned(), timeout, sender, stop));
        Ok(Self { live, patience: timeout, probes: Arc::default() })
    }

    /// A new channel, as soon as there is a connection.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when there is none in time.
    pub async fn channel(&self) -> Result<Channel, StoreError> {
        let mut live = self.live.clone();
        let opened = async {
            let live = live.wait_for(Option::is_some).await.ok().and_then(|live| live.clone());
            let live = live.ok_or_else(|| StoreError::unavailable(STORE, "connect", "this process is stopping"))?;
            live.connection.create_channel().await.map_err(failed("open a channel"))
        };
        match tokio::time::timeout(self.patience, opened).await {
            Ok(channel) => channel,
            Err(_) => Err(StoreError::unavailable(STORE, "connect", "no connection to the broker")),
        }
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        self.live.borrow().as_ref().is_some_and(|live| live.connection.status().connected())
    }

    /// Whether the broker has stopped reading from this connection (memory or disk alarm).
    pub fn is_blocked(&self) -> bool {
        self.live.borrow().as_ref().is_some_and(|live| {
            live.blocked.load(Ordering::Relaxed) || live.connection.status().blocked()
        })
    }

    /// What the broker says of a queue.
    pub async fn depth(&self, queue: &str) -> Result<Depth, StoreError> {
        let mut probes = self.probes.lock().await;
        let channel = match probes.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.channel().await?,
        };
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(queue.into(), options, FieldTable::default());
        match tokio::time::timeout(self.patience, declared).await {
            Ok(Ok(queue)) => {
                *probes = Some(channel);
                Ok(Depth { ready: queue.message_count(), consumers: queue.consumer_count() })
            }
            Ok(Err(error)) => Err(failed("look at a queue")(error)),
            Err(_) => Err(StoreError::unavailable(STORE, "look at a queue", "no answer in time")),
        }
    }

    /// What the broker says of these queues.
    pub async fn depths(&self, queues: &[String]) -> Result<HashMap<String, Depth>, StoreError> {
        let mut depths = HashMap::with_capacity(queues.len());
        for queue in queues {
            depths.insert(queue.clone(), self.depth(queue).await?);
        }
        Ok(depths)
    }
}

async fn supervise(
    uri: AMQPUri,
    name: String,
    timeout: Duration,
    live: watch::Sender<Option<Arc<Live>>>,
    stop: CancellationToken,
) {
    let mut failures = 0_u32;
    while !stop.is_cancelled() {
        let properties = ConnectionProperties::default().with_connection_name(name.clone().into());
        let connected = Connection::connect_uri(uri.clone(), properties);
        match tokio::time::timeout(timeout, connected).await {
            Ok(Ok(connection)) => {
                if failures > 0 {
                    tracing::info!(connection = name, "Connected to the broker again.");
                }
                failures = 0;
                serve(connection, &name, &live, &stop).await;
                live.send_replace(None);
            }
            outcome => {
                let error = match outcome {
                    Ok(Err(error)) => failed("connect")(error).detail,
                    _ => "no answer in time".to_owned(),
                };
                if failures == 0 {
                    tracing::warn!(connection = name, error, "No connection to the broker; trying again.");
                }
                failures += 1;
                let pause = Duration::from_millis(100) * 2_u32.pow(failures.min(6));
                let pause = pause.min(PAUSE_MAX).mul_f64(rand::random_range(0.5..=1.0));
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// Lends a connection out until it breaks or it is time to stop.
async fn serve(
    connection: Connection,
    name: &str,
    live: &watch::Sender<Option<Arc<Live>>>,
    stop: &CancellationToken,
) {
    let mut events = Box::pin(connection.events_listener());
    let this = Arc::new(Live { connection, blocked: AtomicBool::new(false) });
    live.send_replace(Some(Arc::clone(&this)));
    loop {
        // The events tell of what happens; the look from time to time finds what no event told.
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = events.next() => event,
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                if this.connection.status().connected() { continue }
                break;
            }
        };
        match event {
            Some(Event::ConnectionBlocked(reason)) => {
                this.blocked.store(true, Ordering::Relaxed);
                tracing::error!(connection = name, reason, "The broker blocks publishers.");
            }
            Some(Event::ConnectionUnblocked) => {
                this.blocked.store(false, Ordering::Relaxed);
                tracing::info!(connection = name, "The broker takes messages again.");
            }
            Some(Event::Error(error)) => {
                if !this.connection.status().connected() {
                    tracing::warn!(connection = name, %error, "The connection to the broker broke.");
                    break;
                }
            }
            Some(_) => {}
            None => break,
        }
    }
    live.send_replace(None);
    let closed = this.connection.close(200, "bye".into());
    let _ = tokio::time::timeout(Duration::from_secs(2), closed).await;
}
