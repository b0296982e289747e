//! The roles: api, worker, scheduler, or all of them in one process.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use taskflow_api::Metrics;
use taskflow_backup::{Vault, journal};
use taskflow_stores::postgres::{PgPool, restore_epochs};
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::vitals::Vitals;
use taskflow_stores::{declare, rabbit};
use taskflow_workers::Journal;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::backup::Look;
use crate::connect::{self, Stores};
use crate::exit::Exit;
use crate::lifecycle::Signals;
use crate::settings::Settings;
use crate::{lifecycle, monitor, telemetry};

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Api,
    Worker,
    Scheduler,
}

impl Role {
    pub(crate) const ALL: [Self; 3] = [Self::Api, Self::Worker, Self::Scheduler];
}

/// What the roles call themselves towards the stores.
pub(crate) const NAME: &str = "taskflow";

/// Runs roles until the process is told to stop.
pub(crate) async fn run(settings: Settings, roles: &[Role]) -> Result<ExitCode, Exit> {
    let signals = Signals::listen()?;
    telemetry::start_logs(&settings)?;
    let metrics = telemetry::start_metrics()?;
    let stop = CancellationToken::new();
    let running = start(&settings, roles, metrics, &stop).await?;
    Ok(running.until_stopped(signals, stop).await)
}

/// Roles at work in this process.
pub(crate) struct Running {
    parts: JoinSet<&'static str>,
    /// The connections outlive the roles: what a role holds at its end is acknowledged over them.
    links: CancellationToken,
    postgres: PgPool,
    publish: Link,
    rabbit: rabbit::Settings,
}

impl Running {
    /// Waits until the broker takes commands.
    pub(crate) async fn ready(&self) -> Result<(), Exit> {
        declare::declare(&self.postgres, &self.publish, &self.rabbit).await?;
        Ok(())
    }

    /// Works until the process is told to stop, then says goodbye to the stores.
    pub(crate) async fn until_stopped(self, signals: Signals, stop: CancellationToken) -> ExitCode {
        let code = lifecycle::run(self.parts, signals, stop).await;
        self.links.cancel();
        let goodbye = async {
            tokio::join!(self.postgres.close(), tokio::time::sleep(GOODBYE));
        };
        let _ = tokio::time::timeout(2 * GOODBYE, goodbye).await;
        code
    }
}

/// What the broker's connections have to say goodbye.
const GOODBYE: Duration = Duration::from_millis(200);

/// Starts roles as parts of this process.
pub(crate) async fn start(
    settings: &Settings,
    roles: &[Role],
    metrics: Metrics,
    stop: &CancellationToken,
) -> Result<Running, Exit> {
    let mut parts = JoinSet::new();
    let links = CancellationToken::new();
    let stores = connect::stores(settings, NAME, &links).await?;
    let vitals = Vitals::default();
    if roles.contains(&Role::Api) {
        let listener = taskflow_api::bind(&settings.http).await.map_err(Exit::failed)?;
        tracing::info!("Listening on http://{}", settings.http.listen);
        let inside = monitor::bind(settings.metrics.address(roles)).await?;
        parts.spawn(api(
            settings.clone(),
            &stores,
            metrics,
            vitals.clone(),
            (listener, inside),
            stop.clone(),
        ));
    } else {
        let listener = monitor::bind(settings.metrics.address(roles)).await?;
        let (postgres, broker, stop) = (stores.postgres.clone(), stores.publish.clone(), stop.clone());
        let vitals = vitals.clone();
        parts.spawn(async move {
            monitor::run(listener, metrics, postgres, broker, vitals, stop).await;
            "monitor"
        });
    }
    if roles.contains(&Role::Worker) {
        let left = CancellationToken::new();
        let journal = start_journal(settings, &mut parts, &left);
        let worker = worker(settings.clone(), &stores, vitals.clone(), journal, stop.clone());
        parts.spawn(async move {
            // Also when it panics: the journal is written to its end.
            let _left = left.drop_guard();
            worker.await
        });
    }
    if roles.contains(&Role::Scheduler) {
        parts.spawn(canary(settings, &stores, stop.clone()));
        parts.spawn(scheduler(settings.clone(), &stores, vitals, stop.clone()));
    }
    Ok(Running { parts, links, postgres: stores.postgres, publish: stores.publish, rabbit: stores.rabbit })
}

fn api(
    settings: Settings,
    stores: &Stores,
    metrics: Metrics,
    vitals: Vitals,
    (listener, inside): (TcpListener, TcpListener),
    stop: CancellationToken,
) -> impl Future<Output = &'static str> + Send + use<> {
    let (link, postgres) = (stores.publish.clone(), stores.postgres.clone());
    let stores = taskflow_api::Stores {
        postgres: stores.postgres.clone(),
        mongo: stores.mongo.clone(),
        redis: stores.redis.clone(),
        publisher: stores.publisher.clone(),
        broker: link.clone(),
        rabbit: stores.rabbit.clone(),
        backups: settings.backup.is_on().then(|| {
            let look: Arc<dyn taskflow_api::Backups> = Arc::new(Look(settings.backup.clone()));
            look
        }),
    };
    async move {
        let declare = async {
            if let Err(error) = connect::declare(&postgres, &link, &settings.amqp, &stop).await {
                tracing::error!(%error, "The broker's objects do not fit.");
            }
        };
        // It listens while the broker is away: health and receipts are there all the same.
        let serve = taskflow_api::run(settings.http, stores, metrics, vitals, listener, inside, stop.clone());
        tokio::join!(declare, serve);
        "api"
    }
}

fn canary(
    settings: &Settings,
    stores: &Stores,
    stop: CancellationToken,
) -> impl Future<Output = &'static str> + Send + use<> {
    let settings = settings.canary.clone();
    let stores = taskflow_scheduler::canary::Stores {
        postgres: stores.postgres.clone(),
        mongo: stores.mongo.clone(),
        publisher: stores.publisher.clone(),
        rabbit: stores.rabbit.clone(),
    };
    async move {
        taskflow_scheduler::canary::run(settings, stores, stop).await;
        "canary"
    }
}

/// Starts the journal of applied commands, where there is a place for it. It ends behind the worker.
fn start_journal(
    settings: &Settings,
    parts: &mut JoinSet<&'static str>,
    left: &CancellationToken,
) -> Option<Journal> {
    let backup = &settings.backup;
    if !(backup.is_on() && backup.journal) {
        return None;
    }
    let opened = Vault::open(backup).and_then(|vault| Ok((vault, journal::spool(backup)?)));
    match opened {
        Ok((vault, spool)) => {
            let (spool, left) = (Arc::new(spool), left.clone());
            let journal = Journal::new(Arc::clone(&spool));
            parts.spawn(async move {
                journal::write(&vault, spool, &left).await;
                "journal"
            });
            Some(journal)
        }
        // Commands are applied all the same.
        Err(error) => {
            tracing::error!(%error, "There is no journal of commands.");
            Some(Journal::missing(&error.to_string()))
        }
    }
}

fn worker(
    settings: Settings,
    stores: &Stores,
    vitals: Vitals,
    journal: Option<Journal>,
    stop: CancellationToken,
) -> impl Future<Output = &'static str> + Send + use<> {
    let stores = taskflow_workers::Stores {
        postgres: stores.postgres.clone(),
        mongo: stores.mongo.clone(),
        redis: stores.redis.clone(),
        consume: stores.consume.clone(),
        publisher: stores.publisher.clone(),
        events: stores.events.clone(),
        rabbit: stores.rabbit.clone(),
        journal,
    };
    let name = host();
    async move {
        match connect::declare(&stores.postgres, &stores.consume, &settings.amqp, &stop).await {
            Ok(Some(course)) => {
                restore_epochs::until_agreed(&stores.postgres, &vitals, &stop).await;
                let Settings { worker, retention, .. } = settings;
                taskflow_workers::run(worker, retention, stores, course, name, vitals, stop).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "The worker can't start."),
        }
        "worker"
    }
}

fn scheduler(
    settings: Settings,
    stores: &Stores,
    vitals: Vitals,
    stop: CancellationToken,
) -> impl Future<Output = &'static str> + Send + use<> {
    let stores = taskflow_scheduler::Stores {
        postgres: stores.postgres.clone(),
        mongo: stores.mongo.clone(),
        redis: stores.redis.clone(),
        backups: taskflow_scheduler::Backups::new(settings.backup.clone(), settings.postgres.url.clone()),
    };
    async move {
        restore_epochs::until_agreed(&stores.postgres, &vitals, &stop).await;
        let Settings { scheduler, audit, retention, .. } = settings;
        if let Err(error) = taskflow_scheduler::run(scheduler, audit, retention, stores, host(), stop).await {
            tracing::error!(%error, "The scheduler can't start.");
        }
        "scheduler"
    }
}

/// The machine's name.
fn host() -> String {
    nix::unistd::gethostname().map_or_else(|_| "unknown".into(), |name| name.to_string_lossy().into_owned())
}
