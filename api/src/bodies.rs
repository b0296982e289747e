//! Room for the bodies of requests: whatever callers send at once, it takes bounded memory.
//!
//! A request has room for its body before the body is read, and keeps it until it is answered: what is made of the body
//! grows with it. Small bodies have a part of their own, so that a flood of large ones does not shut them out. Who finds
//! no room waits a moment, with what was sent still on the caller's side of the connection, and is then told to come
//! back. Streams of JSON lines take room as they go (`routes/ndjson.rs`).
//!
//! Each caller has a share of it: one that announces many bodies and sends none leaves room for the others. Who has not
//! said yet who it is has little room, apart from all others', and a share by address: a crowd of slow logins takes
//! nothing from those who are known.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use taskflow_stores::share::{Share, Shares};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::Settings;
use crate::address::{self, ClientAddress};
use crate::auth::Caller;
use crate::gate::is_stream;
use crate::problem::Problem;

/// A body up to this size is small.
const SMALL: usize = 64 * 1024;
/// The room for large bodies is never less, in bytes.
const LEAST: usize = 1024 * 1024;
/// The room for small bodies: this part of the room for large ones, beside it.
const SMALL_PART: usize = 8;
/// The largest body of an open call, in bytes: a login is a few hundred.
const OPEN: usize = 4 * 1024;
/// The room for bodies of open calls, in bytes.
const OPEN_ROOM: usize = 2 * 1024 * 1024;
/// How long the body of an open call may take to arrive.
const OPEN_ARRIVES_WITHIN: Duration = Duration::from_secs(10);
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long the rest of a refused body is taken and dropped: a caller that is still sending would not see the answer.
const DISCARD: Duration = Duration::from_secs(2);
/// Requests whose body is dropped so; the connections of others end without.
const DISCARDED_AT_ONCE: usize = 32;

/// All room there is.
pub(crate) struct Bodies {
    small: Part,
    large: Part,
    open: Part,
    discarded: Semaphore,
}

/// Room for one kind of bodies, in bytes.
struct Part {
    all: Arc<Semaphore>,
    shares: Shares,
}

impl Part {
    fn new(bytes: usize, least_share: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(bytes)), shares: Shares::new(bytes, least_share) }
    }

    /// Room, waited for no longer than a moment, for somebody who has `own` bytes of it. The share comes first: who has to
    /// wait for it keeps nothing from others. Then all stand in one line, so that a large body has its turn.
    async fn take(&self, caller: u64, bytes: usize, own: usize) -> Option<Held> {
        let taken = async {
            let share = self.shares.take(caller, bytes, own).await;
            let permit = Arc::clone(&self.all).acquire_many_owned(bytes as u32).await.ok()?;
            Some(Held { permit, share })
        };
        timeout(PATIENCE, taken).await.ok().flatten()
    }

    fn try_take(&self, caller: u64, bytes: usize, own: usize) -> Option<Held> {
        let share = self.shares.try_take(caller, bytes, own)?;
        let permit = Arc::clone(&self.all).try_acquire_many_owned(bytes as u32).ok()?;
        Some(Held { permit, share })
    }
}

/// So many bytes of all room, and as many of the caller's share.
struct Held {
    permit: OwnedSemaphorePermit,
    share: Share,
}

/// Bytes that a request has room for.
pub(crate) struct Room {
    caller: u64,
    /// Of the small bodies, or of those of open calls.
    small: Option<Held>,
    large: Option<Held>,
}

impl Bodies {
    pub(crate) fn new(settings: &Settings) -> Self {
        // The largest body must find room some time, and any piece of a stream.
        let large = settings.bodies_max.max(settings.body_max).clamp(LEAST, u32::MAX as usize);
        Self {
            small: Part::new((large / SMALL_PART).max(SMALL), SMALL),
            large: Part::new(large, LEAST),
            open: Part::new(OPEN_ROOM, OPEN),
            discarded: Semaphore::new(DISCARDED_AT_ONCE),
        }
    }

    /// Room for a body of this size, waited for no longer than a moment.
    async fn take(&self, caller: u64, bytes: usize) -> Option<Room> {
        let mut room = Room::of(caller);
        if bytes > SMALL {
            return self.more(&mut room, bytes).await.then_some(room);
        }
        room.small = Some(self.small.take(caller, bytes, 0).await?);
        Some(room)
    }

    /// Room for the body of an open call, at most [`OPEN`] bytes.
    async fn take_open(&self, caller: u64, bytes: usize) -> Option<Room> {
        Some(Room { small: Some(self.open.take(caller, bytes, 0).await?), ..Room::of(caller) })
    }

    /// So much more room, if it is there now.
    pub(crate) fn try_more(&self, room: &mut Room, bytes: usize) -> bool {
        room.add(self.large.try_take(room.caller, bytes, room.large()))
    }

    /// So much more room, waited for no longer than a moment.
    pub(crate) async fn more(&self, room: &mut Room, bytes: usize) -> bool {
        room.add(self.large.take(room.caller, bytes, room.large()).await)
    }
}

impl Room {
    /// None yet, of this caller's share.
    fn of(caller: u64) -> Self {
        Self { caller, small: None, large: None }
    }

    pub(crate) fn of_caller(caller: &Caller) -> Self {
        Self::of(number(&caller.user))
    }

    fn add(&mut self, more: Option<Held>) -> bool {
        let Some(more) = more else { return false };
        match &mut self.large {
            Some(large) => {
                large.permit.merge(more.permit);
                large.share.merge(more.share);
            }
            None => self.large = Some(more),
        }
        true
    }

    fn large(&self) -> usize {
        self.large.as_ref().map_or(0, |held| held.share.places())
    }

    fn bytes(&self) -> usize {
        [&self.small, &self.large].into_iter().flatten().map(|held| held.permit.num_permits()).sum()
    }

    /// Parts with room for so many bytes, or what there is.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let large = self.large.as_mut().and_then(|large| {
            let bytes = bytes.min(large.permit.num_permits());
            Some(Held { permit: large.permit.split(bytes)?, share: large.share.split(bytes) })
        });
        Self { large, ..Self::of(self.caller) }
    }

    /// Gives back what is more than so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        drop(self.split(more));
    }
}

/// What a share is known by.
fn number(whose: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    whose.hash(&mut hasher);
    hasher.finish()
}

/// Finds room for a request's body, which has passed the gate, and keeps it until the request is answered.
pub(crate) async fn bound<F>(
    app: &Arc<crate::App>,
    request: Request,
    answer: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    // JSON lines are taken as they come.
    let stream = is_stream(&request);
    let (parts, body) = request.into_parts();
    let size = body.size_hint().exact();
    if size == Some(0) || stream {
        return answer(Request::from_parts(parts, body)).await;
    }
    let known = parts.extensions.get::<Caller>().map(|caller| number(&caller.user));
    let open = known.is_none();
    let caller = known.unwrap_or_else(|| {
        let from = parts.extensions.get::<ClientAddress>();
        number(&from.map(|ClientAddress(ip)| address::limited(*ip)))
    });
    let most = if open { OPEN } else { app.settings.body_max };
    let room = match size {
        Some(size) if size > most as u64 => Err(too_large(open, most)),
        // One that does not tell its length has room for the longest.
        size if open => {
            let bytes = size.map_or(most, |size| size as usize);
            app.bodies.take_open(caller, bytes).await.ok_or_else(Problem::busy)
        }
        Some(size) => app.bodies.take(caller, size as usize).await.ok_or_else(Problem::busy),
        // Of a body that does not tell its length, the room grows with what comes.
        None => Ok(Room::of(caller)),
    };
    let room = match room {
        Ok(room) => Arc::new(Mutex::new(room)),
        Err(problem) => {
            if !parts.headers.contains_key(header::EXPECT)
                && let Ok(_turn) = app.bodies.discarded.try_acquire()
            {
                let mut rest = body.into_data_stream();
                let dropped = async { while let Some(Ok(_)) = rest.next().await {} };
                let _ = timeout(DISCARD, dropped).await;
            }
            return problem.into_response();
        }
    };
    let refused = Arc::new(OnceLock::new());
    let whole = Duration::from_millis(app.settings.limits.body_timeout_ms);
    let arrives_within = if open { OPEN_ARRIVES_WITHIN.min(whole) } else { whole };
    let arriving = Arriving {
        app: Arc::clone(app),
        chunks: body.into_data_stream().boxed(),
        read: 0,
        deadline: Instant::now() + arrives_within,
        most_open: open.then_some(most),
        room: Arc::clone(&room),
        refused: Arc::clone(&refused),
    };
    let body = Body::from_stream(stream::try_unfold(arriving, Arriving::next));
    let response = answer(Request::from_parts(parts, body)).await;
    drop(room);
    // Whoever read the body has only seen that it ended early.
    match refused.get() {
        Some(problem) => Problem::clone(problem).into_response(),
        None => response,
    }
}

/// A body on its way in.
struct Arriving {
    app: Arc<crate::App>,
    chunks: BoxStream<'static, Result<Bytes, axum::Error>>,
    read: usize,
    deadline: Instant,
    /// The most bytes, of the body of an open call.
    most_open: Option<usize>,
    room: Arc<Mutex<Room>>,
    refused: Arc<OnceLock<Problem>>,
}

impl Arriving {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>, axum::Error> {
        let refuse = |this: &Self, problem: Problem| {
            let words = problem.detail.clone();
            let _ = this.refused.set(problem);
            axum::Error::new(std::io::Error::other(words))
        };
        let Ok(chunk) = timeout_at(self.deadline, self.chunks.next()).await else {
            return Err(refuse(&self, Problem::too_slow()));
        };
        let Some(chunk) = chunk.transpose()? else { return Ok(None) };
        self.read += chunk.len();
        if let Some(most) = self.most_open.filter(|most| self.read > *most) {
            return Err(refuse(&self, too_large(true, most)));
        }
        let mut room = {
            let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            let caller = room.caller;
            std::mem::replace(&mut *room, Room::of(caller))
        };
        let more = self.read.saturating_sub(room.bytes());
        let found = more == 0 || self.app.bodies.more(&mut room, more).await;
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
        if found { Ok(Some((chunk, self))) } else { Err(refuse(&self, Problem::busy())) }
    }
}

fn too_large(open: bool, most: usize) -> Problem {
    let way_out = if open { "" } else { "; send application/x-ndjson for more" };
    Problem::too_large(format!("a body of this call has at most {most} bytes{way_out}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bodies(bodies_max: usize) -> Bodies {
        Bodies::new(&Settings { bodies_max, body_max: 1024, ..Settings::default() })
    }

    #[tokio::test]
    async fn large_bodies_wait_for_room_and_small_ones_have_their_own() {
        let bodies = bodies(2_000_000);
        let large = bodies.take(1, 1_900_000).await;
        assert!(large.is_some());
        let more = bodies.take(2, 200_000);
        assert!(timeout(Duration::from_millis(20), more).await.is_err());
        assert!(bodies.take(2, 60_000).await.is_some());
        drop(large);
        assert!(bodies.take(2, 200_000).await.is_some());
    }

    #[tokio::test]
    async fn who_announces_many_leaves_room_for_the_others() {
        let bodies = bodies(16 * LEAST);
        let hold = |caller, bytes| {
            let bodies = &bodies;
            async move {
                let mut held = Vec::new();
                while let Ok(Some(room)) =
                    timeout(Duration::from_millis(20), bodies.take(caller, bytes)).await
                {
                    held.push(room);
                }
                held
            }
        };
        let large = hold(1, LEAST).await;
        assert_eq!(large.len(), 8, "half of it is one caller's share");
        assert_eq!(hold(2, LEAST).await.len(), 5, "and a third, where there are two");
        let small = hold(1, SMALL).await;
        assert_eq!(small.len() * SMALL, LEAST);
        assert!(bodies.take(2, SMALL).await.is_some());
        drop((large, small));
        assert_eq!(hold(1, LEAST).await.len(), 8);
    }

    #[tokio::test]
    async fn open_calls_take_no_room_of_the_others() {
        let bodies = bodies(LEAST);
        let mut held = Vec::new();
        for address in 0..(OPEN_ROOM / OPEN) as u64 {
            held.push(bodies.take_open(address, OPEN).await.unwrap());
        }
        assert!(timeout(Duration::from_millis(20), bodies.take_open(0, 1)).await.is_err());
        assert!(bodies.take(1, SMALL).await.is_some() && bodies.take(1, LEAST).await.is_some());
    }

    #[test]
    fn room_is_given_back_in_parts() {
        let bodies = bodies(LEAST);
        let mut room = Room::of(1);
        assert!(bodies.try_more(&mut room, 600_000) && bodies.try_more(&mut room, LEAST - 600_000));
        assert!(!bodies.try_more(&mut room, 1));
        let group = room.split(700_000);
        assert_eq!((group.bytes(), room.bytes()), (700_000, LEAST - 700_000));
        room.shrink_to(1_000);
        drop(group);
        assert!(bodies.try_more(&mut room, LEAST - 1_000));
        assert_eq!(room.bytes(), LEAST);
    }

    #[test]
    fn the_largest_body_finds_room_some_time() {
        let settings = Settings { bodies_max: 1, body_max: 3 * LEAST, ..Settings::default() };
        assert_eq!(Bodies::new(&settings).large.all.available_permits(), 3 * LEAST);
    }
}
