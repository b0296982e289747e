//! Sessions, by the digest of their token; and for each user the set of its sessions, so that all can be ended.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use taskflow_core::cache_key;
use taskflow_core::state::Role;
use uuid::Uuid;

use super::Redis;
use crate::{Kind, StoreError};

/// Sessions of one user; the oldest ends when there is one more.
pub const SESSIONS_MAX: usize = 50;

/// Sessions in one round trip.
const CHUNK: usize = 200;

/// Who is logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    pub user_id: Uuid,
    pub role: Role,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    /// The user's version when it began: a change of role or password ends those that began before.
    #[serde(default)]
    pub version: i32,
}

/// Notes a session in its user's set, unless the user has changed since its version `ARGV[5]` was read. Answers nothing
/// if it has, else the digests of those that there is no room for.
const TRACK: &str = r"
if tonumber(redis.call('GET', KEYS[2]) or 0) > tonumber(ARGV[5]) then return false end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[5] .. ':' .. ARGV[3])
redis.call('PEXPIREAT', KEYS[1], ARGV[2])
local over = redis.call('ZCARD', KEYS[1]) - tonumber(ARGV[4])
if over <= 0 then return {} end
local out = redis.call('ZRANGE', KEYS[1], 0, over - 1)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, over - 1)
return out
";

/// Answers those of a user's sessions that began before a version. Who read the user before it can't add any more.
const END_ALL: &str = r"
if tonumber(redis.call('GET', KEYS[2]) or 0) < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
end
local out = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if tonumber(string.match(member, '^%d+')) < tonumber(ARGV[1]) then out[#out + 1] = member end
end
return out
";

impl Redis {
    /// Begins a session; `false` if the user's role or password has changed since the session's version.
    pub async fn begin_session(&self, token_digest: &str, session: &Session) -> Result<bool, StoreError> {
        let (set, fence) = self.session_keys(session.user_id);
        let mut connection = self.connection().await?;
        // Into the set first: a session that is in no set would outlive a change of its user.
        let crowded_out: Option<Vec<String>> = redis::cmd("EVAL")
            .arg(TRACK)
            .arg(2)
            .arg(set)
            .arg(&fence)
            .arg(session.created_at.timestamp_millis())
            .arg(session.expires_at.timestamp_millis())
            .arg(token_digest)
            .arg(SESSIONS_MAX)
            .arg(session.version)
            .query_async(&mut connection)
            .await
            .map_err(self.failed("note a session"))?;
        let Some(crowded_out) = crowded_out else { return Ok(false) };
        self.put_session(token_digest, session).await?;
        for member in crowded_out {
            self.remove_session(digest_in(&member)).await?;
        }
        // A change of the user in between has raised the fence and then removed what it found: perhaps before this
        // session was there.
        let fenced: Option<i32> = redis::cmd("GET")
            .arg(&fence)
            .query_async(&mut connection)
            .await
            .map_err(self.failed("look at a session's fence"))?;
        if fenced.is_some_and(|fenced| fenced > session.version) {
            self.remove_session(token_digest).await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// Keeps a session.
    pub async fn put_session(&self, token_digest: &str, session: &Session) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let value = serde_json::to_string(session)
            .map_err(|error| StoreError::new("redis", "encode a session", Kind::Bug, error))?;
        redis::cmd("SET")
            .arg(self.key(&cache_key::session(token_digest)))
            .arg(value)
            .arg("EX")
            .arg(cache_key::SESSION_TTL_S)
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("keep a session"))
    }

    /// The session of a token; `None` if there is none (any more).
    pub async fn session(&self, token_digest: &str) -> Result<Option<Session>, StoreError> {
        let mut connection = self.connection().await?;
        let value: Option<String> = redis::cmd("GET")
            .arg(self.key(&cache_key::session(token_digest)))
            .query_async(&mut connection)
            .await
            .map_err(self.failed("look up a session"))?;
        // What can't be read is no session: its holder logs in again.
        Ok(value.and_then(|value| serde_json::from_str(&value).ok()))
    }

    /// Those of some sessions that are not there any more.
    pub async fn ended_sessions(&self, token_digests: &[String]) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connection().await?;
        let mut ended = Vec::new();
        for some in token_digests.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for digest in some {
                pipeline.cmd("EXISTS").arg(self.key(&cache_key::session(digest)));
            }
            let there: Vec<bool> =
                pipeline.query_async(&mut connection).await.map_err(self.failed("look for sessions"))?;
            ended
                .extend(some.iter().zip(there).filter(|(_, there)| !there).map(|(digest, _)| digest.clone()));
        }
        Ok(ended)
    }

    /// Ends a session; `false` if there was none.
    pub async fn end_session(&self, token_digest: &str) -> Result<bool, StoreError> {
        let Some(session) = self.session(token_digest).await? else { return Ok(false) };
        let ended = self.remove_session(token_digest).await?;
        self.untrack(session.user_id, &[format!("{}:{token_digest}", session.version)]).await?;
        Ok(ended)
    }

    /// Ends every session of a user that began before the user's version `version`. Repeatable: what fails half-way is
    /// done by the next call.
    pub async fn end_sessions(&self, user: Uuid, version: i32) -> Result<usize, StoreError> {
        let (set, fence) = self.session_keys(user);
        let mut connection = self.connection().await?;
        let members: Vec<String> = redis::cmd("EVAL")
            .arg(END_ALL)
            .arg(2)
            .arg(set)
            .arg(fence)
            .arg(version)
            .arg(cache_key::FENCE_TTL_S)
            .query_async(&mut connection)
            .await
            .map_err(self.failed("end sessions"))?;
        // First the sessions, then what knows of them: a call that dies in between loses none.
        for member in &members {
            self.remove_session(digest_in(member)).await?;
        }
        self.untrack(user, &members).await?;
        Ok(members.len())
    }

    async fn untrack(&self, user: Uuid, members: &[String]) -> Result<(), StoreError> {
        if members.is_empty() {
            return Ok(());
        }
        let mut connection = self.connection().await?;
        redis::cmd("ZREM")
            .arg(self.session_keys(user).0)
            .arg(members)
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("forget sessions"))
    }

    async fn remove_session(&self, token_digest: &str) -> Result<bool, StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("UNLINK")
            .arg(self.key(&cache_key::session(token_digest)))
            .query_async(&mut connection)
            .await
            .map_err(self.failed("end a session"))
    }

    /// A user's set and its fence. The braces make a cluster keep both in one place: a script needs both.
    fn session_keys(&self, user: Uuid) -> (String, String) {
        let set = self.key(&cache_key::sessions_of(user));
        let fence = format!("{{{set}}}:fence");
        (set, fence)
    }
}

/// Members of the set are a version and a digest.
fn digest_in(member: &str) -> &str {
    member.split_once(':').map_or(member, |(_, digest)| digest)
}
