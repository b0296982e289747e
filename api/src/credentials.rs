//! What stands behind a token or a key, remembered for a second: a caller's requests of one second cost one look-up.
//!
//! So a session or a key that ends is closed within [`FRESH`] everywhere, in the process that ends it at once. While
//! Postgres is away nobody can revoke a key either: those that were good go on being good for [`KEPT`], since intake
//! does not depend on Postgres. Sessions are Redis's alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use taskflow_core::api_key::{self, Scope};
use taskflow_core::state::Role;
use taskflow_stores::postgres::api_keys::{self, Stored};
use taskflow_stores::postgres::{PgPool, user_deeds};
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
/// How old it may be while Postgres can't be asked.
const KEPT: Duration = Duration::from_secs(300);
/// Sessions and keys that are remembered.
const REMEMBERED: usize = 50_000;
/// Look-ups of keys at a time: invented keys must not take all connections.
const LOOK_UPS: usize = 4;
const PATIENCE: Duration = Duration::from_millis(500);
/// After Postgres has not answered, it is not asked about a key that is remembered for this long.
const PAUSE: Duration = Duration::from_secs(2);
/// How often the use of keys is written down.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// How often Postgres is asked for sessions that Redis has not ended yet.
const END_EVERY: Duration = Duration::from_secs(1);
const ENDINGS: i64 = 100;

pub(crate) struct Credentials {
    sessions: Brief<String, Session>,
    /// Also those that there are not.
    keys: Brief<Uuid, Option<Arc<Stored>>>,
    look_ups: Semaphore,
    silent_until: Mutex<Instant>,
    /// When keys were used, to the minute, until it is written down.
    uses: Mutex<HashMap<Uuid, DateTime<Utc>>>,
}

/// What a credential stands for.
pub(crate) struct Identity {
    pub user: Uuid,
    pub role: Role,
    pub session: String,
    pub key: Option<Arc<api_key::ApiKey>>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            sessions: Brief::new(REMEMBERED, FRESH),
            keys: Brief::new(REMEMBERED, KEPT),
            look_ups: Semaphore::new(LOOK_UPS),
            silent_until: Mutex::new(Instant::now()),
            uses: Mutex::default(),
        }
    }
}

impl Credentials {
    /// Who it is, if that is known without asking a store.
    pub(crate) fn remembered(&self, credential: &Credential) -> Option<Result<Identity, Problem>> {
        match credential {
            Credential::Session(digest) => {
                let (session, _) = self.sessions.get(digest, Instant::now())?;
                Some(open_session(digest, Some(session)))
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
                let session = stores.redis.session(digest).await?;
                if let Some(session) = &session {
                    self.sessions.put(digest.clone(), session.clone(), Instant::now());
                }
                open_session(digest, session)
            }
            Credential::Key(id, digest) => {
                let key = self.find_key(&stores.postgres, *id).await?;
                self.open_key(key.as_deref(), digest)
            }
        }
    }

    async fn find_key(&self, postgres: &PgPool, id: Uuid) -> Result<Option<Arc<Stored>>, Problem> {
        let kept = || self.keys.get(&id, Instant::now());
        let asked = async {
            let Ok(_turn) = self.look_ups.acquire().await else { return Ok(None) };
            // Somebody who was before us may have asked for the same, or found that nobody answers.
            match kept() {
                Some((stored, age)) if age <= FRESH => return Ok(stored),
                Some((Some(stored), _)) if self.is_silent() => return Ok(Some(stored)),
                _ => {}
            }
            let stored = api_keys::find(postgres, id).await?.map(Arc::new);
            self.keys.put(id, stored.clone(), Instant::now());
            Ok(stored)
        };
        let silence = || StoreError::unavailable("postgres", "look up an API key", "no answer in time");
        match tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| Err(silence())) {
            Err(error) if error.kind == Kind::Unavailable => {
                *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + PAUSE;
                match kept() {
                    Some((Some(stored), _)) => Ok(Some(stored)),
                    _ => Err(error.into()),
                }
            }
            answer => Ok(answer?),
        }
    }

    fn is_silent(&self) -> bool {
        Instant::now() < *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner)
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
            key: Some(Arc::new(key.clone())),
        })
    }

    /// Forgets a session that has ended.
    pub(crate) fn forget_session(&self, digest: &str) {
        self.sessions.remove_where(|known, _| known == digest);
    }

    /// Forgets the sessions of a user.
    pub(crate) fn forget_user(&self, user: Uuid) {
        self.sessions.remove_where(|_, session| session.user_id == user);
    }

    /// Forgets a key that has changed.
    pub(crate) fn forget_key(&self, key: Uuid) {
        self.keys.remove_where(|known, _| *known == key);
    }

    /// Writes down when keys were used. What can't be written is tried again the next time.
    async fn note_uses(&self, postgres: &PgPool) {
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
    Ok(Identity { user: session.user_id, role: session.role, session: digest.to_owned(), key: None })
}

impl Identity {
    pub(crate) fn into_caller(self, ip: Option<std::net::IpAddr>, user_agent: Option<String>) -> Caller {
        let Self { user, role, session, key } = self;
        Caller { user, role, session, ip, user_agent, key }
    }
}

/// Starts what goes on beside the requests: noting the use of keys, ending sessions that Redis could not end at once.
pub(crate) fn start(app: &Arc<App>, stop: &CancellationToken) {
    let (noting, ending) = ((Arc::clone(app), stop.clone()), (Arc::clone(app), stop.clone()));
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
        for (version, user) in user_deeds::endings(postgres, ENDINGS).await? {
            redis.end_sessions(user.id, version).await?;
            redis.fence_permissions(user.id, version).await?;
            let changed = vec![taskflow_stores::redis::cache::user_entry(&user)];
            redis.refresh(&taskflow_stores::redis::cache::Refresh { changed, ..Default::default() }).await?;
            self.credentials.forget_user(user.id);
            user_deeds::ended(postgres, user.id, version).await?;
        }
        Ok(())
    }
}
