//! The workers: they take commands from the partition queues and apply them by batches.
//!
//! [`lease`] decides which partitions this process consumes; [`partition`] is the pipeline of one partition, a step a
//! file: [`collect`], [`decode`], [`apply`] (claim, load, decide, write, commit), acknowledge, and [`relay`] to the
//! other stores. A batch costs the same number of statements whatever its size.

mod announce;
mod answers;
mod apply;
mod bisect;
pub mod change;
mod collect;
pub mod crash;
mod dead_letters;
mod decode;
mod exchange;
mod gauges;
mod give_way;
mod journal;
mod lease;
mod messages;
mod partition;
mod pause;
mod pulse;
mod relay;
mod replay;
mod report;
mod search_index;
mod sink;
mod suspect;
mod system_events;
mod waiting;
mod watchdog;

use std::sync::Arc;
use std::time::Duration;

pub use journal::Journal;
use serde::{Deserialize, Serialize};
use taskflow_core::event::Retention;
use taskflow_core::metric;
use taskflow_core::partition::Course;
use taskflow_core::pause::Pauses;
use taskflow_core::wait::Patience;
use taskflow_stores::clock;
use taskflow_stores::declare::Mender;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::Publisher;
use taskflow_stores::redis::Redis;
use taskflow_stores::runtime_pulse::RuntimePulse;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::vitals::Vitals;
use taskflow_stores::{mongo, observe, rabbit, supervise};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// How workers work.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Most commands in one transaction. Of each partition 500 are held, and with more than 500 twice as many: once it was
    /// above, it may be lowered only while the queues are empty, or what comes back gets out of order.
    pub max_batch: usize,
    /// How long a batch waits for more commands while there is a stream of them, in milliseconds: long enough for the
    /// broker to send what an acknowledgement has made room for. A lone command never waits.
    pub linger_ms: u64,
    /// How long a lease lasts that is not renewed, in milliseconds: a dead worker's partitions stand still so long.
    pub lease_ms: u64,
    /// Batches that each sink may be behind in memory before it reads them from the outbox instead.
    pub relay_queue: usize,
    /// How long a stopping worker waits for what it holds to reach the other stores, in milliseconds. The outbox
    /// keeps the rest. A partition that only changes hands waits for a second at most.
    pub drain_ms: u64,
    /// How long commands wait for what may come.
    pub patience: Patience,
    /// How long messages may wait in a partition in which nothing is finished, for no known cause, before the watchdog
    /// repairs it, in milliseconds.
    pub stuck_after_ms: u64,
    /// Whether batches join the chain of the audit trail. Without it their events can be neither proved nor verified, then
    /// or later; it is there so that the benchmark can tell what the chain costs.
    pub audit_chain: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_batch: 400,
            linger_ms: 10,
            lease_ms: 8_000,
            relay_queue: 1,
            drain_ms: 10_000,
            patience: Patience::default(),
            stuck_after_ms: 15_000,
            audit_chain: true,
        }
    }
}

/// A process in which nothing runs for so many times `stuck_after_ms`, and for so long, ends …
const HUNG_PARTS: u32 = 5;
/// … however short that is.
const HUNG_MIN: Duration = Duration::from_secs(10);

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
    /// Publishes events. They may wait for queues of others, for which commands and dead letters must not.
    pub events: Publisher,
    pub rabbit: rabbit::Settings,
    /// Where applied commands are kept for a replay, if anywhere.
    pub journal: Option<Journal>,
}

/// What every partition of this process shares.
pub(crate) struct Context {
    pub settings: Settings,
    pub retention: Retention,
    pub stores: Stores,
    /// The audit trail, for all partitions together.
    pub event_writer: mongo::event_writer::EventWriter,
    pub announcer: announce::Announcer,
    pub give_way: give_way::GiveWay,
    pub solitude: suspect::Solitude,
    /// This process, new at every start.
    pub worker: Uuid,
    /// What operators hold back, as of the last heartbeat.
    pub pauses: watch::Sender<Pauses>,
    /// Which partitions there are, as of the last heartbeat.
    pub course: watch::Sender<Course>,
    pub mender: Mender,
    /// What no partition complains of is logged now and then.
    pub complaints: Seldom,
    pub watched: watchdog::Watched,
    /// What fails again and again.
    pub fails: partition::standstill::Fails,
    /// How long pipelines wait for Postgres.
    pub answers: answers::OfPartitions,
    pub vitals: Vitals,
}

/// Works until `stop`: then finishes the batches in hand, gives the rest back to the broker in order, and leaves.
/// Returns earlier only when a partition is stuck and nothing but the end of the process is left to try.
pub async fn run(
    settings: Settings,
    retention: Retention,
    stores: Stores,
    course: Course,
    name: String,
    vitals: Vitals,
    stop: CancellationToken,
) {
    // There from the start: an alert is about the first of them.
    observe::counter(&metric::TASK_RESTARTS, &[("task", "partition")]).increment(0);
    let context = Arc::new(Context {
        event_writer: mongo::event_writer::EventWriter::start(mongo::events::collection(&stores.mongo)),
        announcer: announce::start(stores.redis.clone(), stop.clone()),
        give_way: give_way::GiveWay::default(),
        solitude: suspect::Solitude::default(),
        worker: clock::new_id(),
        pauses: watch::Sender::default(),
        course: watch::Sender::new(course),
        mender: Mender::default(),
        complaints: Seldom::new(),
        watched: watchdog::Watched::default(),
        fails: partition::standstill::Fails::default(),
        answers: answers::OfPartitions::default(),
        vitals,
        settings,
        retention,
        stores,
    });
    tracing::info!(worker = %context.worker, name, "The worker starts.");
    let hung_after = Duration::from_millis(context.settings.stuck_after_ms) * HUNG_PARTS;
    let pulse = RuntimePulse::start(Some(hung_after.max(HUNG_MIN)));
    if let Err(error) = &pulse {
        tracing::warn!(%error, "No thread can be started: nobody sees it if all others hang.");
    }
    change::show(&course);
    let measure = supervise::forever("gauges", &stop, || gauges::run(&context, &stop));
    let change = supervise::forever("change", &stop, || change::run(&context, &stop));
    let Stores { postgres, consume, rabbit, .. } = &context.stores;
    let mend = supervise::forever("mender", &stop, || context.mender.run(postgres, consume, rabbit, &stop));
    let drain = supervise::forever("dead letters", &stop, || dead_letters::run(&context, &stop));
    let replay = supervise::forever("replay", &stop, || replay::run(&context, &stop));
    let tell = supervise::forever("system events", &stop, || system_events::run(&context, &stop));
    let index = supervise::forever("search index", &stop, || search_index::run(&context, &stop));
    let aside = async { tokio::join!(measure, change, mend, drain, replay, tell, index) };
    let work = Box::pin(async { tokio::join!(lease::run(&context, &name, &stop), Box::pin(aside)) });
    // The lease's keeper and the watchdog are not started again: their end is the process's.
    tokio::select! {
        _ = work => {}
        () = watchdog::until_hopeless(&context, &stop) => {
            tracing::error!(worker = %context.worker, "The watchdog could not mend a partition; the process ends, to be started again.");
            return;
        }
    }
    tracing::info!(worker = %context.worker, "The worker has left.");
}
