//! Redis: caches, sessions, and the channel on which receipts are announced.
//!
//! Nothing here is the truth: when Redis is away, reads are slower and logins wait, and that is all.
//!
//! One server or a cluster: [`connection`] hides which. Who writes a call sees to three things. Keys go through
//! [`Redis::key`]. The keys of one script or transaction share a hash tag, or the script takes one key; a plain pipeline
//! may hold any. A script goes as `EVAL` with its text: a node that has just become master knows none by its digest.

pub mod answers;
pub mod backup;
pub mod cache;
pub(crate) mod connection;
pub mod document;
pub mod limits;
pub mod logins;
pub mod orphans;
pub mod permissions;
pub mod receipts;
pub mod sessions;
pub mod sockets;
pub mod upkeep;
pub mod warmth;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};
use serde::{Deserialize, Serialize};

use crate::{Kind, StoreError};
use connection::{Connection, Keeper};

const STORE: &str = "redis";

/// How to reach Redis.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `redis://:password@host:port/0`. Several, divided by commas, are nodes of one cluster.
    pub url: String,
    /// Whether the address is that of a cluster though it is only one.
    pub cluster: bool,
    /// Put before every key: several installations can share a server.
    pub key_prefix: String,
    /// How long a call waits for its answer, in milliseconds.
    pub response_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "redis://127.0.0.1:6379/0".into(),
            cluster: false,
            key_prefix: String::new(),
            response_timeout_ms: 2_000,
        }
    }
}

/// One shared connection that mends itself; calls of many tasks travel in it side by side.
#[derive(Clone)]
pub struct Redis {
    keeper: Arc<Keeper>,
    prefix: Arc<str>,
    response_timeout: Duration,
}

/// What a cluster says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterState {
    /// Every slot is served.
    pub ok: bool,
    pub masters: u32,
    pub nodes: u32,
}

/// Prepares a client.
///
/// # Errors
/// [`Kind::Bug`] when the URL can't be understood, or a cluster's prefix has braces.
pub fn connect(settings: &Settings) -> Result<Redis, StoreError> {
    let keeper = Keeper::new(settings)?;
    if keeper.is_cluster() && settings.key_prefix.contains(['{', '}']) {
        // There they say which part of a key decides where it lies, and ours say that already.
        let detail = format!(
            "redis.key_prefix: {:?} must not have braces where Redis is a cluster",
            settings.key_prefix
        );
        return Err(StoreError::new("redis", "prepare a client", Kind::Bug, detail));
    }
    Ok(Redis {
        keeper,
        prefix: settings.key_prefix.as_str().into(),
        response_timeout: Duration::from_millis(settings.response_timeout_ms),
    })
}

impl Redis {
    /// A key under this installation's prefix.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Whether keys lie on several servers: then the keys of one script must share a slot.
    pub(crate) fn is_cluster(&self) -> bool {
        self.keeper.is_cluster()
    }

    /// What commands, pipelines and scripts are sent over. Made at the first call, so that a process starts while Redis
    /// is away.
    pub(crate) async fn connection(&self) -> Result<Connection, StoreError> {
        self.keeper.connection().await
    }

    /// Says what a failed call means, and has the connection made anew where that may help.
    pub(crate) fn failed(&self, call: &'static str) -> impl Fn(RedisError) -> StoreError + use<> {
        let keeper = Arc::clone(&self.keeper);
        move |error| {
            keeper.note(&error);
            failed(call)(error)
        }
    }

    /// Asks the server for a sign of life; of a cluster, every master.
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

    /// One value of `INFO`. Of a cluster those of all masters, divided by commas, each once.
    pub async fn info(&self, section: &str, name: &str) -> Result<Option<String>, StoreError> {
        let mut connection = self.connection().await?;
        let mut ask = redis::cmd("INFO");
        ask.arg(section);
        let told = if self.is_cluster() {
            let told = ask.query_async::<HashMap<String, String>>(&mut connection).await;
            told.map(|told| told.into_values().collect())
        } else {
            ask.query_async::<String>(&mut connection).await.map(|told| vec![told])
        };
        let told = told.map_err(self.failed("read the server's state"))?;
        let found: BTreeSet<&str> = told
            .iter()
            .filter_map(|told| told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')))
            .map(str::trim)
            .collect();
        Ok((!found.is_empty()).then(|| found.into_iter().collect::<Vec<_>>().join(", ")))
    }

    /// What the cluster says of itself; `None` of a single server.
    pub async fn cluster_state(&self) -> Result<Option<ClusterState>, StoreError> {
        if !self.is_cluster() {
            return Ok(None);
        }
        let mut connection = self.connection().await?;
        let told: String = redis::cmd("CLUSTER")
            .arg("INFO")
            .query_async(&mut connection)
            .await
            .map_err(self.failed("read the cluster's state"))?;
        let value = |name| told.lines().find_map(|line: &str| line.trim().strip_prefix(name));
        let number = |name| value(name).and_then(|value| value.parse().ok()).unwrap_or(0);
        Ok(Some(ClusterState {
            ok: value("cluster_state:") == Some("ok"),
            masters: number("cluster_size:"),
            nodes: number("cluster_known_nodes:"),
        }))
    }
}

pub(crate) fn failed(call: &'static str) -> impl Fn(RedisError) -> StoreError {
    move |error| {
        let kind = match error.kind() {
            ErrorKind::InvalidClientConfig
            | ErrorKind::AuthenticationFailed
            | ErrorKind::UnexpectedReturnType
            | ErrorKind::Server(ServerErrorKind::CrossSlot)
            | ErrorKind::Parse => Kind::Bug,
            _ => Kind::Unavailable,
        };
        StoreError::new(STORE, call, kind, error)
    }
}
