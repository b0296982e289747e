//! A log line that may be due a thousand times a second and is written once: while a store is down the log stays
//! readable, and its disk has room.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets one line through each second.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Default for State {
    fn default() -> Self {
        Self::NEW
    }
}

impl State {
    const NEW: Self = Self { last: None, held_back: 0 };
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
        if state.last.is_some_and(|last| now < last + PAUSE) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_rest_is_counted() {
        let seldom = Seldom::new();
        let start = Instant::now();
        let lines: Vec<u64> =
            (0..3_000).filter_map(|ms| seldom.due_at(start + Duration::from_millis(ms))).collect();
        assert_eq!(lines, [0, 999, 999]);
    }
}
