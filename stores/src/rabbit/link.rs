//! One supervised connection. Whatever breaks it, it is made anew as a whole; channels of the old one are dead.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind, Event};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{STORE, Settings, failed};
use crate::{Kind, StoreError, crash, seldom, supervise};

/// Longest pause between two tries to connect.
const PAUSE_MAX: Duration = Duration::from_secs(3);
/// Tries that may hang at a time. The client library keeps a thread for each until the other side moves, also when
/// nobody waits for it any more.
const HANGING_MAX: usize = 3;
/// With that many hanging, the pause between two tries.
const PAUSE_HANGING: Duration = Duration::from_mins(1);

/// What the broker answers to who names a queue that does not exist (AMQP 0-9-1, reply code).
const NOT_FOUND: u16 = 404;

/// The largest frame of a connection that publishes. The client keeps room for 32 of them in either direction, 8 MiB of
/// the broker's usual 128 KiB. Bodies are sent in several frames; the headers of a message have to fit into one.
pub(super) const PUBLISHING_FRAME: u32 = 32 * 1024;

/// A connection that is made anew for as long as it lives. Clones share it.
#[derive(Clone)]
pub struct Link {
    state: watch::Receiver<State>,
    patience: Duration,
    /// For passive declarations, which close their channel when the queue does not exist.
    probes: Arc<Mutex<Option<Channel>>>,
    rebuild: watch::Sender<()>,
}

#[derive(Clone, Default)]
struct State {
    live: Option<Arc<Live>>,
    /// Why the last try to connect failed.
    failure: Option<Arc<str>>,
}

struct Live {
    connection: Connection,
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
        // What others publish may have headers as large as the broker lets them.
        Self::start_with(settings, name, None, stop)
    }

    /// The same for a connection that only publishes, and hears of nothing that others have published.
    ///
    /// # Errors
    /// As [`Link::start`].
    pub fn start_publishing(
        settings: &Settings,
        name: &str,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        Self::start_with(settings, name, Some(PUBLISHING_FRAME), stop)
    }

    fn start_with(
        settings: &Settings,
        name: &str,
        frame_max: Option<u32>,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        let mut uri: AMQPUri = settings.url.parse().map_err(|error: String| {
            StoreError::new(
                STORE,
                "read amqp.url",
                Kind::Bug,
                format!("{error}; expected amqp://user:password@host:port/vhost"),
            )
        })?;
        uri.query.heartbeat = Some(settings.heartbeat_s);
        uri.query.frame_max = frame_max.or(uri.query.frame_max);
        uri.query.connection_timeout = Some(settings.connect_timeout_ms);
        let (sender, state) = watch::channel(State::default());
        let timeout = Duration::from_millis(settings.connect_timeout_ms);
        let rebuild = watch::Sender::new(());
        let supervisor = Supervisor {
            uri,
            name: name.to_owned(),
            timeout,
            state: sender,
            rebuild: rebuild.clone(),
            told: AtomicBool::new(false),
            stop: stop.clone(),
        };
        tokio::spawn(async move { supervise::forever("link", &stop, || supervisor.run()).await });
        Ok(Self { state, patience: timeout, probes: Arc::default(), rebuild })
    }

    /// A new channel, as soon as there is a connection.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] when there is none in time; the text says what the last try to connect met.
    pub async fn channel(&self) -> Result<Channel, StoreError> {
        let mut state = self.state.clone();
        let opened = async {
            loop {
                let up = state.wait_for(|state| state.live.as_ref().is_some_and(|live| live.is_up()));
                let live = up.await.ok().and_then(|state| state.live.clone());
                let Some(live) = live else {
                    return Err(StoreError::unavailable(STORE, "connect", "this process is stopping"));
                };
                match live.connection.create_channel().await {
                    Ok(channel) => return Ok(channel),
                    Err(error) if live.is_up() => return Err(failed("open a channel")(error)),
                    // The connection broke just now: the next one will do.
                    Err(_) => {}
                }
            }
        };
        if let Ok(channel) = tokio::time::timeout(self.patience, opened).await {
            return channel;
        }
        let failure = self.state.borrow().failure.clone();
        let detail = failure.as_deref().unwrap_or("no connection to the broker in time");
        Err(StoreError::unavailable(STORE, "connect", detail))
    }

    /// Has the connection made anew, with all its channels: for whoever finds that it does not do its work.
    pub fn rebuild(&self) {
        self.rebuild.send_replace(());
    }

    /// Whether there is a connection now.
    pub fn is_up(&self) -> bool {
        self.state.borrow().live.as_ref().is_some_and(|live| live.is_up())
    }

    /// Whether the broker has stopped reading from this connection (memory or disk alarm).
    pub fn is_blocked(&self) -> bool {
        self.state.borrow().live.as_ref().is_some_and(|live| live.connection.status().blocked())
    }

    /// Waits until the connection is closed for good, after `stop`. A process that ends before cuts it off.
    pub async fn closed(&self) {
        let mut state = self.state.clone();
        while state.changed().await.is_ok() {}
    }

    /// What the broker says of a queue that must be there.
    pub async fn depth(&self, queue: &str) -> Result<Depth, StoreError> {
        let missing =
            || StoreError::unavailable(STORE, "look at a queue", format!("there is no queue {queue}"));
        self.find(queue).await?.ok_or_else(missing)
    }

    /// What the broker says of a queue; `None` if there is no such queue. It says "no messages, no consumers" too where the
    /// leader of a quorum queue does not answer it: nothing may be given up on the strength of that
    /// ([`super::topology::is_empty`]).
    pub async fn find(&self, queue: &str) -> Result<Option<Depth>, StoreError> {
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
                Ok(Some(Depth { ready: queue.message_count(), consumers: queue.consumer_count() }))
            }
            Ok(Err(error)) if is_missing(&error) => Ok(None),
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

/// Whether the broker says that there is no such thing.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if error.get_id() == NOT_FOUND)
}

impl Live {
    fn is_up(&self) -> bool {
        self.connection.status().connected()
    }
}

/// Keeps the connection.
struct Supervisor {
    uri: AMQPUri,
    name: String,
    timeout: Duration,
    state: watch::Sender<State>,
    rebuild: watch::Sender<()>,
    /// Whether the log tells that the connection is gone.
    told: AtomicBool,
    stop: CancellationToken,
}

impl Supervisor {
    async fn run(&self) {
        // Of a run that ended in a panic nothing is kept.
        self.state.send_replace(State::default());
        let mut tries: JoinSet<lapin::Result<Connection>> = JoinSet::new();
        let mut failures = 0_u32;
        let mut late = None;
        while !self.stop.is_cancelled() {
            if let Some(connection) = late.take() {
                tries = JoinSet::new();
                self.serve(connection, std::mem::take(&mut failures)).await;
                continue;
            }
            let properties = ConnectionProperties::default().with_connection_name(self.name.clone().into());
            tries.spawn(Connection::connect_uri(self.uri.clone(), properties));
            // An earlier try that hung may be the one that gets through.
            let connected = tokio::select! {
                () = self.stop.cancelled() => return,
                connected = tokio::time::timeout(self.timeout, tries.join_next()) => connected,
            };
            let error = match connected {
                Ok(Some(Ok(Ok(connection)))) => {
                    tries = JoinSet::new();
                    self.serve(connection, std::mem::take(&mut failures)).await;
                    continue;
                }
                Ok(Some(Ok(Err(error)))) => failed("connect")(error).detail,
                Ok(Some(Err(panic))) => panic.to_string(),
                Ok(None) | Err(_) => "the broker does not answer".to_owned(),
            };
            if failures == 0 && seldom::about(STORE).is_some() {
                self.told.store(true, Ordering::Relaxed);
                tracing::warn!(connection = self.name, error, "No connection to the broker; trying again.");
            }
            self.state.send_modify(|state| state.failure = Some(error.into()));
            failures += 1;
            late = self.pause(failures, &mut tries).await;
        }
    }

    /// Between two tries. With too many hanging, until one of them has ended.
    async fn pause(
        &self,
        failures: u32,
        tries: &mut JoinSet<lapin::Result<Connection>>,
    ) -> Option<Connection> {
        let pause = Duration::from_millis(100) * 2_u32.pow(failures.min(6));
        let pause = pause.min(PAUSE_MAX).mul_f64(rand::random_range(0.5..=1.0));
        let rest = async {
            tokio::time::sleep(pause).await;
            let start = tokio::time::Instant::now();
            while tries.len() >= HANGING_MAX && start.elapsed() < PAUSE_HANGING {
                tokio::time::sleep(Duration::from_millis(50)).await;
                match tries.try_join_next() {
                    // Got through at last.
                    Some(Ok(Ok(connection))) => return Some(connection),
                    Some(_) => break,
                    None => {}
                }
            }
            None
        };
        tokio::select! {
            () = self.stop.cancelled() => None,
            connection = rest => connection,
        }
    }

    /// Lends a connection out until it breaks or it is time to stop.
    async fn serve(&self, connection: Connection, failures: u32) {
        if failures > 0 && self.told.swap(false, Ordering::Relaxed) {
            tracing::info!(connection = self.name, "Connected to the broker again.");
        }
        let mut events = Box::pin(connection.events_listener());
        let mut rebuild = self.rebuild.subscribe();
        let live = Arc::new(Live { connection });
        self.state.send_replace(State { live: Some(Arc::clone(&live)), failure: None });
        while live.is_up() {
            crash::point("link");
            // The events tell of what happens; the look from time to time finds what no event told.
            let event = tokio::select! {
                () = self.stop.cancelled() => break,
                event = events.next() => event,
                Ok(()) = rebuild.changed() => {
                    tracing::warn!(connection = self.name, "The connection is made anew, with all its channels.");
                    break;
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => continue,
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::error!(connection = self.name, reason, "The broker blocks publishers.");
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!(connection = self.name, "The broker takes messages again.");
                }
                // Of a channel, too: whether the connection is meant, its state says.
                Some(Event::Error(error)) if !live.is_up() && seldom::about(STORE).is_some() => {
                    self.told.store(true, Ordering::Relaxed);
                    tracing::warn!(connection = self.name, %error, "The connection to the broker broke.");
                }
                Some(_) => {}
                None => break,
            }
        }
        self.state.send_replace(State::default());
        let closed = live.connection.close(200, "bye".into());
        let _ = tokio::time::timeout(Duration::from_secs(2), closed).await;
    }
}
