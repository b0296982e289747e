//! Canaries: a trickle of commands of our own through every partition, so that it is known at any time, and not only when
//! somebody runs `taskflow verify`, whether commands are lost, doubled, reordered or stuck. Off by default.
//!
//! The scheduler sends them, since it does nothing else of a command's way: what it sees is what a caller would see. With
//! several schedulers, one watches over each partition's canary, and another takes over when it is gone.
//! [`taskflow_core::canary`] has the commands and the judgement, [`round`] one pair's way.

mod round;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use taskflow_core::partition::{Course, Partition};
use taskflow_core::{canary, metric};
use taskflow_stores::postgres::{PgPool, layout, silence, users};
use taskflow_stores::rabbit::publish::{Message, Publisher};
use taskflow_stores::{StoreError, clock, mongo, observe, rabbit, supervise};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::round::Round;

/// Whether and how often canaries are sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Milliseconds between two pairs of commands in each partition, give or take a tenth. 0 sends none.
    pub every_ms: u64,
    /// How long a canary may be on its way before it counts as stuck, in milliseconds.
    pub stuck_after_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { every_ms: 0, stuck_after_ms: 30_000 }
    }
}

/// The stores that canaries pass.
#[derive(Clone)]
pub struct Stores {
    pub postgres: PgPool,
    pub mongo: mongo::Database,
    pub publisher: Publisher,
    pub rabbit: rabbit::Settings,
}

/// What becomes of a canary command, as the metric names it.
const RESULTS: [&str; 6] = ["sent", "applied", "lost", "doubled", "reordered", "stuck"];
/// Between two looks whether the number of partitions changes.
const LOOK: Duration = Duration::from_secs(2);
/// Between two tries to make the user.
const AGAIN: Duration = Duration::from_secs(2);

/// Sends canaries until `stop`; none if they are off.
pub async fn run(settings: Settings, stores: Stores, stop: CancellationToken) {
    if settings.every_ms == 0 {
        return stop.cancelled().await;
    }
    tracing::info!(every_ms = settings.every_ms, "Canaries are sent through every partition.");
    if !user_is_there(&stores, &stop).await {
        return;
    }
    let holder = clock::new_id();
    let mut known: Option<Course> = None;
    let mut rounds = Rounds::default();
    while !stop.is_cancelled() {
        // While their number changes, partitions have no canaries: what is drained is no stream to look at.
        match layout::course(&stores.postgres, stores.rabbit.layout()).await {
            Ok(course) if known != Some(course) => {
                rounds.end().await;
                if course.is_settled() {
                    rounds = Rounds::start(&settings, &stores, &course.to.all(), holder, &stop);
                }
                known = Some(course);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "The partitions can't be read."),
        }
        if !rest(&stop, LOOK).await {
            break;
        }
    }
    rounds.end().await;
}

/// The canaries of all partitions, until they are ended.
#[derive(Default)]
struct Rounds {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Rounds {
    fn start(
        settings: &Settings,
        stores: &Stores,
        partitions: &[Partition],
        holder: Uuid,
        stop: &CancellationToken,
    ) -> Self {
        let stop = stop.child_token();
        let mut tasks = JoinSet::new();
        for partition in partitions {
            for result in RESULTS {
                count(&partition.to_string(), result, 0);
            }
            let round = Round::new(settings.clone(), stores.clone(), *partition, holder, stop.clone());
            tasks.spawn(async move { supervise::forever("canary", &round.stop, || round.run()).await });
        }
        Self { tasks, stop }
    }

    async fn end(&mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn count(partition: &str, result: &str, more: u64) {
    let labels = [("partition", partition), ("result", result)];
    observe::counter(&metric::CANARY_COMMANDS, &labels).increment(more);
}

/// Waits for some time; `false` if `stop` came first.
async fn rest(stop: &CancellationToken, time: Duration) -> bool {
    tokio::select! {
        () = stop.cancelled() => false,
        () = tokio::time::sleep(time) => true,
    }
}

/// Waits until the canaries' user exists, and sends the command that makes it; `false` if `stop` came first.
async fn user_is_there(stores: &Stores, stop: &CancellationToken) -> bool {
    let command = canary::register(clock::new_id());
    let mut told = false;
    loop {
        match look_for_user(&stores.postgres).await {
            Ok(true) => return true,
            Ok(false) => {
                // Again under the same id: once is enough.
                let sent = stores.publisher.publish(Message::command(&command, clock::now(), None)).await;
                if let Err(error) = sent
                    && !std::mem::replace(&mut told, true)
                {
                    tracing::warn!(%error, "The canaries' user can't be made yet; trying again.");
                }
            }
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!(%error, "The canaries' user can't be looked up yet; trying again.");
            }
            Err(_) => {}
        }
        if !rest(stop, AGAIN.mul_f64(rand::random_range(0.5..=1.0))).await {
            return false;
        }
    }
}

async fn look_for_user(postgres: &PgPool) -> Result<bool, StoreError> {
    let found = users::read_all(postgres, &[canary::USER] as &[Uuid]);
    Ok(!silence::within(silence::ANSWER, "look for the canaries' user", found).await?.is_empty())
}
