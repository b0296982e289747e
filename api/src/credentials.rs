//! What stands behind a token or a key, remembered for a second: a caller's requests of one second cost one look-up.
//!
//! So a session or a key that ends is closed within [`FRESH`] everywhere, in the process that ends it at once. While
//! Postgres is away nobody can revoke a key either: those that were good go on being good for [`KEPT`], since intake
//! does not depend on Postgres. While Redis gives no answer the same holds for sessions: nobody can end one there, and
//! reads and commands are slower, not refused. What Redis does answer counts at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use taskflow_core::api_key::{self, Scope};
use taskflow_core::state::Role;
use taskflow_stores::postgres::api_keys::{self, Stored};
use taskflow_stores::postgres::silence;
use taskflow_stores::postgres::{PgPool, user_deeds};
use taskflow_stores::redis::Redis;
use taskflow_stores::redis::sessions::Session;
use taskflow_stores::{Kind, StoreError, clock, supervise};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::auth::{Caller, Credential};
use crate::brief::Brief;
use crate::problem::Problem;
use crate::{App, Stores};

/// How old an answer may be.
const FRESH: Duration = Duration::from_secs(1);
/// How old it may be while its store can't be asked.
const KEPT: Duration = Duration::from_secs(300);
/// Sessions and keys that are remembered.
const REMEMBERED: usize = 50_000;
/// Look-ups of keys at a time: invented keys must not take all connections.
const LOOK_UPS: usize = 4;
const PATIENCE: Duration = Duration::from_millis(500);
/// The same where there is nothing to fall back on.
const LONG_PATIENCE: Duration = Duration::from_secs(3);
/// After a store has not answered, it is not asked for this long about what is remembered.
const PAUSE: Duration = Duration::from_secs(2);
/// How long an answer of Redis may have been on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(5);
/// How often Redis is asked which of the remembered sessions have ended: no more than this much of an end that another
/// process was asked for can be forgotten when Redis goes away.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// How often the use of keys is written down.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// How often Postgres is asked for sessions that Redis has not ended yet.
const END_EVERY: Duration = Duration::from_secs(1);
const ENDINGS: i64 = 100;

pub(crate) struct Credentials {
    sessions: Brief<String, Session>,
    /// Sessions and users whose sessions were to end here: an answer that was on its way then does not bring them back.
    ended: Brief<String, ()>,
    /// Also those that there are not.
    keys: Brief<Uuid, Option<Arc<Stored>>>,
    look_ups: Semaphore,
    /// Places of those that are remembered: who invents keys takes none of them.
    known_look_ups: Semaphore,
    postgres: Silence,
    redis: Silence,
    /// When keys were used, to the minute, until it is written down.
    uses: Mutex<HashMap<Uuid, DateTime<Utc>>>,
}

/// Until when a store is not asked again.
struct Silence(Mutex<Instant>);

impl Silence {
    fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn begin(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + PAUSE;
    }

    fn lasts(&self) -> bool {
        Instant::now() < *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a credential stands for.
pub(crate) struct Identity {
    pub user: Uuid,
    pub role: Role,
    pub session: String,
    /// When the session ends by itself; none for an API key, which knows it itself.
    pub until: Option<DateTime<Utc>>,
    pub key: Option<Arc<api_key::ApiKey>>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            sessions: Brief::new(REMEMBERED, KEPT),
            ended: Brief::new(REMEMBERED, KEPT),
            keys: Brief::new(REMEMBERED, KEPT),
            look_ups: Semaphore::new(LOOK_UPS),
            known_look_ups: Semaphore::new(LOOK_UPS),
            postgres: Silence::new(),
            redis: Silence::new(),
            uses: Mutex::default(),
        }
    }
}

impl Credentials {
    /// Who it is, if that is known without asking a store.
    pub(crate) fn remembered(&self, credential: &Credential) -> Option<Result<Identity, Problem>> {
        match credential {
            Credential::Session(digest) => {
                let (session, age) = self.sessions.get(digest, Instant::now())?;
                (age <= FRESH).then(|| open_session(digest, Some(session)))
            }
            Credential::Key(id, digest) => {
                let (stored, age) = self.keys.get(id, Instant::now())?;
                (age <= FRESH).then(|| self.open_key(stored.as_deref(), digest))
            }
        }
    }

    /// Who it is, as the stores know it.
    pub(crate) async fn look_up(
        &self,
        stores: &Stores,
        credential: &Credential,
    ) -> Result<Identity, Problem> {
        match credential {
            Credential::Session(digest) => {
                let session = self.find_session(&stores.redis, digest).await?;
                open_session(digest, session)
            }
            Credential::Key(id, digest) => {
                let key = self.find_key(&stores.postgres, *id).await?;
                self.open_key(key.as_deref(), digest)
            }
        }
    }

    async fn find_session(&self, redis: &Redis, digest: &str) -> Result<Option<Session>, Problem> {
        let kept = self.kept_session(digest);
        if kept.is_some() && self.redis.lasts() {
            return Ok(kept);
        }
        let asked = redis.session(digest);
        let answer = match &kept {
            None => asked.await,
            // There is an answer to fall back on: no reason to wait for long.
            Some(_) => tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| {
                Err(StoreError::unavailable("redis", "look up a session", "no answer in time"))
            }),
        };
        match answer {
            Ok(Some(session)) => {
                self.sessions.put(digest.to_owned(), session.clone(), Instant::now());
                Ok(Some(session))
            }
            Ok(None) => {
                self.sessions.remove(digest);
                Ok(None)
            }
            Err(error) if error.kind == Kind::Unavailable && kept.is_some() => {
                self.redis.begin();
                // It may have ended here while Redis was asked.
                self.kept_session(digest).map_or_else(|| Err(error.into()), |session| Ok(Some(session)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A session that counts while Redis gives no answer.
    fn kept_session(&self, digest: &str) -> Option<Session> {
        let now = Instant::now();
        let (session, age) = self.sessions.get(digest, now)?;
        if self.ended.get(digest, now).is_some() {
            return None;
        }
        // Of a user's sessions, those that Redis has told of since are not meant.
        let end = self.ended.get(session.user_id.to_string().as_str(), now);
        end.is_none_or(|((), since)| age + ON_ITS_WAY < since).then_some(session)
    }

    /// Whether a key is good as Postgres knows it, or as it was remembered while Postgres is away.
    pub(crate) async fn is_key_good(&self, postgres: &PgPool, id: Uuid) -> Result<bool, Problem> {
        Ok(self.find_key(postgres, id).await?.is_some_and(|stored| stored.key.is_good(clock::now())))
    }

    async fn find_key(&self, postgres: &PgPool, id: Uuid) -> Result<Option<Arc<Stored>>, Problem> {
        let kept = || self.keys.get(&id, Instant::now());
        let is_known = matches!(kept(), Some((Some(_), _)));
        let (look_ups, patience) =
            if is_known { (&self.known_look_ups, PATIENCE) } else { (&self.look_ups, LONG_PATIENCE) };
        let turn = tokio::time::timeout(patience, look_ups.acquire()).await;
        let Ok(Ok(_turn)) = turn else {
            // Others ask too much: that says nothing of Postgres, and what is remembered must not count for longer.
            return Err(Problem::unavailable("too many API keys are looked up at the moment"));
        };
        let asked = async {
            // Somebody who was before us may have asked for the same, or found that nobody answers.
            match kept() {
                Some((stored, age)) if age <= FRESH => return Ok(stored),
                Some((Some(stored), _)) if self.postgres.lasts() => return Ok(Some(stored)),
                _ => {}
            }
            let stored = api_keys::find(postgres, id).await?.map(Arc::new);
            self.keys.put(id, stored.clone(), Instant::now());
            Ok::<_, StoreError>(stored)
        };
        match silence::within(patience, "look up an API key", asked).await {
            Err(error) if error.kind == Kind::Unavailable => {
                self.postgres.begin();
                match kept() {
                    Some((Some(stored), _)) => Ok(Some(stored)),
                    _ => Err(error.into()),
                }
            }
            answer => Ok(answer?),
        }
    }

    fn open_key(&self, stored: Option<&Stored>, digest: &[u8; 32]) -> Result<Identity, Problem> {
        let now = clock::now();
        let stored = stored.filter(|stored| api_key::same(&stored.digest, digest) && stored.key.is_good(now));
        let Some(Stored { key, .. }) = stored else {
            return Err(Problem::unauthorized("this API key is not (or no longer) valid"));
        };
        let minute = now.duration_trunc(TimeDelta::minutes(1)).unwrap_or(now);
        self.uses.lock().unwrap_or_else(PoisonError::into_inner).insert(key.id, minute);
        Ok(Identity {
            user: key.id,
            role: if key.has(Scope::Admin) { Role::Admin } else { Role::User },
            session: format!("api-key:{}", key.id),
            until: None,
            key: Some(Arc::new(key.clone())),
        })
    }

    /// Forgets a session that ends.
    pub(crate) fn forget_session(&self, digest: &str) {
        self.ended.put(digest.to_owned(), (), Instant::now());
        self.sessions.remove(digest);
    }

    /// Forgets the sessions of a user.
    pub(crate) fn forget_user(&self, user: Uuid) {
        self.ended.put(user.to_string(), (), Instant::now());
        self.sessions.remove_where(|_, session| session.user_id == user);
    }

    /// Forgets a key that has changed.
    pub(crate) fn forget_key(&self, key: Uuid) {
        self.keys.remove_where(|known, _| *known == key);
    }

    /// Forgets the sessions that Redis does not know any more.
    async fn forget_ended(&self, redis: &Redis) -> Result<(), StoreError> {
        for digest in redis.ended_sessions(&self.sessions.keys()).await? {
            self.sessions.remove(&digest);
        }
        Ok(())
    }

    /// Writes down when keys were used. What can't be written is tried again the next time.
    pub(crate) async fn note_uses(&self, postgres: &PgPool) {
        let uses = std::mem::take(&mut *self.uses.lock().unwrap_or_else(PoisonError::into_inner));
        let list: Vec<(Uuid, DateTime<Utc>)> = uses.iter().map(|(id, at)| (*id, *at)).collect();
        if let Err(error) = api_keys::note_use(postgres, &list).await {
            tracing::debug!(%error, "When API keys were used is written down later.");
            let mut newer = self.uses.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, at) in uses {
                newer.entry(id).or_insert(at);
            }
        }
    }
}

fn open_session(digest: &str, session: Option<Session>) -> Result<Identity, Problem> {
    let Some(session) = session.filter(|session| session.expires_at > clock::now()) else {
        return Err(Problem::unauthorized(
            "this token is not (or no longer) valid; log in with POST /v1/sessions",
        ));
    };
    Ok(Identity {
        user: session.user_id,
        role: session.role,
        session: digest.to_owned(),
        until: Some(session.expires_at),
        key: None,
    })
}

impl Identity {
    pub(crate) fn into_caller(self, ip: Option<std::net::IpAddr>, user_agent: Option<String>) -> Caller {
        let Self { user, role, session, until, key } = self;
        Caller { user, role, session, until, ip, user_agent, key }
    }
}

/// Starts what goes on beside the requests: noting the use of keys, ending sessions that Redis could not end at once.
pub(crate) fn start(app: &Arc<App>, stop: &CancellationToken) {
    let (noting, ending) = ((Arc::clone(app), stop.clone()), (Arc::clone(app), stop.clone()));
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        let ask = || async {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(ASK_EVERY) => {}
                }
                if let Err(error) = app.credentials.forget_ended(&app.stores.redis).await {
                    tracing::debug!(%error, "Which sessions have ended is asked later.");
                }
            }
        };
        supervise::forever("remembered_sessions", &stop, ask).await;
    });
    tokio::spawn(async move {
        let (app, stop) = noting;
        let note = || async {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(NOTE_EVERY) => {}
                }
                app.credentials.note_uses(&app.stores.postgres).await;
            }
        };
        supervise::forever("key_use", &stop, note).await;
    });
    tokio::spawn(async move {
        let (app, stop) = ending;
        let end = || async {
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(END_EVERY) => {}
                }
                if let Err(error) = app.end_sessions().await {
                    tracing::debug!(%error, "Sessions are ended later.");
                }
            }
        };
        supervise::forever("session_endings", &stop, end).await;
    });
}

impl App {
    /// Ends the sessions of users whose role or password has changed, and brings what is cached of them up to date.
    ///
    /// # Errors
    /// A store is away: the orders stay in Postgres, and somebody carries them out later.
    pub(crate) async fn end_sessions(&self) -> Result<(), StoreError> {
        let Stores { postgres, redis, .. } = &self.stores;
        let endings = user_deeds::endings(postgres, ENDINGS).await?;
        // First here: what Redis can't be told must not count meanwhile.
        endings.iter().for_each(|(_, user)| self.forget_user(user.id));
        let mut all = Ok(());
        for (version, user) in endings {
            let ended = async {
                redis.end_sessions(user.id, version).await?;
                redis.fence_permissions(user.id, version).await?;
                let changed = vec![taskflow_stores::redis::cache::user_entry(&user)];
                redis
                    .refresh(&taskflow_stores::redis::cache::Refresh { changed, ..Default::default() })
                    .await?;
                self.credentials.forget_user(user.id);
                user_deeds::ended(postgres, user.id, version).await
            };
            // One whose part of Redis is away keeps no other one's sessions.
            all = all.and(ended.await);
        }
        all
    }

    /// A user's sessions are over here, and their streams.
    pub(crate) fn forget_user(&self, user: Uuid) {
        self.credentials.forget_user(user);
        self.streams.hub.end_user(user);
    }

    /// A session is over here, and its streams.
    pub(crate) fn forget_session(&self, digest: &str) {
        self.credentials.forget_session(digest);
        self.streams.hub.end_session(digest);
    }
}
