//! Checking and hashing passwords: off the async threads, few at a time; a check costs the same whether there is such a
//! user or not.

use std::sync::{Arc, OnceLock};

use tokio::sync::Semaphore;

/// Checks that may wait for their turn, for each that runs; more are turned away.
const WAITING_PER_RUNNING: usize = 16;
/// The same of new hashes, which have places of their own: they must not keep people from logging in.
const HASHES_PER_RUNNING: usize = 4;
/// bcrypt reads no more.
pub(crate) const PASSWORD_MAX: usize = 71;
/// Characters of a new password, at least.
pub(crate) const PASSWORD_MIN: usize = 8;
/// Work factor of new hashes, and of the one that stands in for a user who does not exist.
const COST: u32 = 12;

pub(crate) struct Passwords {
    running: Arc<Semaphore>,
    waiting: Semaphore,
    hashes_waiting: Semaphore,
    /// Checks that one address may have in hand: others must find a place.
    share: u32,
}

/// Too many passwords are looked at at once.
pub(crate) struct Busy;

impl Passwords {
    pub(crate) fn new(checks: usize) -> Self {
        let checks = checks.max(1);
        let places = checks * (1 + WAITING_PER_RUNNING);
        Self {
            share: (places / 2).max(1) as u32,
            running: Arc::new(Semaphore::new(checks)),
            waiting: Semaphore::new(places),
            hashes_waiting: Semaphore::new(checks * (1 + HASHES_PER_RUNNING)),
        }
    }

    /// Checks that one address may have in hand.
    pub(crate) fn share(&self) -> u32 {
        self.share
    }

    /// Hashes a new password, in the form that users are stored with.
    pub(crate) async fn hash(&self, password: String) -> Result<String, Busy> {
        let _place = self.hashes_waiting.try_acquire().map_err(|_| Busy)?;
        let Ok(permit) = Arc::clone(&self.running).acquire_owned().await else { return Err(Busy) };
        let hashed = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            // Fails only for what was refused before: more than 71 bytes, NUL.
            bcrypt::non_truncating_hash(password, COST).ok()
        });
        hashed.await.ok().flatten().ok_or(Busy)
    }

    /// Whether the password belongs to the hash. Without a hash it never does, but takes as long.
    pub(crate) async fn check(&self, password: String, hash: Option<String>) -> Result<bool, Busy> {
        let _place = self.waiting.try_acquire().map_err(|_| Busy)?;
        let Ok(permit) = Arc::clone(&self.running).acquire_owned().await else { return Err(Busy) };
        let checked = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let known = hash.is_some();
            let hash = hash.unwrap_or_else(nobody);
            // A hash that can't be read belongs to no password.
            let fits = bcrypt::verify(password, &hash).unwrap_or(false);
            level(&hash);
            fits && known
        });
        Ok(checked.await.unwrap_or(false))
    }
}

/// Spends what a check against a cheaper hash was less than the one against nobody's: the time must not tell who is there.
/// A dearer hash takes longer, and its owner is told of by that.
fn level(hash: &str) {
    let cost = hash.split('$').nth(2).and_then(|cost| cost.parse::<u32>().ok());
    // Each costs as much as all before it, and one more.
    for missing in cost.into_iter().flat_map(|cost| cost..COST) {
        std::hint::black_box(bcrypt::bcrypt(missing, [0; 16], b"nobody's password\0"));
    }
}

fn nobody() -> String {
    static HASH: OnceLock<String> = OnceLock::new();
    HASH.get_or_init(|| bcrypt::hash("nobody's password", COST).unwrap_or_default()).clone()
}
