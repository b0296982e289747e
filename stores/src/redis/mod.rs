//! Redis: caches, sessions, and the channel on which receipts are announced.
//!
//! Nothing here is the truth: when Redis is away, reads are slower and logins wait, and that is all.

pub mod cache;
pub mod receipts;
pub mod sessions;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, ErrorKind, RedisError};
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;

use crate::{Kind, StoreError};

const STORE: &str = "redis";

/// How to reach Redis.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `redis://:password@host:port/0`
    pub url: String,
    /// Put before every key: several installations can share a server.
    pub key_prefix: String,
    /// How long a call waits for its answer, in milliseconds.
    pub response_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { url: "redis://127.0.0.1:6379/0".into(), key_prefix: String::new(), response_timeout_ms: 2_000 }
    }
}

/// One shared connection that mends itself; calls of many tasks travel in it side by side.
#[derive(Clone)]
pub struct Redis {
    client: Client,
    /// Made at the first call, so that a process starts while Redis is away; made anew after a call without an answer.
    manager: Arc<Mutex<Arc<OnceCell<ConnectionManager>>>>,
    prefix: Arc<str>,
    response_timeout: Duration,
}

/// Prepares a client.
///
/// # Errors
/// [`Kind::Bug`] when the URL can't be understood.
pub fn connect(settings: &Settings) -> Result<Redis, StoreError> {
    let client = Client::open(settings.url.as_str()).map_err(|error| {
        StoreError::new(
            STORE,
            "read redis.url",
            Kind::Bug,
            format!("{error}; expected redis://:password@host:port/0"),
        )
    })?;
    Ok(Redis {
        client,
        manager: Arc::default(),
        prefix: settings.key_prefix.as_str().into(),
        response_timeout: Duration::from_millis(settings.response_timeout_ms),
    })
}

impl Redis {
    /// A key under this installation's prefix.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    pub(crate) async fn connection(&self) -> Result<ConnectionManager, StoreError> {
        let config = ConnectionManagerConfig::new()
            .set_response_timeout(Some(self.response_timeout))
            .set_connection_timeout(Some(self.response_timeout))
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        let cell = Arc::clone(&self.manager.lock().unwrap_or_else(PoisonError::into_inner));
        let manager = cell
            .get_or_try_init(|| self.client.get_connection_manager_with_config(config))
            .await
            .map_err(failed("connect"))?;
        Ok(manager.clone())
    }

    /// Says what a failed call means. A connection that gives no answer may be half open: the client library would keep
    /// it for as long as the kernel does, so the next call makes a new one.
    pub(crate) fn failed(&self, call: &'static str) -> impl Fn(RedisError) -> StoreError + use<> {
        let manager = Arc::clone(&self.manager);
        move |error| {
            if error.is_timeout() {
                *manager.lock().unwrap_or_else(PoisonError::into_inner) = Arc::default();
            }
            failed(call)(error)
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Asks the server for a sign of life.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let ping = async {
            let mut connection = self.connection().await?;
            redis::cmd("PING").query_async::<()>(&mut connection).await.map_err(self.failed("probe"))
        };
        match tokio::time::timeout(Duration::from_secs(3), ping).await {
            Ok(result) => result,
            Err(_) => Err(StoreError::unavailable(STORE, "probe", "no answer within 3 s")),
        }
    }

    /// The server's version, such as `7.0.15`.
    pub async fn version(&self) -> Result<String, StoreError> {
        Ok(self.info("server", "redis_version").await?.unwrap_or_else(|| "unknown".into()))
    }

    /// One value of `INFO`.
    pub async fn info(&self, section: &str, name: &str) -> Result<Option<String>, StoreError> {
        let mut connection = self.connection().await?;
        let info: String = redis::cmd("INFO")
            .arg(section)
            .query_async(&mut connection)
            .await
            .map_err(self.failed("read the server's state"))?;
        let found = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(found.map(|value| value.trim().to_owned()))
    }
}

pub(crate) fn failed(call: &'static str) -> impl Fn(RedisError) -> StoreError {
    move |error| {
        let kind = match error.kind() {
            ErrorKind::InvalidClientConfig
            | ErrorKind::AuthenticationFailed
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::Parse => Kind::Bug,
            _ => Kind::Unavailable,
        };
        StoreError::new(STORE, call, kind, error)
    }
}
