//! What there is to see: counts, the last minute, who is up, what was broken.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Seconds that are shown.
const SHOWN: usize = 60;

/// How something that was broken has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Under,
    Good,
    Bad,
}

/// A line about something that was broken.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub mark: Mark,
    pub what: &'static str,
    pub outcome: String,
}

/// The state that the view draws.
pub(super) struct Scene {
    pub(super) start: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
pub(super) struct State {
    pub phase: String,
    pub accepted: u64,
    pub refused: u64,
    pub applied: u64,
    /// Commands applied in each second, the newest last.
    pub seconds: Vec<u64>,
    pub stores: Vec<(&'static str, &'static str)>,
    pub workers: Vec<(usize, &'static str)>,
    pub lines: Vec<Line>,
    /// When the second that is counted now began, and what was applied then.
    second: (Instant, u64),
}

impl State {
    /// Commands applied a second, over the last few.
    pub(super) fn rate(&self) -> u64 {
        let last = &self.seconds[self.seconds.len().saturating_sub(3)..];
        last.iter().sum::<u64>() / last.len().max(1) as u64
    }

    /// The last minute as a row of bars.
    pub(super) fn bars(&self) -> String {
        const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let shown = &self.seconds[self.seconds.len().saturating_sub(SHOWN)..];
        // After a standstill the backlog is applied at once: such a peak must not flatten the rest.
        let mut sorted = shown.to_vec();
        sorted.sort_unstable();
        let usual = sorted.get(sorted.len() / 2).copied().unwrap_or(0).max(1);
        let bar = |count: &u64| BARS[((*count as f64 / usual as f64 * 5.0).round() as usize).min(8)];
        shown.iter().map(bar).collect()
    }
}

impl Scene {
    pub(super) fn new(start: Instant) -> Self {
        let state = State {
            phase: String::new(),
            accepted: 0,
            refused: 0,
            applied: 0,
            seconds: Vec::new(),
            stores: ["postgres", "rabbitmq", "mongodb", "redis"].map(|name| (name, "up")).to_vec(),
            workers: Vec::new(),
            lines: Vec::new(),
            second: (start, 0),
        };
        Self { start, state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> State {
        self.lock().clone()
    }

    pub(super) fn set_phase(&self, phase: &str) {
        phase.clone_into(&mut self.lock().phase);
    }

    /// Notes how far things are. What was applied is not known while Postgres is away.
    pub(super) fn sample(&self, accepted: u64, refused: u64, applied: Option<u64>) {
        let mut state = self.lock();
        if state.seconds.is_empty() && state.applied == 0 {
            state.second = (Instant::now(), applied.unwrap_or(0));
        }
        state.accepted = accepted;
        state.refused = refused;
        state.applied = applied.unwrap_or(state.applied).max(state.applied);
        let applied = state.applied;
        while state.second.0.elapsed() >= Duration::from_secs(1) {
            let (began, before) = state.second;
            state.seconds.push(applied - before);
            state.second = (began + Duration::from_secs(1), applied);
        }
        let old = state.seconds.len().saturating_sub(SHOWN);
        state.seconds.drain(..old);
    }

    pub(super) fn store(&self, name: &str, what: &'static str) {
        for store in self.lock().stores.iter_mut().filter(|store| store.0 == name) {
            store.1 = what;
        }
    }

    pub(super) fn worker(&self, number: usize, what: &'static str) {
        let workers = &mut self.lock().workers;
        workers.retain(|worker| worker.0 != number);
        workers.push((number, what));
        workers.sort_unstable();
    }

    /// Something is broken now; returns its line.
    pub(super) fn begin(&self, what: &'static str) -> usize {
        let lines = &mut self.lock().lines;
        lines.push(Line { mark: Mark::Under, what, outcome: String::new() });
        lines.len() - 1
    }

    pub(super) fn end(&self, line: usize, mark: Mark, outcome: &str) {
        if let Some(line) = self.lock().lines.get_mut(line) {
            line.mark = mark;
            outcome.clone_into(&mut line.outcome);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
