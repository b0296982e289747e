//! Sessions, by the digest of their token.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use taskflow_core::cache_key;
use taskflow_core::state::Role;
use uuid::Uuid;

use super::Redis;
use crate::{Kind, StoreError};

/// Who is logged in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    pub user_id: Uuid,
    pub role: Role,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
}

impl Redis {
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

    /// Ends a session; `false` if there was none.
    pub async fn end_session(&self, token_digest: &str) -> Result<bool, StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("UNLINK")
            .arg(self.key(&cache_key::session(token_digest)))
            .query_async(&mut connection)
            .await
            .map_err(self.failed("end a session"))
    }
}
