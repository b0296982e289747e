//! Carries system events to the audit trail and to the event exchange. Both take what they have already without harm.
//! Before, each becomes a link of a chain of their own: so whether one is missing in the trail can be told.

use std::time::Duration;

use futures_util::future::try_join_all;
use taskflow_core::audit::leaves::Leaves;
use taskflow_core::{metric, system_event};
use taskflow_stores::postgres::audit_chain::SYSTEM;
use taskflow_stores::postgres::system_events;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::{StoreError, mongo, observe, seldom};
use tokio_util::sync::CancellationToken;

use crate::answers::Answers;
use crate::{Context, crash, exchange};
use taskflow_stores::backoff::Backoff;

/// Events that are delivered together.
const TOGETHER: i64 = 50;
/// Time between two looks when there was nothing.
const IDLE: Duration = Duration::from_millis(500);

/// Works until `stop`.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let fresh = || Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut backoff = fresh();
    let answers = Answers::default();
    loop {
        match deliver(context, &answers).await {
            Ok(0) => {
                backoff = fresh();
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(IDLE) => {}
                }
            }
            Ok(_) if stop.is_cancelled() => return,
            Ok(_) => backoff = fresh(),
            Err(error) => {
                if backoff.tries() == 0 && seldom::worth_a_line(&error) {
                    tracing::warn!(%error, "System events can't be delivered; Postgres keeps them until they can.");
                }
                if !backoff.wait(stop).await {
                    return;
                }
            }
        }
    }
}

async fn deliver(context: &Context, answers: &Answers) -> Result<usize, StoreError> {
    let taken = system_events::take(&context.stores.postgres, TOGETHER);
    let taken = answers.wait("take system events", taken).await?;
    if taken.events.is_empty() {
        return Ok(0);
    }
    let sealed = taken.events.iter().map(|waiting| {
        let event = waiting.occurrence.to_event(&context.retention);
        let leaves = Leaves::of_one(&event, waiting.salt);
        (waiting.place, waiting.link, event, leaves)
    });
    let sealed: Vec<_> = sealed.collect();
    let new = sealed.iter().filter(|(_, link, _, _)| link.is_none());
    let new: Vec<(i64, String)> =
        new.filter_map(|(place, _, _, leaves)| Some((*place, leaves.link()?))).collect();
    if !new.is_empty() {
        answers.wait("link system events", taken.join_chain(&new)).await?;
        crash::point("system_linked");
        return Ok(new.len());
    }
    // One by one: an event keeps its place in the trail, whatever is delivered beside it the next time.
    let audited = sealed.iter().filter_map(|(_, link, event, leaves)| {
        let run = mongo::events::Run { partition: SYSTEM, number: (*link)? };
        Some(context.event_writer.insert(run, std::slice::from_ref(event), Some(leaves)))
    });
    try_join_all(audited).await?;
    crash::point("system_audited");
    exchange::tell(context, sealed.len(), |index| Message::event(&sealed[index].2, None)).await?;
    answers.wait("remove system events", taken.delivered()).await?;
    for (_, _, event, _) in &sealed {
        if let Some(operation) = system_event::operation(&event.kind) {
            observe::counter(&metric::SENSITIVE_OPERATIONS, &[("operation", operation)]).increment(1);
        }
    }
    Ok(sealed.len())
}
