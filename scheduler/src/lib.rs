//! The scheduler: it runs the jobs that keep the data well, and keeps a ledger of them.
//!
//! Several processes may run; one leads ([`leader`]). It writes each due time into the ledger before anything is run
//! ([`fire`]), begins what is ready ([`engine`]), and says how it ended ([`run`]), all under its fence: whoever has lost
//! the lead can write nothing more. [`arm`] repairs schedules that have lost their next due time. [`jobs`] has one file
//! a job and the table of all of them; [`audit`] is what the jobs of the audit trail and its command line share. [`canary`] is apart: it runs in every scheduler process.

mod arm;
pub mod audit;
pub mod canary;
mod context;
mod emptied;
mod engine;
mod fire;
mod jobs;
mod leader;
mod led;
mod load;
mod log_of_writes;
mod recovery;
mod run;
mod schedules;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use taskflow_core::event::Retention;
use taskflow_core::job::State;
use taskflow_core::metric;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::redis::Redis;
use taskflow_stores::runtime_pulse::RuntimePulse;
use taskflow_stores::{clock, mongo, observe};
use tokio_util::sync::CancellationToken;

pub use jobs::{Job, all as all_jobs};
pub use schedules::{JobSettings, Schedule, Schedules};

/// Steps between which a test can end the process.
pub const CRASH_POINTS: [&str; 6] = ["led", "fired", "begun", "half_done", "worked", "ended"];

/// How the scheduler works.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How long the lead lasts that is not renewed, in milliseconds, from 1000 to 60000: nothing is fired for so long after a
    /// leader's death.
    pub lease_ms: u64,
    /// The time zone of the schedules that name none, such as `Europe/Berlin`.
    pub time_zone: String,
    /// Runs at a time. One of the places is kept for runs that end within ten minutes, unless there is only one.
    pub at_once: usize,
    /// The share of the time that a job of many steps keeps its store busy; it rests for the others.
    pub share: f64,
    /// Users whose answers `cache.warm` makes in advance, those who read most first.
    pub warm_users: usize,
    /// Such a job waits while the partition that is behind most is so for longer than this, in seconds …
    pub yield_behind_s: f64,
    /// … or while more sessions than this work in Postgres …
    pub yield_sessions: i64,
    /// … or, if it works on MongoDB, while more operations than this work or wait there …
    pub yield_mongodb_clients: i64,
    /// … or, if it works on Redis, while it serves more calls than this a second.
    pub yield_redis_calls: f64,
    /// The time of the day, in `time_zone`, in which maintenance may be done, such as `01:00-05:00`; `00:00-00:00` is
    /// always.
    pub maintenance_window: String,
    /// Changes to the jobs' schedules, and further ones.
    pub jobs: BTreeMap<String, JobSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: 6_000,
            time_zone: "UTC".to_owned(),
            at_once: 4,
            share: 0.25,
            warm_users: 1_000,
            yield_behind_s: 5.0,
            yield_sessions: 32,
            yield_mongodb_clients: 32,
            yield_redis_calls: 20_000.0,
            maintenance_window: "01:00-05:00".to_owned(),
            jobs: BTreeMap::new(),
        }
    }
}

/// The stores that jobs use.
#[derive(Clone)]
pub struct Stores {
    pub postgres: PgPool,
    pub mongo: mongo::Database,
    pub redis: Redis,
    pub backups: Backups,
}

/// What jobs that make backups need beside the stores.
#[derive(Clone, Default)]
pub struct Backups {
    pub settings: taskflow_backup::Settings,
    /// For Postgres's own programs, which log in by themselves.
    pub postgres_url: String,
    pub(crate) known: recovery::Known,
}

impl Backups {
    pub fn new(settings: taskflow_backup::Settings, postgres_url: String) -> Self {
        Self { settings, postgres_url, known: recovery::Known::default() }
    }
}

/// How a run ends that somebody must look at.
const FAILED: [State; 2] = [State::Failed, State::TimedOut];

/// Works until `stop`: then tells its jobs to stop, writes down how far they have got, and gives the lead back.
///
/// # Errors
/// The settings' schedules can't be understood; the text says what is wrong.
pub async fn run(
    settings: Settings,
    audit: audit::Settings,
    retention: Retention,
    stores: Stores,
    host: String,
    stop: CancellationToken,
) -> Result<(), String> {
    let schedules = Schedules::read(&settings)?;
    let _pulse = RuntimePulse::start(None).map_err(|error| format!("no thread can be started: {error}"))?;
    let holder = clock::new_id();
    tracing::info!(%holder, host, schedules = schedules.len(), "The scheduler starts.");
    let receiving = log_of_writes::run(stores.backups.clone(), stores.postgres.clone(), stop.clone());
    // There from the start: an alert is about the first of them.
    for (job, outcome) in jobs::all().flat_map(|job| FAILED.map(|outcome| (job.name, outcome.as_str()))) {
        observe::counter(&metric::JOB_RUNS, &[("job", job), ("outcome", outcome)]).absolute(0);
    }
    let engine = engine::Engine::new(settings, audit, retention, stores, schedules, holder, host);
    tokio::join!(leader::run(&engine, &stop), receiving);
    tracing::info!(%holder, "The scheduler has left.");
    Ok(())
}
