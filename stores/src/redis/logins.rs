//! Failed logins, and how long whoever fails too often has to wait.
//!
//! Each lock is twice as long as the last, up to a bound; an hour without a failure forgets them. What is counted, and
//! for whom, is the caller's business: see `api/src/login_guard.rs`.

use std::time::Duration;

use futures_util::future::{try_join, try_join_all};
use taskflow_core::cache_key;

use super::Redis;
use crate::StoreError;

/// How failures are judged.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Failures in a minute that bring a lock.
    pub failures: u32,
    /// The first lock.
    pub lock: Duration,
    /// The longest.
    pub lock_max: Duration,
}

/// Failures are counted in windows of this length.
const WINDOW: Duration = Duration::from_secs(60);
/// After this time without a failure, all is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// An address from which somebody has logged in is known for so long.
const KNOWN: Duration = Duration::from_secs(30 * 24 * 3600);
/// Known addresses of an account; the longest unused goes first.
const KNOWN_MAX: i64 = 16;

/// Answers how long the lock still holds, in milliseconds, and how many failures the window has.
const LOOK: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local f = redis.call('HMGET', KEYS[1], 'locked', 'since', 'count')
local count = tonumber(f[3] or 0)
if now - tonumber(f[2] or 0) >= tonumber(ARGV[1]) then count = 0 end
return {math.max(0, tonumber(f[1] or 0) - now), count}
";

/// Counts a failure. Answers how long a lock that it brings holds, in milliseconds; 0 if it brings none.
const FAIL: &str = r"
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local window, most, lock, lock_max, forgotten =
  tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local f = redis.call('HMGET', KEYS[1], 'count', 'since', 'locks')
local count, since, locks = tonumber(f[1] or 0), tonumber(f[2] or now), tonumber(f[3] or 0)
if now - since >= window then count, since = 0, now end
count = count + 1
local lasts = 0
if count >= most then
  lasts = math.min(lock * 2 ^ math.min(locks, 30), lock_max)
  locks, count, since = locks + 1, 0, now
  redis.call('HSET', KEYS[1], 'locked', now + lasts)
end
redis.call('HSET', KEYS[1], 'count', count, 'since', since, 'locks', locks)
redis.call('PEXPIRE', KEYS[1], forgotten)
return lasts
";

/// What is known about an attempt before the password is looked at.
#[derive(Debug, Clone)]
pub struct Standing {
    /// For each of the counters asked for: how long its lock holds, and its failures in this minute.
    pub counters: Vec<(Duration, u32)>,
    /// Whether somebody has logged in to this account from this address.
    pub known: bool,
}

impl Redis {
    /// Looks at counters, and whether an account knows an address; all side by side.
    pub async fn login_standing(
        &self,
        counters: &[&str],
        account: &str,
        address: &str,
    ) -> Result<Standing, StoreError> {
        let connection = self.connection().await?;
        let looks = counters.iter().map(|counter| {
            let mut connection = connection.clone();
            async move {
                let (locked_ms, failures): (u64, u32) = redis::cmd("EVAL")
                    .arg(LOOK)
                    .arg(1)
                    .arg(self.key(&cache_key::failed_logins(counter)))
                    .arg(WINDOW.as_millis() as u64)
                    .query_async(&mut connection)
                    .await
                    .map_err(self.failed("look at failed logins"))?;
                Ok::<_, StoreError>((Duration::from_millis(locked_ms), failures))
            }
        });
        let mut connection = connection.clone();
        let known = async {
            let score: Option<f64> = redis::cmd("ZSCORE")
                .arg(self.key(&cache_key::login_addresses(account)))
                .arg(address)
                .query_async(&mut connection)
                .await
                .map_err(self.failed("look at known addresses"))?;
            Ok::<_, StoreError>(score.is_some())
        };
        let (counters, known) = try_join(try_join_all(looks), known).await?;
        Ok(Standing { counters, known })
    }

    /// Counts a failed login under each counter, side by side. Answers the lock that it brought to each.
    pub async fn login_failed(&self, counters: &[&str], rule: Rule) -> Result<Vec<Duration>, StoreError> {
        let connection = self.connection().await?;
        let failures = counters.iter().map(|counter| {
            let mut connection = connection.clone();
            async move {
                let locked_ms: u64 = redis::cmd("EVAL")
                    .arg(FAIL)
                    .arg(1)
                    .arg(self.key(&cache_key::failed_logins(counter)))
                    .arg(WINDOW.as_millis() as u64)
                    .arg(rule.failures)
                    .arg(rule.lock.as_millis() as u64)
                    .arg(rule.lock_max.as_millis() as u64)
                    .arg(FORGOTTEN.as_millis() as u64)
                    .query_async(&mut connection)
                    .await
                    .map_err(self.failed("count a failed login"))?;
                Ok::<_, StoreError>(Duration::from_millis(locked_ms))
            }
        });
        try_join_all(failures).await
    }

    /// Remembers that somebody has logged in to an account from an address, and forgets the failures under a counter.
    pub async fn login_succeeded(
        &self,
        counter: &str,
        account: &str,
        address: &str,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        let known = self.key(&cache_key::login_addresses(account));
        let mut pipeline = redis::pipe();
        pipeline.cmd("ZADD").arg(&known).arg(now_ms).arg(address).ignore();
        pipeline.cmd("ZREMRANGEBYRANK").arg(&known).arg(0).arg(-KNOWN_MAX - 1).ignore();
        pipeline.cmd("PEXPIRE").arg(&known).arg(KNOWN.as_millis() as u64).ignore();
        pipeline.query_async::<()>(&mut connection).await.map_err(self.failed("note a login"))?;
        redis::cmd("UNLINK")
            .arg(self.key(&cache_key::failed_logins(counter)))
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("forget failed logins"))
    }
}
