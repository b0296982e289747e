//! The workers: they take commands from the partition queues and apply them by batches.
//!
//! [`lease`] decides which partitions this process consumes; [`partition`] is the pipeline of one partition, a step a
//! file: [`collect`], [`decode`], [`apply`] (claim, load, decide, write, commit), acknowledge, and [`relay`] to the
//! other stores. A batch costs the same number of statements whatever its size.

mod announce;
mod apply;
mod backoff;
mod bisect;
mod collect;
pub mod crash;
mod decode;
mod gauges;
mod give_way;
mod lease;
mod messages;
mod partition;
mod relay;
mod report;
mod sink;
mod suspect;
mod waiting;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use taskflow_core::event::Retention;
use taskflow_core::wait::Patience;
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::Publisher;
use taskflow_stores::redis::Redis;
use taskflow_stores::{mongo, rabbit};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How workers work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Most commands in one transaction.
    pub max_batch: usize,
    /// How long a batch waits for more commands while there is a stream of them, in milliseconds. A lone command
    /// never waits.
    pub linger_ms: u64,
    /// How long a lease lasts that is not renewed, in milliseconds: a dead worker's partitions stand still so long.
    pub lease_ms: u64,
    /// Batches that each sink may be behind in memory before it reads them from the outbox instead.
    pub relay_queue: usize,
    /// How long a stopping worker waits for what it holds to reach the other stores, in milliseconds. The outbox
    /// keeps the rest.
    pub drain_ms: u64,
    /// How long commands wait for what may come.
    pub patience: Patience,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_batch: 250,
            linger_ms: 2,
            lease_ms: 8_000,
            relay_queue: 2,
            drain_ms: 10_000,
            patience: Patience::default(),
        }
    }
}

/// The stores that a worker uses.
#[derive(Clone)]
pub struct Stores {
    pub postgres: PgPool,
    pub mongo: mongo::Database,
    pub redis: Redis,
    /// The connection that consumes. Another one publishes: a broker that blocks publishers stops reading from their
    /// connection, acknowledgements included.
    pub consume: Link,
    pub publisher: Publisher,
    pub rabbit: rabbit::Settings,
}

/// What every partition of this process shares.
pub(crate) struct Context {
    pub settings: Settings,
    pub retention: Retention,
    pub stores: Stores,
    pub events: mongo::events::Events,
    pub announcer: announce::Announcer,
    pub give_way: give_way::GiveWay,
    /// This process, new at every start.
    pub worker: Uuid,
}

/// Works until `stop`: then finishes the batches in hand, gives the rest back to the broker in order, and leaves.
pub async fn run(
    settings: Settings,
    retention: Retention,
    stores: Stores,
    name: String,
    stop: CancellationToken,
) {
    let context = Arc::new(Context {
        events: mongo::events::collection(&stores.mongo),
        announcer: announce::start(stores.redis.clone(), stop.clone()),
        give_way: give_way::GiveWay::default(),
        worker: clock::new_id(),
        settings,
        retention,
        stores,
    });
    tracing::info!(worker = %context.worker, name, "The worker starts.");
    tokio::join!(lease::run(&context, &name, &stop), gauges::run(&context.stores, &stop));
    tracing::info!(worker = %context.worker, "The worker has left.");
}
