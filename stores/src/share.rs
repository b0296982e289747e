//! Who may have how many of the places that all share: on the way to the broker, or of the memory for bodies. They are
//! shared by those who come, so that one that takes without end can't keep the others out.
//!
//! With `n` of them there, each has at most one part in `n + 1` of the places: there is always room for one who comes
//! new. Whoever has its share waits for what it gives back itself, and for nobody else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The places of all sources. Clones share them.
#[derive(Clone)]
pub struct Shares {
    places: usize,
    /// A share never gets smaller, however many sources there are: what is more than the places in all waits elsewhere.
    least: usize,
    /// Only sources that have something: no more than there are places.
    sources: Arc<Mutex<HashMap<u64, Source>>>,
}

#[derive(Default)]
struct Source {
    has: usize,
    less: Arc<Notify>,
}

/// Places of a source's share, until it is dropped.
#[must_use]
pub struct Share {
    of: Shares,
    source: u64,
    places: usize,
}

impl Shares {
    /// Shares of so many places, each of `least` at least.
    #[must_use]
    pub fn new(places: usize, least: usize) -> Self {
        Self { places, least, sources: Arc::default() }
    }

    /// Takes places for a source, as soon as it has so much less than its share. Bound the wait.
    pub async fn take(&self, source: u64, places: usize) -> Share {
        let mut waited: Option<Arc<Notify>> = None;
        loop {
            match self.take_or_wait(source, places) {
                Ok(share) => {
                    // There may be room for more than one who waits, and several places given back wake only one.
                    if let Some(waited) = waited {
                        waited.notify_one();
                    }
                    return share;
                }
                Err(less) => {
                    // The source had nothing in between, and was forgotten with those who wait: they wait for what is
                    // there now.
                    if let Some(old) = waited.take_if(|old| !Arc::ptr_eq(old, &less)) {
                        old.notify_waiters();
                    }
                    less.notified().await;
                    waited = Some(less);
                }
            }
        }
    }

    /// Takes places, if the source's share has them now.
    #[must_use]
    pub fn try_take(&self, source: u64, places: usize) -> Option<Share> {
        self.take_or_wait(source, places).ok()
    }

    /// Takes places, or says what to wait for. Who has nothing may take more than a share at once.
    fn take_or_wait(&self, source: u64, places: usize) -> Result<Share, Arc<Notify>> {
        let mut sources = self.lock();
        let at_work = sources.len() + usize::from(!sources.contains_key(&source));
        let share = (self.places / (at_work + 1)).max(self.least);
        let entry = sources.entry(source).or_default();
        if entry.has > 0 && entry.has + places > share {
            return Err(Arc::clone(&entry.less));
        }
        entry.has += places;
        Ok(Share { of: self.clone(), source, places })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// How many places it has.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places
    }

    /// Parts with so many places, or with all it has.
    pub fn split(&mut self, places: usize) -> Self {
        let places = places.min(self.places);
        self.places -= places;
        Self { of: self.of.clone(), source: self.source, places }
    }

    /// Takes the places of another share of the same source.
    ///
    /// # Panics
    /// If it is another source's.
    pub fn merge(&mut self, mut other: Self) {
        assert_eq!(self.source, other.source, "a share is its source's");
        self.places += std::mem::take(&mut other.places);
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut sources = self.of.lock();
        let Some(entry) = sources.get_mut(&self.source) else { return };
        entry.has -= self.places;
        // A permit is kept for who is about to wait: nobody sleeps through it.
        entry.less.notify_one();
        if entry.has == 0 {
            sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take_all(shares: &Shares, source: u64) -> Vec<Share> {
        std::iter::from_fn(|| shares.try_take(source, 1)).collect()
    }

    #[test]
    fn a_noisy_source_leaves_room_for_who_comes_new() {
        let shares = Shares::new(900, 32);
        let noisy = take_all(&shares, 1);
        assert_eq!(noisy.len(), 450);
        let second = take_all(&shares, 2);
        assert_eq!(second.len(), 300);
        let third = take_all(&shares, 3);
        assert_eq!(third.len(), 225);
        assert!(shares.try_take(1, 1).is_none(), "it has more than its share by now");
        drop((second, third));
        assert!(shares.try_take(1, 1).is_none(), "it has its share");
        drop(noisy);
        assert!(shares.lock().is_empty(), "who has nothing on its way is forgotten");
    }

    #[tokio::test]
    async fn who_waits_gets_what_its_own_source_gives_back() {
        let shares = Shares::new(64, 32);
        let mut held = take_all(&shares, 7);
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { shares.take(7, 1).await.source }
        });
        let other = shares.take(8, 1).await;
        assert_eq!(other.source, 8);
        held.pop();
        assert_eq!(waiting.await.unwrap(), 7);
    }

    #[test]
    fn shares_are_parted_and_joined_and_nothing_gets_lost() {
        let shares = Shares::new(100, 10);
        let mut share = shares.try_take(1, 40).unwrap();
        assert!(shares.try_take(1, 11).is_none(), "half is its share");
        let part = share.split(15);
        drop(share.split(10));
        share.merge(shares.try_take(1, 20).unwrap());
        assert_eq!((part.places(), share.places(), shares.lock()[&1].has), (15, 35, 50));
        drop((part, share));
        assert!(shares.lock().is_empty());
        let large = shares.try_take(1, 90).unwrap();
        assert_eq!(large.places(), 90, "who has nothing takes what it needs, however much that is");
    }
}
