//! How many requests a user and an address may send, counted in Redis for all processes together.
//!
//! The headers are those of draft-ietf-httpapi-ratelimit-headers-11. While Redis does not answer, requests pass: a limit
//! protects the system, and a system that refuses everybody is not protected.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use taskflow_core::{cache_key, metric};
use taskflow_stores::observe;
use taskflow_stores::redis::Redis;
use taskflow_stores::redis::limits::Count;
use uuid::Uuid;

use crate::address;
use crate::limits::Limits;
use crate::problem::Problem;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// A request waits no longer than this for its limits.
const PATIENCE: Duration = Duration::from_millis(250);
/// After a failure nothing is counted for this long.
const PAUSE: Duration = Duration::from_secs(1);

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// A quota is taken in parts of a thousandth: a busy caller costs a round trip now and then, not one a request, and no
/// more than a part in each process is set aside in vain. A quota below a thousand is counted one by one.
const PARTS: u64 = 1_000;
/// Callers whose part is kept.
const KEPT: usize = 50_000;

/// Whose requests are counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose {
    /// A user's, or an API key's by its id.
    User(Uuid),
    Address(IpAddr),
}

/// How one counter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Standing {
    policy: Policy,
    count: Count,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Policy {
    name: &'static str,
    quota: u64,
    window: Duration,
}

impl Policy {
    fn part(&self) -> u64 {
        (self.quota / PARTS).max(1)
    }
}

/// What is left of the parts that this process has taken in a window.
struct Reserve {
    count: u64,
    left: u64,
    until: Instant,
}

pub(crate) struct RateLimit {
    user: Policy,
    address: Policy,
    reserves: Mutex<HashMap<String, Reserve>>,
    silent_until: Mutex<Instant>,
}

impl RateLimit {
    pub(crate) fn new(limits: &Limits) -> Self {
        let (per_minute, per_hour) = (limits.user_requests_per_minute, limits.address_requests_per_hour);
        Self {
            user: Policy { name: "user", quota: per_minute, window: MINUTE },
            address: Policy { name: "address", quota: per_hour, window: HOUR },
            reserves: Mutex::default(),
            silent_until: Mutex::new(Instant::now()),
        }
    }

    /// Counts a request for each of them; what has no limit, or can't be counted now, is left out.
    pub(crate) async fn count(&self, redis: &Redis, whose: &[Whose]) -> Vec<Standing> {
        let now = Instant::now();
        let mut standings = Vec::with_capacity(whose.len());
        let mut asked = Vec::new();
        for (policy, key) in whose.iter().map(|one| self.policy(*one)).filter(|(policy, _)| policy.quota > 0)
        {
            match self.take_reserve(policy, &key, now) {
                Some(standing) => standings.push(standing),
                None => asked.push((policy, key)),
            }
        }
        if asked.is_empty() {
            return standings;
        }
        if now < *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner) {
            observe::counter(&metric::LIMITS_UNCHECKED, &[]).increment(1);
            return standings;
        }
        let windows: Vec<_> =
            asked.iter().map(|(policy, key)| (key.as_str(), policy.window, policy.part())).collect();
        let error = match tokio::time::timeout(PATIENCE, redis.count(&windows)).await {
            Ok(Ok(counts)) => {
                let taken = asked.iter().zip(counts);
                standings.extend(taken.map(|((policy, key), count)| self.take(*policy, key, count, now)));
                return standings;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(error, "Requests can't be counted; they pass without a limit.");
        *self.silent_until.lock().unwrap_or_else(PoisonError::into_inner) = now + PAUSE;
        observe::counter(&metric::LIMITS_UNCHECKED, &[]).increment(1);
        standings
    }

    fn take_reserve(&self, policy: Policy, key: &str, now: Instant) -> Option<Standing> {
        if policy.part() == 1 {
            return None;
        }
        let mut reserves = self.reserves();
        let reserve = reserves.get_mut(key).filter(|reserve| reserve.left > 0 && now < reserve.until)?;
        reserve.left -= 1;
        let count = Count { count: reserve.count.saturating_sub(reserve.left), left: reserve.until - now };
        Some(Standing { policy, count })
    }

    /// Takes the first request out of a part that was counted, and keeps the rest.
    fn take(&self, policy: Policy, key: &str, count: Count, now: Instant) -> Standing {
        let part = policy.part();
        let before = count.count - part;
        // The last part of a quota may be smaller than the others, and those behind it are empty.
        let granted = policy.quota.saturating_sub(before).min(part);
        if part > 1 && granted > 0 {
            let mut reserves = self.reserves();
            if reserves.len() >= KEPT {
                reserves.retain(|_, reserve| now < reserve.until);
            }
            if reserves.len() >= KEPT {
                reserves.clear();
            }
            let until = now + count.left;
            let reserve = reserves.entry(key.to_owned()).or_insert(Reserve { count: 0, left: 0, until });
            // What is left of another window is nothing any more.
            if now >= reserve.until || until > reserve.until + policy.window / 2 {
                *reserve = Reserve { count: 0, left: 0, until };
            }
            // Answers overtake each other: the highest count is the newest.
            let newest = reserve.count.max(before + granted);
            *reserve = Reserve { count: newest, left: reserve.left + granted - 1, until };
        }
        Standing { policy, count: Count { count: before + 1, ..count } }
    }

    fn reserves(&self) -> MutexGuard<'_, HashMap<String, Reserve>> {
        self.reserves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn policy(&self, whose: Whose) -> (Policy, String) {
        match whose {
            Whose::User(id) => (self.user, cache_key::requests_of_user(id)),
            Whose::Address(ip) => (self.address, cache_key::requests_of_address(&address::limited(ip))),
        }
    }
}

impl Standing {
    fn is_exceeded(&self) -> bool {
        self.count.count > self.policy.quota
    }

    /// Seconds until the window ends, rounded up: never too early.
    fn left_s(&self) -> u64 {
        self.count.left.as_millis().div_ceil(1000) as u64
    }
}

/// Why a request is refused, if one of its counters is above its quota.
pub(crate) fn refusal(standings: &[Standing]) -> Option<Problem> {
    let exceeded: Vec<&Standing> = standings.iter().filter(|standing| standing.is_exceeded()).collect();
    let left_s = exceeded.iter().map(|standing| standing.left_s()).max()?;
    for standing in &exceeded {
        observe::counter(&metric::REQUESTS_LIMITED, &[("policy", standing.policy.name)]).increment(1);
    }
    Some(Problem::quota_exceeded(exceeded.iter().map(|standing| standing.policy.name).collect(), left_s))
}

/// Tells the caller how it stands.
pub(crate) fn tell(standings: &[Standing], headers: &mut HeaderMap) {
    if standings.is_empty() {
        return;
    }
    // In one order, however they were counted.
    let mut standings = standings.to_vec();
    standings.sort_by_key(|standing| standing.policy.window);
    let list = |text: fn(&Standing) -> String| {
        let items: Vec<String> = standings.iter().map(text).collect();
        HeaderValue::try_from(items.join(", ")).ok()
    };
    let policy =
        list(|s| format!("\"{}\";q={};w={}", s.policy.name, s.policy.quota, s.policy.window.as_secs()));
    let limit = list(|s| {
        format!("\"{}\";r={};t={}", s.policy.name, s.policy.quota.saturating_sub(s.count.count), s.left_s())
    });
    for (name, value) in [(POLICY, policy), (LIMIT, limit)] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_have_the_form_of_the_draft() {
        let count = Count { count: 3, left: Duration::from_millis(41_001) };
        let user = Standing { policy: Policy { name: "user", quota: 2, window: MINUTE }, count };
        let address = Standing { policy: Policy { name: "address", quota: 1_000, window: HOUR }, count };
        let mut headers = HeaderMap::new();
        tell(&[user, address], &mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"user\";q=2;w=60, \"address\";q=1000;w=3600");
        assert_eq!(headers["ratelimit"], "\"user\";r=0;t=42, \"address\";r=997;t=42");
        assert!(refusal(&[address]).is_none());
        assert_eq!(refusal(&[user, address]).unwrap().status, 429);
    }

    /// Two parts are asked for at once, and the second answer comes first.
    #[test]
    fn answers_that_overtake_each_other_are_counted() {
        let limit = RateLimit::new(&Limits { user_requests_per_minute: 60_000, ..Limits::default() });
        let (policy, now) = (limit.user, Instant::now());
        let part = policy.part();
        limit.take(policy, "a user", Count { count: 2 * part, left: MINUTE }, now);
        limit.take(policy, "a user", Count { count: part, left: MINUTE }, now);
        let standings: Vec<_> = std::iter::from_fn(|| limit.take_reserve(policy, "a user", now)).collect();
        assert_eq!(standings.len() as u64, 2 * part - 2);
        assert!(standings.iter().all(|standing| standing.count.count <= 2 * part));
        // A new window begins anew, whatever was left.
        let later = now + Duration::from_secs(59);
        limit.take(policy, "another", Count { count: 50 * part, left: Duration::from_secs(2) }, later);
        limit.take(policy, "another", Count { count: part, left: MINUTE }, later);
        let standing = limit.take_reserve(policy, "another", later);
        assert!(standing.is_some_and(|standing| standing.count.count == 2));
    }

    /// Two processes, one counter: whatever is taken in parts, the quota is given out exactly once.
    #[test]
    fn parts_of_a_quota_add_up_to_it() {
        for quota in [1, 999, 1_000, 2_000, 60_000, 60_001, 61_234] {
            let limits = Limits { user_requests_per_minute: quota, ..Limits::default() };
            let processes = [RateLimit::new(&limits), RateLimit::new(&limits)];
            let (now, mut counter, mut passed) = (Instant::now(), 0, 0);
            for number in 0..quota + 5_000 {
                let process = &processes[usize::from(number % 3 == 0)];
                let policy = process.user;
                let standing = process.take_reserve(policy, "a user", now).unwrap_or_else(|| {
                    counter += policy.part();
                    process.take(policy, "a user", Count { count: counter, left: MINUTE }, now)
                });
                passed += u64::from(!standing.is_exceeded());
            }
            assert_eq!(passed, quota, "of {quota}");
            assert!(processes[0].take_reserve(processes[0].user, "a user", now + MINUTE).is_none());
        }
    }
}
