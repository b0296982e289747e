//! A log line that may be due a thousand times a second and is written once: while a store is down the log stays
//! readable, and its disk has room.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::{Kind, StoreError};

/// Between the first two lines. As long as it goes on, each further pause is twice as long …
const PAUSE: Duration = Duration::from_secs(1);
/// … up to this.
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// When nothing was due for so long, the next trouble is another one.
const QUIET: Duration = Duration::from_secs(10);

/// Lets one line through, and the next after a second, two seconds, four.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    /// When a line was last written.
    last: Option<Instant>,
    /// When one was last due.
    due: Option<Instant>,
    pause: Duration,
    held_back: u64,
}

impl Default for State {
    fn default() -> Self {
        Self::NEW
    }
}

impl State {
    const NEW: Self = Self { last: None, due: None, pause: PAUSE, held_back: 0 };
}

impl Seldom {
    pub const fn new() -> Self {
        Self(Mutex::new(State::NEW))
    }

    /// Whether a line may be written now: then how many were held back since the last one.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let again = state.due.replace(now).is_some_and(|due| now < due + QUIET);
        if again {
            if state.last.is_some_and(|last| now < last + state.pause) {
                state.held_back += 1;
                return None;
            }
            state.pause = (state.pause * 2).min(PAUSE_MAX);
        } else {
            state.pause = PAUSE;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

/// Whether a line may be written now that says that this store is away. Everybody in a process who needs a store
/// complains then; they say the same, so all of them together have one line at a time.
pub fn about(store: &str) -> Option<u64> {
    static AWAY: Stores = Stores::new();
    AWAY.of(store).due()
}

/// Whether a line about this error may be written now.
pub fn worth_a_line(error: &StoreError) -> bool {
    static BROKEN: Stores = Stores::new();
    let due = if error.kind == Kind::Unavailable { about(error.store) } else { BROKEN.of(error.store).due() };
    due.is_some()
}

/// One for each store.
struct Stores {
    known: [(&'static str, Seldom); 4],
    other: Seldom,
}

impl Stores {
    const fn new() -> Self {
        let known = [
            ("postgres", Seldom::new()),
            ("rabbitmq", Seldom::new()),
            ("mongodb", Seldom::new()),
            ("redis", Seldom::new()),
        ];
        Self { known, other: Seldom::new() }
    }

    fn of(&self, store: &str) -> &Seldom {
        self.known.iter().find(|(name, _)| *name == store).map_or(&self.other, |(_, seldom)| seldom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ever_fewer_lines_and_the_rest_is_counted() {
        let seldom = Seldom::new();
        let start = Instant::now();
        let lines: Vec<(u64, u64)> = (0..20_000)
            .filter_map(|ms| Some((ms, seldom.due_at(start + Duration::from_millis(ms))?)))
            .collect();
        assert_eq!(lines, [(0, 0), (1_000, 999), (3_000, 1_999), (7_000, 3_999), (15_000, 7_999)]);
    }

    #[test]
    fn the_next_trouble_is_told_at_once() {
        let seldom = Seldom::new();
        let start = Instant::now();
        let at = |s| seldom.due_at(start + Duration::from_secs(s)).is_some();
        let lines: Vec<bool> = [0, 1, 2, 3, 20, 21].into_iter().map(at).collect();
        assert_eq!(lines, [true, true, false, true, true, true]);
    }
}
