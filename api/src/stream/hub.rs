//! Who is connected, and which event goes to whom.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use chrono::{DateTime, Utc};
use taskflow_core::api_key::ApiKey;
use taskflow_core::metric;
use taskflow_core::stream::{About, Filter, Place, Positions};
use taskflow_stores::observe;
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use super::told::Told;

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The reader has left, or broken the protocol's rules.
    Left,
    /// This process stops.
    Stopping,
    /// Something may be missing from here on.
    Reset,
    /// Too many events wait for the reader, or it takes too long for one.
    Slow,
    /// Neither a pong nor anything else was heard.
    Idle,
    /// The session was ended, or has expired.
    SessionOver,
    /// The API key was revoked, or has expired.
    KeyOver,
    /// More was missed than is filled in.
    GapTooLarge,
    /// What was missed can't be read at the moment.
    Unavailable,
    /// A reader that talks.
    Talks,
}

impl End {
    /// The close code and the reason of the frame that tells it (RFC 6455, section 7.4).
    pub(crate) fn frame(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Left => return None,
            Self::Stopping => (1001, "this server stops: connect again, with lasteventid"),
            Self::Reset => (1012, "the feed was made anew: connect again, with lasteventid"),
            Self::Unavailable => (1013, "what was missed can't be read now: try again soon"),
            Self::Talks => (1003, "this stream takes no messages"),
            Self::SessionOver => (4001, "the session has ended: log in again"),
            Self::KeyOver => (4001, "the API key is not valid any more"),
            Self::Slow => (4002, "too slow: too many events wait"),
            Self::GapTooLarge => (
                4003,
                "too much was missed, or too long ago: read GET /v1/events, then connect without lasteventid",
            ),
            Self::Idle => (4004, "no sign of life: answer the pings"),
        })
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Stopping => "stopping",
            Self::Reset => "reset",
            Self::Slow => "slow",
            Self::Idle => "idle",
            Self::SessionOver => "session",
            Self::KeyOver => "key",
            Self::GapTooLarge => "gap",
            Self::Unavailable => "unavailable",
            Self::Talks => "talks",
        }
    }
}

/// An event on its way to readers.
pub(crate) struct Live {
    pub about: About,
    pub place: Option<Place>,
    /// As a CloudEvent.
    pub json: Vec<u8>,
    /// What had been told before its batch.
    pub before: Arc<Positions>,
}

/// One reader's place in the hub.
pub(crate) struct Seat {
    pub socket: String,
    pub user: Uuid,
    /// Whether it may have every event.
    pub all: bool,
    pub filter: Filter,
    /// The digest of its session, if it has one.
    pub session: Option<String>,
    /// When its session ends by itself.
    pub until: Option<DateTime<Utc>>,
    /// Its API key, if it has one.
    pub key: Option<Arc<ApiKey>>,
    sender: mpsc::Sender<Arc<Live>>,
    /// Bytes of what waits for it …
    waiting: AtomicUsize,
    /// … and how many may.
    bytes_max: usize,
    end: OnceLock<End>,
    ended: Notify,
}

impl Seat {
    /// Gives it an event; ends a reader for whom too much waits.
    fn offer(&self, live: &Arc<Live>) {
        let bytes = live.json.len();
        let before = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let is_too_much = before > 0 && before + bytes > self.bytes_max;
        // Who has left has no use for it.
        if is_too_much
            || matches!(self.sender.try_send(Arc::clone(live)), Err(mpsc::error::TrySendError::Full(_)))
        {
            self.end(End::Slow);
        }
    }

    /// Notes that an event was taken out of what waits.
    pub(super) fn took(&self, live: &Live) {
        self.waiting.fetch_sub(live.json.len(), Ordering::Relaxed);
    }

    /// Ends the stream. The first reason counts.
    pub(crate) fn end(&self, why: End) {
        let _ = self.end.set(why);
        self.ended.notify_one();
    }

    /// Waits until somebody ends the stream.
    pub(crate) async fn ended(&self) -> End {
        loop {
            if let Some(end) = self.end.get() {
                return *end;
            }
            self.ended.notified().await;
        }
    }
}

/// What a seat is taken for.
pub(crate) struct Request {
    pub user: Uuid,
    pub all: bool,
    pub filter: Filter,
    pub session: Option<String>,
    pub until: Option<DateTime<Utc>>,
    pub key: Option<Arc<ApiKey>>,
    pub buffer: usize,
    pub buffer_bytes: usize,
}

/// Everybody who is connected to this process.
pub(crate) struct Hub {
    pub process: Uuid,
    most: usize,
    next: AtomicU64,
    pub told: Told,
    seats: Mutex<Seats>,
    count: watch::Sender<usize>,
    /// Whether events come in.
    fed: watch::Sender<bool>,
}

#[derive(Default)]
struct Seats {
    by_user: HashMap<Uuid, Vec<Arc<Seat>>>,
    /// Those who may have every event.
    all: Vec<Arc<Seat>>,
    count: usize,
    positions: Arc<Positions>,
}

impl Hub {
    pub(super) fn new(process: Uuid, most: usize) -> Self {
        Self {
            process,
            most,
            next: AtomicU64::new(0),
            told: Told::default(),
            seats: Mutex::default(),
            count: watch::Sender::new(0),
            fed: watch::Sender::new(false),
        }
    }

    /// Takes a seat; `None` if there is none free. Events come from now on.
    pub(crate) fn take_seat(&self, request: Request) -> Option<(Arc<Seat>, mpsc::Receiver<Arc<Live>>)> {
        let (sender, receiver) = mpsc::channel(request.buffer.max(1));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let Request { user, all, filter, session, until, key, buffer_bytes, .. } = request;
        let seat = Arc::new(Seat {
            socket: format!("{}:{number}", self.process),
            user,
            all,
            filter,
            session,
            until,
            key,
            sender,
            waiting: AtomicUsize::new(0),
            bytes_max: buffer_bytes,
            end: OnceLock::new(),
            ended: Notify::new(),
        });
        let mut seats = self.lock();
        if seats.count >= self.most {
            return None;
        }
        if all {
            seats.all.push(Arc::clone(&seat));
        } else {
            seats.by_user.entry(user).or_default().push(Arc::clone(&seat));
        }
        seats.count += 1;
        self.tell_count(seats.count);
        Some((seat, receiver))
    }

    /// Gives a seat back.
    pub(crate) fn leave(&self, seat: &Arc<Seat>, why: End) {
        let mut seats = self.lock();
        let others = |other: &Arc<Seat>| !Arc::ptr_eq(other, seat);
        if seat.all {
            seats.all.retain(others);
        } else if let Some(own) = seats.by_user.get_mut(&seat.user) {
            own.retain(others);
            if own.is_empty() {
                seats.by_user.remove(&seat.user);
            }
        }
        seats.count -= 1;
        self.tell_count(seats.count);
        observe::counter(&metric::STREAMS_ENDED, &[("reason", why.as_str())]).increment(1);
    }

    fn tell_count(&self, count: usize) {
        self.count.send_replace(count);
        observe::gauge(&metric::STREAMS, &[]).set(count as f64);
    }

    /// Gives a batch's events, or a single one, to the seats that they concern.
    pub(super) fn dispatch(&self, events: Vec<Live>) {
        let mut seats = self.lock();
        let mut positions = None;
        for live in events.into_iter().map(Arc::new) {
            if let Some(place) = &live.place {
                positions
                    .get_or_insert_with(|| (*seats.positions).clone())
                    .advance_past(&place.partition, place.number);
            }
            let owners = live.about.owners();
            let own = owners.iter().filter_map(|user| seats.by_user.get(user)).flatten();
            // After an event that had no place none may follow: its cursor would say that the reader had both.
            let open = |seat: &&Arc<Seat>| seat.end.get().is_none() && seat.filter.takes(&live.about);
            own.chain(&seats.all).filter(open).for_each(|seat| seat.offer(&live));
        }
        // After the seats have their events: who finds nothing waiting has had all that this says.
        if let Some(positions) = positions {
            seats.positions = Arc::new(positions);
        }
    }

    /// What was told so far.
    pub(crate) fn positions(&self) -> Arc<Positions> {
        Arc::clone(&self.lock().positions)
    }

    /// Events come in from now on, or no more. Whoever listens then may miss some.
    pub(super) fn set_fed(&self, fed: bool) {
        // First: who takes a seat after all others were ended waits for the feed.
        self.fed.send_replace(fed);
        if !fed {
            self.lock().positions = Arc::default();
            self.end_all(End::Reset);
        }
    }

    /// Waits until events come in.
    pub(crate) async fn is_fed(&self) {
        let mut state = self.fed.subscribe();
        // The sender lives as long as this.
        let _ = state.wait_for(|fed| *fed).await;
    }

    /// Waits until somebody is connected.
    pub(super) async fn wanted(&self) {
        let mut count = self.count.subscribe();
        let _ = count.wait_for(|count| *count > 0).await;
    }

    /// Waits until nobody is connected.
    pub(crate) async fn empty(&self) {
        let mut count = self.count.subscribe();
        let _ = count.wait_for(|count| *count == 0).await;
    }

    pub(crate) fn end_all(&self, why: End) {
        self.all().iter().for_each(|seat| seat.end(why));
    }

    /// Ends the streams of a user's sessions; those of API keys end in their own way.
    pub(crate) fn end_user(&self, user: Uuid) {
        let of_user = |seat: &&Arc<Seat>| seat.user == user && seat.session.is_some();
        self.all().iter().filter(of_user).for_each(|seat| seat.end(End::SessionOver));
    }

    /// Ends the streams of a session.
    pub(crate) fn end_session(&self, digest: &str) {
        let of_session = |seat: &&Arc<Seat>| seat.session.as_deref() == Some(digest);
        self.all().iter().filter(of_session).for_each(|seat| seat.end(End::SessionOver));
    }

    pub(super) fn all(&self) -> Vec<Arc<Seat>> {
        let seats = self.lock();
        seats.by_user.values().flatten().chain(&seats.all).map(Arc::clone).collect()
    }

    /// The sockets of a user.
    pub(crate) fn sockets_of(&self, user: Uuid) -> HashSet<String> {
        let seats = self.lock();
        let own = seats.by_user.get(&user).into_iter().flatten();
        own.chain(seats.all.iter().filter(|seat| seat.user == user)).map(|seat| seat.socket.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
