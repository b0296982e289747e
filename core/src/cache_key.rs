//! The shape and time to live of every key in Redis, in one place: a key that is written under one name and read
//! under another is never read.

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::hex;

/// Seconds that a task stays cached.
pub const TASK_TTL_S: u64 = 180;
/// Seconds that a user's profile stays cached.
pub const PROFILE_TTL_S: u64 = 300;
/// Seconds that a session lasts.
pub const SESSION_TTL_S: u64 = 3600;
/// Seconds that a page of a user's tasks stays cached.
pub const LIST_TTL_S: u64 = 60;
/// Seconds that a user's statistics stay cached.
pub const STATS_TTL_S: u64 = 300;
/// Seconds that a task's recent changes stay cached.
pub const RECENT_TTL_S: u64 = 180;
/// Seconds that a page of a search stays cached.
pub const SEARCH_TTL_S: u64 = 120;
/// Seconds that a heavy answer without a cache of its own stays cached.
pub const RESPONSE_TTL_S: u64 = 300;

/// One task, as JSON.
pub fn task(id: Uuid) -> String {
    format!("task:{id}")
}

/// One user without the password hash, as JSON.
pub fn profile(user: Uuid) -> String {
    format!("user:profile:{user}")
}

/// A page of a user's tasks. `status` is a status or `all`; a page of another size or order is another page.
pub fn task_list(user: Uuid, status: &str, order: Option<&str>, page: u32, size: Option<u32>) -> String {
    let mut key = format!("task:list:user:{user}:status:{status}:page:{page}");
    if let Some(order) = order {
        key += ":order:";
        key += order;
    }
    if let Some(size) = size {
        key += ":size:";
        key += &size.to_string();
    }
    key
}

/// The recent changes of a task, a list, the newest first.
pub fn task_recent(task: Uuid) -> String {
    format!("task:recent:{task}")
}

/// How many tasks a user has, by status.
pub fn task_stats(user: Uuid) -> String {
    format!("task:stats:{user}")
}

/// A page of a search: what was looked for, by its hash ([`query_hash`]).
pub fn task_search(query_hash: &str, page: u32) -> String {
    format!("task:search:{query_hash}:page:{page}")
}

/// A heavy answer without a cache of its own: of which endpoint, to what, each by its hash ([`query_hash`]).
pub fn response(endpoint_hash: &str, parameters_hash: &str) -> String {
    format!("api:response:{endpoint_hash}:{parameters_hash}")
}

/// The hash of what is looked for: each part counts, and where it ends.
pub fn query_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hex::of(&hash.finalize()[..16])
}

/// There since the caches were filled last. It has no time to live: it goes only when everything goes, by a flush, a
/// restart without data, or a failover to an empty replica. (With an `allkeys` policy of evictions it may go alone; then
/// the caches are filled once too often.)
pub const FILLED: &str = "cache:filled";

/// A session, by the digest of its token: who reads Redis has no sessions.
pub fn session(token_digest: &str) -> String {
    format!("session:{token_digest}")
}

/// Seconds that an open socket is known without being refreshed.
pub const SOCKET_TTL_S: u64 = 3600;
/// Seconds that a process with sockets counts as alive after its last word.
pub const SOCKET_PROCESS_TTL_S: u64 = 15;

/// Whose an open socket is.
pub fn socket(id: &str) -> String {
    format!("ws:connection:{id}")
}

/// The ids of a user's open sockets, a set.
pub fn sockets_of(user: Uuid) -> String {
    format!("ws:user:{user}:connections")
}

/// There while a process lives that has sockets.
pub fn socket_process(process: &str) -> String {
    format!("ws:process:{process}")
}

/// Seconds that a fence lives: longer than whatever it keeps from coming back.
pub const FENCE_TTL_S: u64 = 24 * 3600;
/// Seconds that a user's permissions stay cached.
pub const PERMISSIONS_TTL_S: u64 = 600;

/// What a user may do, as a JSON array of words.
pub fn permissions(user: Uuid) -> String {
    format!("user:permissions:{user}")
}

/// The digests of a user's sessions, so that all of them can be ended.
pub fn sessions_of(user: Uuid) -> String {
    format!("user:sessions:{user}")
}

/// Requests of a user (or of an API key, by its id) in the current minute.
pub fn requests_of_user(user: Uuid) -> String {
    format!("rate-limit:user:{user}:minute")
}

/// Requests from an address in the current hour.
pub fn requests_of_address(address: &str) -> String {
    format!("rate-limit:ip:{address}:hour")
}

/// Failed logins of whoever is named: an account's digest, an address, or both.
pub fn failed_logins(of: &str) -> String {
    format!("login:failed:{of}")
}

/// Addresses from which somebody has logged in to an account.
pub fn login_addresses(account: &str) -> String {
    format!("login:known:{account}")
}

/// Matches the sets of all users' open sockets.
pub const SOCKET_SETS: &str = "ws:user:*:connections";

/// The pub/sub channel on which an intake hears of the receipts that its callers wait for.
pub fn receipts_channel(intake: Uuid) -> String {
    format!("receipts:{intake}")
}
