//! Room for the bodies of requests: whatever callers send at once, it takes bounded memory.
//!
//! A request has room for its body before the body is read, and keeps it until it is answered: what is made of the body
//! grows with it. Small bodies have a part of their own, so that a flood of large ones does not shut them out. Who finds
//! no room waits a moment, with what was sent still on the caller's side of the connection, and is then told to come
//! back. Streams of JSON lines take room as they go (`routes/ndjson.rs`).
//!
//! Who has not said yet who it is has little room, apart from all others': a crowd of slow logins takes nothing from
//! those who are known.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use crate::Settings;
use crate::authority::{self, Need};
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
/// How long a body may take to arrive; one that comes slowly keeps its room from others.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);
/// How long the rest of a refused body is taken and dropped: a caller that is still sending would not see the answer.
const DISCARD: Duration = Duration::from_secs(2);
/// Requests whose body is dropped so; the connections of others end without.
const DISCARDED_AT_ONCE: usize = 32;

/// All room there is.
pub(crate) struct Bodies {
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    open: Arc<Semaphore>,
    discarded: Semaphore,
}

/// Bytes that a request has room for.
#[derive(Debug, Default)]
pub(crate) struct Room {
    /// Of the small bodies, or of those of open calls.
    small: Option<OwnedSemaphorePermit>,
    large: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(settings: &Settings) -> Self {
        // The largest body must find room some time, and any piece of a stream.
        let large = settings.bodies_max.max(settings.body_max).clamp(LEAST, u32::MAX as usize);
        Self {
            small: Arc::new(Semaphore::new((large / SMALL_PART).max(SMALL))),
            large: Arc::new(Semaphore::new(large)),
            open: Arc::new(Semaphore::new(OPEN_ROOM)),
            discarded: Semaphore::new(DISCARDED_AT_ONCE),
        }
    }

    /// Room for a body of this size, waited for no longer than a moment.
    async fn take(&self, bytes: usize) -> Option<Room> {
        let mut room = Room::default();
        if bytes > SMALL {
            return self.more(&mut room, bytes).await.then_some(room);
        }
        let taken = timeout(PATIENCE, Arc::clone(&self.small).acquire_many_owned(bytes as u32)).await;
        room.small = Some(taken.ok()?.ok()?);
        Some(room)
    }

    /// Room for the body of an open call, at most [`OPEN`] bytes.
    async fn take_open(&self, bytes: usize) -> Option<Room> {
        let taken = timeout(PATIENCE, Arc::clone(&self.open).acquire_many_owned(bytes as u32)).await;
        Some(Room { small: Some(taken.ok()?.ok()?), large: None })
    }

    /// So much more room, if it is there now.
    pub(crate) fn try_more(&self, room: &mut Room, bytes: usize) -> bool {
        let taken = Arc::clone(&self.large).try_acquire_many_owned(bytes as u32).ok();
        room.add(taken)
    }

    /// So much more room, waited for no longer than a moment.
    pub(crate) async fn more(&self, room: &mut Room, bytes: usize) -> bool {
        let taken = timeout(PATIENCE, Arc::clone(&self.large).acquire_many_owned(bytes as u32)).await;
        room.add(taken.ok().and_then(Result::ok))
    }
}

impl Room {
    fn add(&mut self, more: Option<OwnedSemaphorePermit>) -> bool {
        let Some(more) = more else { return false };
        match &mut self.large {
            Some(large) => large.merge(more),
            None => self.large = Some(more),
        }
        true
    }

    fn bytes(&self) -> usize {
        [&self.small, &self.large].into_iter().flatten().map(OwnedSemaphorePermit::num_permits).sum()
    }

    /// Parts with room for so many bytes, or what there is.
    pub(crate) fn split(&mut self, bytes: usize) -> Self {
        let large = self.large.as_mut().and_then(|large| large.split(bytes.min(large.num_permits())));
        Self { small: None, large }
    }

    /// Gives back what is more than so many bytes.
    pub(crate) fn shrink_to(&mut self, bytes: usize) {
        let more = self.bytes().saturating_sub(bytes);
        drop(self.split(more));
    }
}

/// Finds room for a request's body, and keeps it until the request is answered.
pub(crate) async fn bound(app: Arc<crate::App>, request: Request, next: Next) -> Response {
    // JSON lines are taken as they come.
    let stream = is_stream(&request);
    let (parts, body) = request.into_parts();
    let size = body.size_hint().exact();
    let route = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    // So it is where there is no route.
    let open = matches!(authority::need(&parts.method, route), None | Some(Need::Open | Need::Login));
    if size == Some(0) || stream {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let most = if open { OPEN } else { app.settings.body_max };
    let room = match size {
        Some(size) if size > most as u64 => Err(too_large(open, most)),
        // One that does not tell its length has room for the longest.
        size if open => {
            let bytes = size.map_or(most, |size| size as usize);
            app.bodies.take_open(bytes).await.ok_or_else(Problem::busy)
        }
        Some(size) => app.bodies.take(size as usize).await.ok_or_else(Problem::busy),
        // Of a body that does not tell its length, the room grows with what comes.
        None => Ok(Room::default()),
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
    let arriving = Arriving {
        app: Arc::clone(&app),
        chunks: body.into_data_stream().boxed(),
        read: 0,
        deadline: Instant::now() + if open { OPEN_ARRIVES_WITHIN } else { ARRIVES_WITHIN },
        most_open: open.then_some(most),
        room: Arc::clone(&room),
        refused: Arc::clone(&refused),
    };
    let body = Body::from_stream(stream::try_unfold(arriving, Arriving::next));
    let response = next.run(Request::from_parts(parts, body)).await;
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
        let mut room = std::mem::take(&mut *self.room.lock().unwrap_or_else(PoisonError::into_inner));
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
        let large = bodies.take(1_900_000).await;
        assert!(large.is_some());
        let more = bodies.take(200_000);
        assert!(timeout(Duration::from_millis(20), more).await.is_err());
        assert!(bodies.take(60_000).await.is_some());
        drop(large);
        assert!(bodies.take(200_000).await.is_some());
    }

    #[tokio::test]
    async fn open_calls_take_no_room_of_the_others() {
        let bodies = bodies(LEAST);
        let mut held = Vec::new();
        for _ in 0..OPEN_ROOM / OPEN {
            held.push(bodies.take_open(OPEN).await.unwrap());
        }
        assert!(timeout(Duration::from_millis(20), bodies.take_open(1)).await.is_err());
        assert!(bodies.take(SMALL).await.is_some() && bodies.take(LEAST).await.is_some());
    }

    #[test]
    fn room_is_given_back_in_parts() {
        let bodies = bodies(LEAST);
        let mut room = Room::default();
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
        assert_eq!(Bodies::new(&settings).large.available_permits(), 3 * LEAST);
    }
}
