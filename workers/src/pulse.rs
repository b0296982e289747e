//! What a partition's pipeline shows of itself, to the lease's keeper and to the watchdog.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use taskflow_stores::seldom::Seldom;
use tokio_util::sync::CancellationToken;

/// What a pipeline is at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Doing {
    /// It waits until nobody else consumes the queue, and subscribes.
    Subscribing,
    /// It is subscribed and takes what comes.
    Listening,
    /// It has a batch in hand.
    Applying,
    /// It waits for a store that is away.
    Waiting(&'static str),
    /// Something does not fit and a person must mend it: waiting is all it can do.
    Broken(String),
    /// An operator has paused it.
    Paused,
}

/// The state of one pipeline.
pub(crate) struct Pulse {
    state: Mutex<State>,
    /// What the partition complains of is logged now and then, whoever of its tasks complains.
    pub complaints: Seldom,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    pub doing: Doing,
    pub since: Instant,
    /// When it last finished something; `None` if it has not yet.
    pub finished: Option<Instant>,
    /// What was accepted before this is finished.
    pub reached: Option<DateTime<Utc>>,
    /// Makes the pipeline let go of its queue.
    leave: CancellationToken,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        let state = State {
            doing: Doing::Subscribing,
            since: Instant::now(),
            finished: None,
            reached: None,
            leave: CancellationToken::new(),
        };
        Self { state: Mutex::new(state), complaints: Seldom::new() }
    }

    pub(crate) fn is_at(&self, doing: Doing) {
        let mut state = self.lock();
        if state.doing != doing {
            state.doing = doing;
            state.since = Instant::now();
        }
    }

    /// A batch is finished and acknowledged; its last command was accepted at `reached`.
    pub(crate) fn finished(&self, reached: Option<DateTime<Utc>>) {
        let mut state = self.lock();
        state.finished = Some(Instant::now());
        state.reached = reached.or(state.reached);
        state.doing = Doing::Listening;
        state.since = Instant::now();
    }

    /// Nothing waits: all that was accepted until now is finished.
    pub(crate) fn quiet(&self, now: DateTime<Utc>) {
        self.lock().reached = Some(now);
    }

    /// A token that ends with `stop` and when [`Pulse::leave`] says so. Take it before you look at the pauses, or one
    /// that comes in between is missed.
    pub(crate) fn arm(&self, stop: &CancellationToken) -> CancellationToken {
        let leave = stop.child_token();
        self.lock().leave = leave.clone();
        leave
    }

    /// Asks the pipeline to finish its batch, let go of its queue politely, and look around.
    pub(crate) fn leave(&self) {
        self.lock().leave.cancel();
    }

    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
