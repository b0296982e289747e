//! Who may have how much on its way to the broker: places are shared by the sources of commands, so that one that sends
//! without end can't keep the others out.
//!
//! With `n` sources at work, each has at most one part in `n + 1` of the places: there is always room for one who comes
//! new. Whoever has its share waits for its own confirms, and for nobody else's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// A share never gets smaller, however many sources there are: what is more than the places in all waits as before.
const SHARE_MIN: usize = 32;

/// The places of all sources. Clones share them.
#[derive(Clone)]
pub(super) struct Shares {
    places: usize,
    /// Only sources that have something on its way: no more than there are places.
    sources: Arc<Mutex<HashMap<u64, Source>>>,
}

#[derive(Default)]
struct Source {
    on_the_way: usize,
    one_less: Arc<Notify>,
}

/// One place of a source's share, until it is dropped.
pub(super) struct Share {
    of: Shares,
    source: u64,
}

impl Shares {
    pub(super) fn new(places: usize) -> Self {
        Self { places, sources: Arc::default() }
    }

    /// Takes a place for a source, as soon as it has less than its share. Bound the wait.
    pub(super) async fn take(&self, source: u64) -> Share {
        let mut waited: Option<Arc<Notify>> = None;
        loop {
            match self.try_take(source) {
                Ok(share) => {
                    // There may be room for more than one who waits, and several places given back wake only one.
                    if let Some(waited) = waited {
                        waited.notify_one();
                    }
                    return share;
                }
                Err(one_less) => {
                    // The source had nothing on its way in between, and was forgotten with those who wait: they wait
                    // for what is there now.
                    if let Some(old) = waited.take_if(|old| !Arc::ptr_eq(old, &one_less)) {
                        old.notify_waiters();
                    }
                    one_less.notified().await;
                    waited = Some(one_less);
                }
            }
        }
    }

    /// Takes a place, or says what to wait for.
    fn try_take(&self, source: u64) -> Result<Share, Arc<Notify>> {
        let mut sources = self.lock();
        let at_work = sources.len() + usize::from(!sources.contains_key(&source));
        let share = (self.places / (at_work + 1)).max(SHARE_MIN);
        let entry = sources.entry(source).or_default();
        if entry.on_the_way >= share {
            return Err(Arc::clone(&entry.one_less));
        }
        entry.on_the_way += 1;
        Ok(Share { of: self.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut sources = self.of.lock();
        let Some(entry) = sources.get_mut(&self.source) else { return };
        entry.on_the_way -= 1;
        // A permit is kept for who is about to wait: nobody sleeps through it.
        entry.one_less.notify_one();
        if entry.on_the_way == 0 {
            sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(shares: &Shares, source: u64) -> Vec<Share> {
        std::iter::from_fn(|| shares.try_take(source).ok()).collect()
    }

    #[test]
    fn a_noisy_source_leaves_room_for_who_comes_new() {
        let shares = Shares::new(900);
        let noisy = take_all(&shares, 1);
        assert_eq!(noisy.len(), 450);
        let second = take_all(&shares, 2);
        assert_eq!(second.len(), 300);
        let third = take_all(&shares, 3);
        assert_eq!(third.len(), 225);
        assert!(shares.try_take(1).is_err(), "it has more than its share by now");
        drop((second, third));
        assert!(shares.try_take(1).is_err(), "it has its share");
        drop(noisy);
        assert!(shares.lock().is_empty(), "who has nothing on its way is forgotten");
    }

    #[tokio::test]
    async fn who_waits_gets_what_its_own_source_gives_back() {
        let shares = Shares::new(64);
        let mut held = take_all(&shares, 7);
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { shares.take(7).await.source }
        });
        let other = shares.take(8).await;
        assert_eq!(other.source, 8);
        held.pop();
        assert_eq!(waiting.await.unwrap(), 7);
    }
}
