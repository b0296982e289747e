//! Telling events to the exchange, to which others bind queues of their own.
//!
//! The broker confirms an event when every queue that is bound has it, and refuses it when one of them does, also though
//! all others have it: a queue of somebody else that is full and refuses what comes (`reject-publish`). Offering it
//! again for ever would let nobody hear anything more, and fill up all others with copies. So it is offered some times
//! more, and then passed over: whoever bounds a queue so has asked for that.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taskflow_core::metric;
use taskflow_stores::backoff::Backoff;
use taskflow_stores::rabbit::publish::{Message, PublishError};
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, observe};
use tokio_util::sync::CancellationToken;

use crate::Context;

/// How often an event is offered more that was refused: a queue whose process has died is there again within a second.
const TRIES: u32 = 4;
/// Before it is offered for the second time, at most; up to twice as long before each other time …
const REST: Duration = Duration::from_millis(200);
/// … and never longer than this.
const REST_MAX: Duration = Duration::from_secs(1);

/// After an event was refused to the end none is offered again for so long: what is full stays so, and each batch would
/// wait for it.
const NO_MORE: Duration = Duration::from_secs(60);

/// When an event was last refused to the end.
static GIVEN_UP: Mutex<Option<Instant>> = Mutex::new(None);
static REFUSED: Seldom = Seldom::new();

/// Publishes `count` events, in order; comes back when all are confirmed, or refused to the end. The events of an entity
/// keep their order but where one is refused.
///
/// # Errors
/// Whether the broker has all of them is not known; an exchange that is gone is declared again.
pub(crate) async fn tell(
    context: &Context,
    count: usize,
    mut message: impl FnMut(usize) -> Message,
) -> Result<(), StoreError> {
    let mut left: Vec<usize> = (0..count).collect();
    // Whoever gives up drops all of this.
    let (mut backoff, never) = (Backoff::new(REST, REST_MAX), CancellationToken::new());
    loop {
        left = offer(context, left, &mut message).await?;
        if left.is_empty() {
            return Ok(());
        }
        if backoff.tries() == TRIES || gave_up().is_some_and(|at| at.elapsed() < NO_MORE) {
            break;
        }
        backoff.wait(&never).await;
    }
    gave_up().take_if(|at| at.elapsed() >= NO_MORE);
    gave_up().get_or_insert_with(Instant::now);
    observe::counter(&metric::EVENTS_REFUSED, &[]).increment(left.len() as u64);
    if let Some(held_back) = REFUSED.due() {
        tracing::warn!(
            events = left.len(),
            held_back,
            "A queue that is bound to taskflow.events refuses events, which it will not hear. Is it full, with overflow = reject-publish?"
        );
    }
    Ok(())
}

fn gave_up() -> MutexGuard<'static, Option<Instant>> {
    GIVEN_UP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Offers each of these once. Returns which are refused.
async fn offer(
    context: &Context,
    events: Vec<usize>,
    message: &mut impl FnMut(usize) -> Message,
) -> Result<Vec<usize>, StoreError> {
    let mut pending = Vec::with_capacity(events.len());
    for event in events {
        pending.push((event, context.stores.events.send(message(event)).await?));
    }
    let mut refused = Vec::new();
    for (event, confirm) in pending {
        match confirm.confirmed().await {
            Ok(()) => {}
            Err(PublishError::Refused) => refused.push(event),
            Err(error) => {
                if matches!(error, PublishError::NoExchange) {
                    context.mender.missing("the exchange taskflow.events");
                }
                return Err(error.into());
            }
        }
    }
    Ok(refused)
}
