//! The shape and time to live of every key in Redis, in one place: a key that is written under one name and read
//! under another is never read.

use uuid::Uuid;

/// Seconds that a task stays cached.
pub const TASK_TTL_S: u64 = 180;
/// Seconds that a user's profile stays cached.
pub const PROFILE_TTL_S: u64 = 300;
/// Seconds that a session lasts.
pub const SESSION_TTL_S: u64 = 3600;
/// Seconds that a generation lives: longer than anything that carries it.
pub const GENERATION_TTL_S: u64 = 24 * 3600;

/// One task, as JSON.
pub fn task(id: Uuid) -> String {
    format!("task:{id}")
}

/// One user without the password hash, as JSON.
pub fn profile(user: Uuid) -> String {
    format!("user:profile:{user}")
}

/// The generation of what depends on a user's tasks (lists, statistics). A write bumps it; a reader uses only
/// values that carry it.
pub fn tasks_generation(user: Uuid) -> String {
    format!("task:generation:user:{user}")
}

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

/// The pub/sub channel on which an intake hears of the receipts that its callers wait for.
pub fn receipts_channel(intake: Uuid) -> String {
    format!("receipts:{intake}")
}
