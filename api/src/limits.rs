//! Settings of what a caller may cost.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

/// A network, or one address.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(transparent)]
pub struct Network(IpNet);

impl Network {
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        network
            .map(Self)
            .map_err(|_| Error::custom(format!("{text:?} is no address and no network such as 10.0.0.0/8")))
    }
}

/// What a caller may cost, and how long it may take. 0 means no limit where it says so.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Requests of one user, or of one API key, in a minute. 0: no limit.
    pub user_requests_per_minute: u64,
    /// Requests from one address in an hour; for IPv6 from one network of 64 bits. 0: no limit.
    pub address_requests_per_hour: u64,
    /// Failed logins in a minute, to one account and from one address; then whoever fails has to wait.
    pub failed_logins_per_minute: u32,
    /// First wait after too many failed logins, in seconds. Each further one is twice as long.
    pub login_lock_s: u64,
    /// Longest wait, in seconds.
    pub login_lock_max_s: u64,
    /// Proxies whose X-Forwarded-For is believed: addresses or networks, such as `["10.0.0.0/8"]`. Nobody's by default.
    pub trusted_proxies: Vec<Network>,
    /// Open connections of a process.
    pub connections: usize,
    /// Open connections from one address, trusted proxies aside.
    pub address_connections: usize,
    /// Bytes of a request's line and headers.
    pub head_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a path.
    pub path_bytes: usize,
    /// Bytes of a query.
    pub query_bytes: usize,
    /// Time from the first byte of a request to the end of its headers, in milliseconds.
    pub head_timeout_ms: u64,
    /// Time that a connection may rest between two requests, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Time between two parts of a body, in milliseconds.
    pub body_pause_ms: u64,
    /// Time for a whole body, in milliseconds: one that comes slowly keeps its room from others. A stream of ndjson may
    /// take as long as it likes.
    pub body_timeout_ms: u64,
    /// Time in which a client must take a part of its answer, in milliseconds.
    pub write_timeout_ms: u64,
    /// Time for an answer, in milliseconds; a stream of ndjson may take as long as it likes.
    pub request_timeout_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            user_requests_per_minute: 60_000,
            address_requests_per_hour: 1_000_000,
            failed_logins_per_minute: 10,
            login_lock_s: 60,
            login_lock_max_s: 900,
            trusted_proxies: Vec::new(),
            connections: 10_000,
            address_connections: 5_000,
            head_bytes: 16 * 1024,
            headers: 100,
            path_bytes: 1_024,
            query_bytes: 4_096,
            head_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            body_pause_ms: 30_000,
            body_timeout_ms: 60_000,
            write_timeout_ms: 30_000,
            request_timeout_ms: 120_000,
        }
    }
}
