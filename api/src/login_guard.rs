//! Who fails to log in too often has to wait: by account and by address, each time twice as long, never for ever.
//!
//! Nobody can lock somebody else out: an account knows the addresses from which it was logged in to, and what others
//! fail does not count there. From a known address only the failures from that address count. While Redis is away
//! nobody can log in (there is no place for the session), so no password is looked at either.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use taskflow_core::hex;
use taskflow_core::metric;
use taskflow_core::state::email_key;
use taskflow_core::system_event::{self, Change, SYSTEM};
use taskflow_stores::postgres::system_events;
use taskflow_stores::redis::logins::Rule;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{clock, observe};
use uuid::Uuid;

use crate::App;
use crate::address;
use crate::limits::Limits;
use crate::problem::Problem;

/// One event a second tells of an attack as well as a thousand do.
static EVENTS: Seldom = Seldom::new();

pub(crate) struct LoginGuard {
    rule: Rule,
    /// Attempts whose password is being looked at, by account and by address: many at once are no way around the limit.
    trying: Mutex<HashMap<String, u32>>,
}

/// A login that may be tried.
pub(crate) struct Attempt<'g> {
    guard: &'g LoginGuard,
    account: String,
    /// Where its failure counts: the account, or the account at a known address.
    counter: String,
    of_address: String,
    address: String,
}

impl LoginGuard {
    pub(crate) fn new(limits: &Limits) -> Self {
        let lock = Duration::from_secs(limits.login_lock_s.max(1));
        let rule = Rule {
            failures: limits.failed_logins_per_minute.max(1),
            lock,
            lock_max: Duration::from_secs(limits.login_lock_max_s).max(lock),
        };
        Self { rule, trying: Mutex::default() }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut trying = self.guard.trying.lock().unwrap_or_else(PoisonError::into_inner);
        for counter in [&self.counter, &self.of_address] {
            if let Some(count) = trying.get_mut(counter) {
                *count -= 1;
                if *count == 0 {
                    trying.remove(counter);
                }
            }
        }
    }
}

impl App {
    /// Whether a login to an account may be tried from an address.
    ///
    /// # Errors
    /// 429 if too many have failed; 503 while Redis is away.
    pub(crate) async fn begin_login(&self, email: &str, ip: Option<IpAddr>) -> Result<Attempt<'_>, Problem> {
        let guard = &self.login_guard;
        // Not the address itself: what people type here may be anything.
        let account = hex::of(&Sha256::digest(email_key(email).as_bytes())[..16]);
        let address = ip.map_or_else(|| "unknown".to_owned(), address::limited);
        let of_account = format!("account:{account}");
        let of_both = format!("account:{account}:{address}");
        let of_address = format!("ip:{address}");
        let counters = [of_account.as_str(), &of_both, &of_address];
        let standing = self.stores.redis.login_standing(&counters, &account, &address).await?;
        let [account_stands, both_stand, address_stands] = standing.counters[..] else {
            return Err(Problem::unavailable("failed logins can't be counted at the moment"));
        };
        let (counter, (locked, failures)) =
            if standing.known { (of_both, both_stand) } else { (of_account, account_stands) };
        let wait = locked.max(address_stands.0);
        let mut trying = guard.trying.lock().unwrap_or_else(PoisonError::into_inner);
        let at_once = |counter: &str| trying.get(counter).copied().unwrap_or_default();
        let of_both_kinds = [(&counter, failures), (&of_address, address_stands.1)];
        // Many people may come from one address at once: only where some have failed do those count who are at it.
        let too_many = |(counter, failures): (&String, u32)| {
            let counts = failures > 0 || *counter != of_address;
            counts && failures + at_once(counter) >= guard.rule.failures
        };
        // However well they go: what one address tries at once must leave places for others.
        let has_its_share = at_once(&of_address) >= self.passwords.share();
        if !wait.is_zero() || has_its_share || of_both_kinds.into_iter().any(too_many) {
            observe::counter(&metric::LOGINS, &[("result", "limited")]).increment(1);
            return Err(Problem::too_many_logins(wait.as_millis().div_ceil(1000).max(1) as u64));
        }
        for counter in [&counter, &of_address] {
            *trying.entry(counter.clone()).or_default() += 1;
        }
        drop(trying);
        Ok(Attempt { guard, account, counter, of_address, address })
    }

    /// Notes that an attempt has failed. `user` is whose account it is, if there is one.
    pub(crate) async fn login_failed(&self, attempt: Attempt<'_>, user: Option<Uuid>) {
        let counters = [attempt.counter.as_str(), &attempt.of_address];
        let locks = match self.stores.redis.login_failed(&counters, attempt.guard.rule).await {
            Ok(locks) => locks,
            Err(error) => {
                tracing::warn!(%error, "A failed login was not counted.");
                return;
            }
        };
        for (lock, scope) in locks.into_iter().zip(["account", "address"]) {
            if lock.is_zero() {
                continue;
            }
            let locked_s = lock.as_secs();
            tracing::warn!(scope, address = attempt.address, locked_s, "Too many logins have failed.");
            if EVENTS.due().is_none() {
                continue;
            }
            let user = user.filter(|_| scope == "account");
            let change = Change {
                id: clock::new_id(),
                author: SYSTEM,
                address: Some(&attempt.address),
                session: None,
                at: clock::now(),
            };
            let event = system_event::logins_failed(&change, user, scope, locked_s);
            if let Err(error) = system_events::record(&self.stores.postgres, &event).await {
                tracing::error!(%error, "Failed logins are missing in the audit trail.");
            }
        }
    }

    /// Notes that an attempt has succeeded.
    pub(crate) async fn login_succeeded(&self, attempt: Attempt<'_>) {
        let Attempt { account, counter, address, .. } = &attempt;
        let now_ms = clock::now().timestamp_millis();
        if let Err(error) = self.stores.redis.login_succeeded(counter, account, address, now_ms).await {
            tracing::debug!(%error, "The address of a login was not noted.");
        }
    }
}
