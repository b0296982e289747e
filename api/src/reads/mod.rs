//! Reads through the caches. What is promised: after a command's receipt says `applied`, no read shows the state before
//! it. ARCHITECTURE.md, "Reads", says how.

mod changes;
mod flights;
mod gather;
mod moment;
mod shelf;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use taskflow_core::window::Position;
use taskflow_core::{cache_key, early, permission};
use taskflow_stores::postgres::PgPool;
use taskflow_stores::postgres::moment::UserState;
use taskflow_stores::redis::Redis;
use taskflow_stores::redis::cache::{self, Entry};
use taskflow_stores::redis::document::{Document, Life};
use taskflow_stores::{StoreError, clock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::problem::Problem;
use flights::Flights;
pub(crate) use moment::Depends;
use moment::Moment;
use shelf::{Held, Shelf, count};

/// Lists and counts that are made at a time; each occupies a connection.
const MAKERS: usize = 4;
/// The same of searches, which may take seconds: they must not keep others from their lists.
const SEARCHERS: usize = 2;
/// The same of pages of the audit trail and of tasks' changes: a MongoDB that is slow must not either.
const PAGERS: usize = 4;
/// How long a reader waits for its turn to make one.
const TURN: Duration = Duration::from_secs(5);

pub(crate) struct Reads {
    moment: Moment,
    shelf: Arc<Shelf>,
    flights: Flights,
    makers: Arc<Semaphore>,
    searchers: Arc<Semaphore>,
    pagers: Arc<Semaphore>,
    pub postgres: PgPool,
}

/// What a reader is given.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Differs whenever the body does.
    pub etag: String,
    pub body: Bytes,
    /// It came from the cache.
    pub hit: bool,
}

/// The cache of searches, as the metric calls it.
pub(crate) const SEARCH: &str = "search";
/// The cache of pages of the audit trail.
pub(crate) const PAGES: &str = "response";

/// An answer that is made of many rows.
pub(crate) struct Wanted {
    /// As the metric calls the cache.
    pub cache: &'static str,
    pub key: String,
    pub ttl_s: u64,
    pub depends: Depends,
}

/// Such an answer, just made.
pub(crate) struct Made {
    pub position: Position,
    pub body: Vec<u8>,
    /// It does not hold longer than this, whatever its time to live.
    pub holds_until: Option<DateTime<Utc>>,
}

impl Reads {
    pub(crate) fn start(
        postgres: &PgPool,
        redis: &Redis,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Self {
        Self {
            moment: Moment::start(postgres, stop),
            shelf: Arc::new(Shelf::new(redis.clone(), patience)),
            flights: Flights::default(),
            makers: Arc::new(Semaphore::new(MAKERS)),
            searchers: Arc::new(Semaphore::new(SEARCHERS)),
            pagers: Arc::new(Semaphore::new(PAGERS)),
            postgres: postgres.clone(),
        }
    }

    /// A task, if there is one that may be shown to somebody: by its creator and its assignee.
    pub(crate) async fn task(
        &self,
        id: Uuid,
        may: impl Fn(Uuid, Option<Uuid>) -> bool,
    ) -> Result<Option<Answer>, StoreError> {
        let key = cache_key::task(id);
        let (state, held) = tokio::join!(self.moment.task(id), self.shelf.look(&key));
        let Some(state) = state?.filter(|state| !state.deleted && may(state.creator, state.assignee)) else {
            return Ok(None);
        };
        if let Some(answer) = entity("task", state.version, held) {
            return Ok(Some(answer));
        }
        let task = self.moment.task_row(id).await?;
        let Some(task) = task.filter(|t| t.deleted_at.is_none() && may(t.creator, t.assignee)) else {
            return Ok(None);
        };
        Ok(Some(self.put(task.version, cache::task_entry(&task)).await))
    }

    /// A user, without what is secret.
    pub(crate) async fn user(&self, id: Uuid) -> Result<Option<Answer>, StoreError> {
        let key = cache_key::profile(id);
        let (state, held) = tokio::join!(self.moment.user(id), self.shelf.look(&key));
        let Some(state) = state? else { return Ok(None) };
        if let Some(answer) = entity("profile", state.version, held) {
            return Ok(Some(answer));
        }
        let Some(user) = self.moment.user_row(id).await? else { return Ok(None) };
        Ok(Some(self.put(user.version, cache::user_entry(&user)).await))
    }

    /// What a user may do, as JSON, and whether that came from the cache; `None` if there is no such user.
    pub(crate) async fn permissions(&self, id: Uuid) -> Result<Option<(String, bool)>, StoreError> {
        let (state, held) = tokio::join!(self.moment.user(id), self.shelf.permissions(id));
        let Some(UserState { version, role }) = state? else { return Ok(None) };
        let text = serde_json::to_string(permission::of(role)).unwrap_or_default();
        // Whatever a Redis holds that was read-only, flushed or set back meanwhile: it counts if it is true.
        let (result, hit) = match held {
            Some(Some(cached)) if cached == text => ("hit", true),
            Some(Some(_)) => ("stale", false),
            Some(None) => ("miss", false),
            None => ("away", false),
        };
        count("permissions", result);
        if !hit {
            self.shelf.put_permissions(id, version, text.clone()).await;
        }
        Ok(Some((text, hit)))
    }

    async fn put(&self, version: i32, entry: Entry) -> Answer {
        let body = Bytes::from(entry.value.clone());
        let ttl_s = early::jittered_s(entry.ttl_s, rand::random());
        self.shelf.put(Entry { ttl_s, ..entry }).await;
        Answer { etag: version.to_string(), body, hit: false }
    }

    /// An answer of many rows: from the cache if it still holds, else made anew, once for all who want it.
    pub(crate) async fn document<F>(
        &self,
        wanted: Wanted,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Answer, Problem>
    where
        F: Future<Output = Result<Made, Problem>> + Send + 'static,
    {
        let (since, held) = tokio::join!(self.moment.since(wanted.depends), self.shelf.look(&wanted.key));
        let since = since?;
        let now_ms = clock::now().timestamp_millis();
        let (result, document) = match held {
            Held::Away => ("away", None),
            Held::Nothing => ("miss", None),
            Held::Value(bytes) => match Document::of_stored(&bytes) {
                Some(kept) if kept.position >= since && kept.ends_ms > now_ms => ("hit", Some(kept)),
                _ => ("stale", None),
            },
        };
        count(wanted.cache, result);
        if let Some(kept) = document {
            if early::is_due(now_ms, kept.ends_ms, kept.took_ms, rand::random()) {
                let (flights, key) = (self.flights.clone(), wanted.key.clone());
                let made = self.make(wanted, make);
                tokio::spawn(async move { flights.fly(&key, since, made).await.map(drop) });
            }
            return Ok(Answer { etag: kept.etag, body: kept.body, hit: true });
        }
        let key = wanted.key.clone();
        let made = self.flights.fly(&key, since, self.make(wanted, make)).await?;
        Ok(Answer { etag: made.etag.clone(), body: made.body.clone(), hit: false })
    }

    /// Makes an answer and keeps it.
    fn make<F>(
        &self,
        wanted: Wanted,
        make: impl FnOnce() -> F + Send + 'static,
    ) -> impl Future<Output = Result<Arc<Document>, Problem>> + Send + 'static
    where
        F: Future<Output = Result<Made, Problem>> + Send + 'static,
    {
        let makers = match wanted.cache {
            SEARCH => &self.searchers,
            PAGES => &self.pagers,
            _ => &self.makers,
        };
        let (makers, shelf) = (Arc::clone(makers), Arc::clone(&self.shelf));
        async move {
            let turn = turn(makers).await?;
            let start = Instant::now();
            let Made { position, body, holds_until } = make().await?;
            drop(turn);
            let ttl_s = early::jittered_s(wanted.ttl_s, rand::random());
            let life = Life { ttl_s, holds_until };
            let document = Document::made(position, body, start.elapsed(), clock::now(), life);
            if let Some(entry) = document.entry(wanted.key, ttl_s) {
                shelf.put(entry).await;
            }
            Ok(Arc::new(document))
        }
    }
}

/// Waits for a turn to make something.
async fn turn(makers: Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
    let turn = tokio::time::timeout(TURN, makers.acquire_owned()).await;
    let busy = || Problem::unavailable("too many lists, searches and pages are being made");
    turn.ok().and_then(Result::ok).ok_or_else(busy)
}

/// A cached entity, if it is the present one.
fn entity(cache: &'static str, version: i32, held: Held) -> Option<Answer> {
    let (result, body) = match held {
        Held::Away => ("away", None),
        Held::Nothing => ("miss", None),
        Held::Value(bytes) if version_of(&bytes) == Some(version) => ("hit", Some(bytes)),
        Held::Value(_) => ("stale", None),
    };
    count(cache, result);
    body.map(|body| Answer { etag: version.to_string(), body: body.into(), hit: true })
}

/// The version at the start of our JSON.
fn version_of(bytes: &[u8]) -> Option<i32> {
    let rest = bytes.strip_prefix(b"{\"version\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}
