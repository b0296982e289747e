//! Who may have how many of the places that all share: on the way to the broker, or of the memory for bodies. They are
//! shared by those who come, so that one that takes without end can't keep the others out.
//!
//! Up to half of the places go to whoever comes first. Beyond that, with `n` of them there, each has at most one part in
//! `n + 1`: there is always room for one who comes new. Whoever has its share waits, in its own line, for what it gives
//! back itself or what becomes free of the half.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The places of all sources. Clones share them.
#[derive(Clone)]
pub struct Shares {
    places: usize,
    /// A share never gets smaller, however many sources there are: what is more than the places in all waits elsewhere.
    least: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    taken: usize,
    /// Only sources that have something: no more than there are places.
    sources: HashMap<u64, Source>,
    /// Those of them in whose line somebody waits.
    waiting: BTreeSet<u64>,
}

#[derive(Default)]
struct Source {
    has: usize,
    line: VecDeque<Waiter>,
}

impl Source {
    /// From the front: those further behind are found when it is their turn.
    fn leave_out_who_left(&mut self) {
        while self.line.front().is_some_and(|waiter| waiter.tell.is_closed()) {
            self.line.pop_front();
        }
    }
}

struct Waiter {
    places: usize,
    own: usize,
    tell: oneshot::Sender<Share>,
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
        Self { places, least, state: Arc::default() }
    }

    /// Takes places for a source, as soon as they are there, for one after the other. Bound the wait. `own` is how many of
    /// the source's places whoever asks has already: nobody waits for what only it could give back.
    pub async fn take(&self, source: u64, places: usize, own: usize) -> Share {
        loop {
            let mut waits = {
                let mut state = self.lock();
                if let Some(share) = self.give(&mut state, source, places, own) {
                    return share;
                }
                let (tell, told) = oneshot::channel();
                state.sources.entry(source).or_default().line.push_back(Waiter { places, own, tell });
                state.waiting.insert(source);
                InLine { of: self, told }
            };
            if let Ok(share) = (&mut waits.told).await {
                return share;
            }
        }
    }

    /// Takes places, if they are there now and nobody of the same source waits for any.
    #[must_use]
    pub fn try_take(&self, source: u64, places: usize, own: usize) -> Option<Share> {
        self.give(&mut self.lock(), source, places, own)
    }

    fn give(&self, state: &mut State, source: u64, places: usize, own: usize) -> Option<Share> {
        let somebody_waits = state.sources.get_mut(&source).is_some_and(|source| {
            source.leave_out_who_left();
            !source.line.is_empty()
        });
        (!somebody_waits && self.has_room(state, source, places, own))
            .then(|| self.account(state, source, places))
    }

    fn has_room(&self, state: &State, source: u64, places: usize, own: usize) -> bool {
        let known = state.sources.get(&source);
        let has = known.map_or(0, |source| source.has);
        let at_work = state.sources.len() + usize::from(known.is_none());
        let share = (self.places / (at_work + 1)).max(self.least);
        has <= own || state.taken + places <= self.places / 2 || has + places <= share
    }

    fn account(&self, state: &mut State, source: u64, places: usize) -> Share {
        if places > 0 {
            state.taken += places;
            state.sources.entry(source).or_default().has += places;
        }
        Share { of: self.clone(), source, places }
    }

    /// Gives to those who wait what is there for them. Returns what nobody took: to be dropped without the lock.
    fn serve(&self, state: &mut State) -> Vec<Share> {
        let mut left = Vec::new();
        for source in state.waiting.clone() {
            state.forget_who_left(source);
        }
        for source in state.waiting.clone() {
            while let Some(Waiter { places, own, tell }) = state.first(source) {
                if tell.is_closed() {
                    continue;
                }
                if !self.has_room(state, source, places, own) {
                    let line = state.sources.entry(source).or_default();
                    line.line.push_front(Waiter { places, own, tell });
                    break;
                }
                let share = self.account(state, source, places);
                left.extend(tell.send(share).err());
            }
            state.forget_if_idle(source);
        }
        left
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits. Who leaves the line may have stood in another's way.
struct InLine<'s> {
    of: &'s Shares,
    told: oneshot::Receiver<Share>,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.told.close();
        let left = self.of.serve(&mut self.of.lock());
        drop(left);
    }
}

impl State {
    fn first(&mut self, source: u64) -> Option<Waiter> {
        self.sources.get_mut(&source)?.line.pop_front()
    }

    fn forget_who_left(&mut self, source: u64) {
        if let Some(entry) = self.sources.get_mut(&source) {
            entry.leave_out_who_left();
        }
        self.forget_if_idle(source);
    }

    fn forget_if_idle(&mut self, source: u64) {
        let Some(entry) = self.sources.get(&source) else { return };
        if entry.line.is_empty() {
            self.waiting.remove(&source);
            if entry.has == 0 {
                self.sources.remove(&source);
            }
        }
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
        if self.places == 0 {
            return;
        }
        let mut state = self.of.lock();
        state.taken -= self.places;
        if let Some(entry) = state.sources.get_mut(&self.source) {
            entry.has -= self.places;
        }
        state.forget_if_idle(self.source);
        let left = self.of.serve(&mut state);
        // Each of them comes here again.
        drop(state);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn take_all(shares: &Shares, source: u64) -> Vec<Share> {
        std::iter::from_fn(|| shares.try_take(source, 1, 0)).collect()
    }

    fn is_clean(shares: &Shares) -> bool {
        let state = shares.lock();
        state.sources.is_empty() && state.waiting.is_empty() && state.taken == 0
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
        assert!(shares.try_take(1, 1, 0).is_none(), "it has more than its share by now");
        drop((second, third));
        assert!(shares.try_take(1, 1, 0).is_none(), "it has its share");
        drop(noisy);
        assert!(is_clean(&shares), "who has nothing is forgotten");
    }

    #[test]
    fn many_who_have_little_make_nobodys_share_small() {
        let shares = Shares::new(1_000, 1);
        let many: Vec<Share> = (10..110).filter_map(|source| shares.try_take(source, 1, 0)).collect();
        assert_eq!(many.len(), 100);
        assert_eq!(take_all(&shares, 1).len(), 400, "half is for whoever comes");
    }

    #[tokio::test]
    async fn who_waits_gets_what_its_own_source_gives_back() {
        let shares = Shares::new(64, 32);
        let mut held = take_all(&shares, 7);
        let waiting = tokio::spawn({
            let shares = shares.clone();
            async move { shares.take(7, 1, 0).await.source }
        });
        let other = shares.take(8, 1, 0).await;
        assert_eq!(other.source, 8);
        held.pop();
        assert_eq!(waiting.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_line_goes_on_in_order_behind_those_who_have_left_it() {
        let shares = Shares::new(100, 1);
        let mut held = shares.try_take(1, 50, 0).unwrap();
        let (large, gone, small) = (shares.take(1, 30, 0), shares.take(1, 5, 0), shares.take(1, 5, 0));
        let (mut large, mut gone, mut small) = (Box::pin(large), Box::pin(gone), Box::pin(small));
        let soon = Duration::from_millis(5);
        assert!(timeout(soon, &mut large).await.is_err());
        assert!(timeout(soon, &mut gone).await.is_err() && timeout(soon, &mut small).await.is_err());
        drop(held.split(10));
        assert!(timeout(soon, &mut small).await.is_err(), "it is not its turn");
        assert!(shares.try_take(1, 1, 0).is_none(), "nobody gets past those who wait");
        drop(gone);
        drop(held.split(30));
        let (large, small) = (large.await, small.await);
        assert_eq!((large.places(), small.places()), (30, 5));
        drop((held, large, small));
        assert!(is_clean(&shares));
    }

    #[tokio::test]
    async fn who_leaves_the_line_lets_those_behind_pass() {
        let shares = Shares::new(100, 1);
        let held = shares.try_take(1, 45, 0).unwrap();
        let mut large = Box::pin(shares.take(1, 30, 0));
        let mut small = Box::pin(shares.take(1, 5, 0));
        let soon = Duration::from_millis(5);
        assert!(timeout(soon, &mut large).await.is_err() && timeout(soon, &mut small).await.is_err());
        drop(large);
        let small = small.await;
        drop((held, small));
        assert!(is_clean(&shares));
    }

    #[tokio::test]
    async fn who_waits_is_served_when_another_source_leaves() {
        let shares = Shares::new(100, 1);
        let one = shares.try_take(1, 40, 0).unwrap();
        let other = shares.try_take(2, 30, 0).unwrap();
        let mut waits = Box::pin(shares.take(1, 10, 0));
        assert!(timeout(Duration::from_millis(5), &mut waits).await.is_err());
        drop(other);
        assert_eq!(waits.await.places(), 10);
        drop(one);
        assert!(is_clean(&shares));
    }

    #[tokio::test]
    async fn whoever_comes_and_goes_all_are_served_and_nothing_gets_lost() {
        let shares = Shares::new(100, 5);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..2_000_usize {
            let (shares, source, places) = (shares.clone(), number as u64 % 7, 1 + number * 37 % 40);
            // Some give up while they wait.
            let patience =
                if number % 3 == 0 { Duration::from_micros(number as u64 % 900) } else { Duration::MAX };
            tasks.spawn(async move {
                let Ok(mut share) = timeout(patience, shares.take(source, places, 0)).await else {
                    return false;
                };
                tokio::task::yield_now().await;
                drop(share.split(places / 2));
                tokio::task::yield_now().await;
                true
            });
        }
        let all = async {
            let mut served = 0;
            while let Some(ended) = tasks.join_next().await {
                served += usize::from(ended.unwrap());
            }
            served
        };
        let served = timeout(Duration::from_secs(30), all).await.expect("somebody waits for ever");
        assert!(served >= 1_333, "{served}");
        assert!(is_clean(&shares));
    }

    #[test]
    fn nobody_waits_for_itself() {
        let shares = Shares::new(100, 10);
        let mut all = shares.try_take(1, 60, 0).unwrap();
        assert!(shares.try_take(1, 30, 0).is_none());
        all.merge(shares.try_take(1, 30, 60).unwrap());
        assert_eq!(all.places(), 90);
    }

    #[test]
    fn shares_are_parted_and_joined_and_nothing_gets_lost() {
        let shares = Shares::new(100, 10);
        let mut share = shares.try_take(1, 40, 0).unwrap();
        assert!(shares.try_take(1, 11, 0).is_none(), "half is its share");
        let part = share.split(15);
        drop(share.split(10));
        share.merge(shares.try_take(1, 20, 0).unwrap());
        assert_eq!((part.places(), share.places(), shares.lock().sources[&1].has), (15, 35, 50));
        drop((part, share));
        assert!(is_clean(&shares));
        let large = shares.try_take(1, 90, 0).unwrap();
        assert_eq!(large.places(), 90, "who has nothing takes what it needs, however much that is");
    }
}
