//! Remembers things for a moment, so that not every request asks a store for them. Bounded; who reads decides by the age.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub(crate) struct Brief<K, V> {
    kept: Mutex<HashMap<K, (V, Instant)>>,
    most: usize,
    keep: Duration,
}

impl<K: Hash + Eq, V: Clone> Brief<K, V> {
    /// Room for `most` things, each worth keeping for `keep`.
    pub(crate) fn new(most: usize, keep: Duration) -> Self {
        Self { kept: Mutex::default(), most, keep }
    }

    /// What is remembered, and how old it is.
    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&self, key: &Q, now: Instant) -> Option<(V, Duration)>
    where
        K: Borrow<Q>,
    {
        let kept = self.lock();
        let (value, at) = kept.get(key)?;
        let age = now.saturating_duration_since(*at);
        (age <= self.keep).then(|| (value.clone(), age))
    }

    pub(crate) fn put(&self, key: K, value: V, now: Instant) {
        let mut kept = self.lock();
        if kept.len() >= self.most {
            kept.retain(|_, (_, at)| now.saturating_duration_since(*at) <= self.keep);
        }
        if kept.len() >= self.most {
            // More at once than there is room for: begin anew. It costs look-ups, nothing else.
            kept.clear();
        }
        kept.insert(key, (value, now));
    }

    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.lock().remove(key);
    }

    pub(crate) fn keys(&self) -> Vec<K>
    where
        K: Clone,
    {
        self.lock().keys().cloned().collect()
    }

    pub(crate) fn remove_where(&self, unwanted: impl Fn(&K, &V) -> bool) {
        self.lock().retain(|key, (value, _)| !unwanted(key, value));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, (V, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_what_is_old_and_never_holds_more_than_its_room() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let brief = Brief::new(10, second);
        brief.put(0, "old", start);
        assert_eq!(brief.get(&0, start + second / 2), Some(("old", second / 2)));
        assert_eq!(brief.get(&0, start + 2 * second), None);
        for key in 1..1_000 {
            brief.put(key, "new", start + 2 * second);
            assert!(brief.lock().len() <= 10);
        }
        brief.remove_where(|_, value| *value == "new");
        assert!(brief.lock().is_empty());
    }
}
