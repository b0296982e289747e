//! Drains the dead-letter queue into Postgres. Any number of workers may do so at once: a letter that comes twice is
//! known by its bytes.

use std::time::Duration;

use taskflow_core::dead_letter::Death;
use taskflow_core::metric;
use taskflow_stores::postgres::dead_letter_intake::{self, Stored};
use taskflow_stores::rabbit::drain::Drain;
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use taskflow_stores::{Kind, StoreError, clock, observe, seldom};
use tokio_util::sync::CancellationToken;

use crate::answers::Answers;
use crate::{Context, crash};
use taskflow_stores::backoff::Backoff;

/// Drains until `stop`. A consumer that ends is made anew.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let fresh = || Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut backoff = fresh();
    loop {
        let mut stored_some = false;
        match drain(context, stop, &mut stored_some).await {
            Ok(()) => return,
            Err(error) => {
                if stored_some {
                    backoff = fresh();
                }
                if backoff.tries() == 0 && seldom::worth_a_line(&error) {
                    tracing::warn!(%error, "The dead letters can't be drained; the broker keeps them meanwhile.");
                } else {
                    tracing::debug!(%error, "The dead letters still can't be drained.");
                }
            }
        }
        if !backoff.wait(stop).await {
            return;
        }
    }
}

async fn drain(
    context: &Context,
    stop: &CancellationToken,
    stored_some: &mut bool,
) -> Result<(), StoreError> {
    let link = &context.stores.consume;
    if link.find(DEAD_LETTERS).await?.is_none() {
        context.mender.missing(DEAD_LETTERS);
    }
    let mut drain = Drain::open(link).await?;
    loop {
        let drained = tokio::select! {
            biased;
            () = stop.cancelled() => {
                drain.close().await;
                return Ok(());
            }
            drained = drain.next() => drained?,
        };
        let deaths = drained.deaths(clock::now());
        crash::point("drained");
        let Some(Stored { new, again, copies }) = store(context, deaths, stop).await else {
            drain.close().await;
            return Ok(());
        };
        crash::point("stored");
        drained.acknowledge().await?;
        *stored_some = true;
        for (kind, count) in [("new", new), ("again", again), ("copy", copies)] {
            observe::counter(&metric::DEAD_LETTERS_STORED, &[("kind", kind)]).increment(count);
        }
        if new + again > 0 {
            tracing::warn!(
                new,
                again,
                "There are dead letters; `taskflow dead-letters groups` tells of what."
            );
        }
    }
}

/// Stores deaths, as long as it may take; `None` if `stop` came first. They are held meanwhile, not given back: the
/// broker counts what is given back, and drops what comes back too often.
async fn store(context: &Context, mut deaths: Vec<Death>, stop: &CancellationToken) -> Option<Stored> {
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_secs(5));
    let answers = Answers::default();
    let mut told = false;
    loop {
        let stored = dead_letter_intake::store(&context.stores.postgres, &deaths);
        let error = match answers.wait("store dead letters", stored).await {
            Ok(stored) => return Some(stored),
            Err(error) => error,
        };
        match error.kind {
            Kind::Conflict => {}
            Kind::Data if deaths.len() > 1 => return one_by_one(context, deaths, stop).await,
            Kind::Data if deaths.iter().any(|death| !death.headers.is_empty()) => {
                tracing::error!(%error, "A dead letter's headers can't be stored; it is kept without them.");
                deaths.iter_mut().for_each(|death| death.headers.clear());
            }
            _ if told || !seldom::worth_a_line(&error) => {
                tracing::debug!(%error, "The dead letters still can't be stored.");
            }
            _ => {
                tracing::warn!(%error, "The dead letters can't be stored; they are held until they can.");
                told = true;
            }
        }
        if !backoff.wait(stop).await {
            return None;
        }
    }
}

/// One that Postgres refuses must not hold up the others.
async fn one_by_one(context: &Context, deaths: Vec<Death>, stop: &CancellationToken) -> Option<Stored> {
    let mut sum = Stored::default();
    for death in deaths {
        let stored = Box::pin(store(context, vec![death], stop)).await?;
        sum.new += stored.new;
        sum.again += stored.again;
        sum.copies += stored.copies;
    }
    Some(sum)
}
