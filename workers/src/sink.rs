//! The three sinks that follow Postgres, and how each takes a batch. Taking one twice does no harm: MongoDB knows the
//! events' ids, Redis keeps the newer version, and who listens to the exchange knows the events' ids as well.

use std::time::Instant;

use chrono::{DateTime, Utc};
use taskflow_core::stream::Place;
use taskflow_core::{envelope, metric};
use taskflow_stores::postgres::outbox::Payload;
use taskflow_stores::postgres::{tasks, users};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::redis::cache::{self, Refresh};
use taskflow_stores::{StoreError, clock, mongo, observe};

use crate::answers::Answers;
use crate::{Context, crash, exchange};

/// Who follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    /// The audit trail in MongoDB.
    Audit,
    /// The caches in Redis.
    Cache,
    /// The event exchange in RabbitMQ.
    Exchange,
}

impl Sink {
    pub(crate) const ALL: [Self; 3] = [Self::Audit, Self::Cache, Self::Exchange];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Cache => "cache",
            Self::Exchange => "exchange",
        }
    }

    pub(crate) fn store(self) -> &'static str {
        match self {
            Self::Audit => "mongodb",
            Self::Cache => "redis",
            Self::Exchange => "rabbitmq",
        }
    }
}

/// What a sink takes.
pub(crate) struct Batch {
    pub number: i64,
    pub payload: Payload,
    /// The caches' new values; a batch that comes from the outbox has none, they are read anew.
    pub refresh: Option<Refresh>,
}

/// Gives a batch to a sink. Returns when it is there.
pub(crate) async fn deliver(
    context: &Context,
    partition: &str,
    sink: Sink,
    batch: &Batch,
    answers: &Answers,
) -> Result<DateTime<Utc>, StoreError> {
    let begun = Instant::now();
    let count = match sink {
        Sink::Audit => {
            let run = mongo::events::Run { partition, number: batch.number };
            context.event_writer.insert(run, &batch.payload.events, batch.payload.leaves()).await?;
            crash::point("audited");
            batch.payload.events.len()
        }
        Sink::Cache => {
            match &batch.refresh {
                Some(refresh) => context.stores.redis.refresh(refresh).await?,
                None => {
                    let values = answers.wait("read what the caches missed", reread(context, &batch.payload));
                    context.stores.redis.refresh(&values.await?).await?;
                }
            }
            batch.payload.tasks.len() + batch.payload.users.len()
        }
        Sink::Exchange => {
            publish(context, partition, batch).await?;
            batch.payload.events.len()
        }
    };
    observe::store_took(sink.store(), sink.as_str(), begun.elapsed());
    if tracing::enabled!(tracing::Level::DEBUG) {
        for event in &batch.payload.events {
            tracing::debug!(
                event = %event.id, command = %event.command, correlation = %event.correlation,
                trace = event.traceparent.as_deref().map(envelope::trace_id), sink = sink.as_str(), partition, batch = batch.number,
                "A sink has the event."
            );
        }
    }
    observe::counter(&metric::EVENTS_RELAYED, &[("sink", sink.as_str())]).increment(count as u64);
    Ok(clock::now())
}

/// The present values of what a batch from the outbox has changed: as new as those of the batch, or newer.
async fn reread(context: &Context, payload: &Payload) -> Result<Refresh, StoreError> {
    let mut connection = context
        .stores
        .postgres
        .acquire()
        .await
        .map_err(|error| StoreError::unavailable("postgres", "read what the caches missed", error))?;
    let tasks = tasks::read_many(&mut connection, &payload.tasks).await?;
    let users = users::read_many(&mut connection, &payload.users).await?;
    let entries = tasks.iter().map(cache::task_entry).chain(users.iter().map(cache::user_entry));
    Ok(Refresh { new: Vec::new(), changed: entries.collect() })
}

async fn publish(context: &Context, partition: &str, batch: &Batch) -> Result<(), StoreError> {
    let events = &batch.payload.events;
    let mut place =
        Place { partition: partition.to_owned(), number: batch.number, index: 0, count: events.len() as u32 };
    let message = |index| {
        place.index = index as u32;
        Message::event(&events[index], Some(&place))
    };
    exchange::tell(context, events.len(), message).await
}
