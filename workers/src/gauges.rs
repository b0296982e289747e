//! What is measured from time to time rather than as it happens: queues, dead letters, the outbox, the stores.

use std::collections::BTreeSet;
use std::time::Duration;

use taskflow_core::metric;
use taskflow_stores::postgres::{self, dead_letters, outbox, system_events, waiting};
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use taskflow_stores::{StoreError, crash, mongo, observe};
use tokio_util::sync::CancellationToken;

use crate::Context;
use crate::answers::Answers;

const EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let stores = &context.stores;
    let mut seen = BTreeSet::new();
    let answers = Answers::default();
    loop {
        crash::point("gauges");
        let probed = answers.wait("probe", postgres::probe(&stores.postgres)).await;
        observe::store_up("postgres", probed.is_ok());
        observe::store_up("mongodb", mongo::probe(&stores.mongo).await.is_ok());
        observe::store_up("redis", stores.redis.probe().await.is_ok());
        let queues = measure_queues(context, &mut seen).await;
        observe::store_up("rabbitmq", queues.is_ok());
        if let Err(error) = queues {
            tracing::debug!(%error, "The queues could not be measured.");
        }
        match answers.wait("measure the outbox", outbox::backlog(&stores.postgres)).await {
            Ok((rows, oldest_s)) => {
                observe::gauge(&metric::OUTBOX_PENDING, &[]).set(rows as f64);
                observe::gauge(&metric::OUTBOX_OLDEST, &[]).set(oldest_s);
            }
            Err(error) => tracing::debug!(%error, "The outbox could not be measured."),
        }
        match answers.wait("count what waits", waiting::count(&stores.postgres)).await {
            Ok((parked, scheduled)) => {
                observe::gauge(&metric::PARKED, &[]).set(parked as f64);
                observe::gauge(&metric::SCHEDULED, &[]).set(scheduled as f64);
            }
            Err(error) => tracing::debug!(%error, "The waiting commands could not be counted."),
        }
        match answers.wait("count dead letters", dead_letters::count_kept(&stores.postgres)).await {
            Ok(kept) => observe::gauge(&metric::DEAD_LETTERS, &[]).set(kept as f64),
            Err(error) => tracing::debug!(%error, "The dead letters could not be counted."),
        }
        match answers.wait("count system events", system_events::count(&stores.postgres)).await {
            Ok(pending) => observe::gauge(&metric::SYSTEM_EVENTS_PENDING, &[]).set(pending as f64),
            Err(error) => tracing::debug!(%error, "The system events could not be counted."),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// `seen` are the queues that were measured before: one that is no more shows 0.
async fn measure_queues(context: &Context, seen: &mut BTreeSet<String>) -> Result<(), StoreError> {
    let link = &context.stores.consume;
    let gauge =
        |queue: &str| observe::gauge(&metric::QUEUE_MESSAGES, &[("queue", queue), ("state", "ready")]);
    let declared = context.course.borrow().declared();
    let mut queues: BTreeSet<String> = declared.iter().map(|partition| partition.queue()).collect();
    queues.insert(DEAD_LETTERS.to_owned());
    for gone in seen.difference(&queues) {
        gauge(gone).set(0.0);
    }
    seen.clone_from(&queues);
    for queue in queues {
        let ready = link.find(&queue).await?.map_or(0.0, |depth| f64::from(depth.ready));
        gauge(&queue).set(ready);
    }
    Ok(())
}
