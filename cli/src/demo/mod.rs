//! The demonstration: four servers and two workers of its own, a stream of dependent commands, and three things broken
//! while it flows: a worker killed, the broker and Postgres restarted. Then the count of [`crate::verify`].
//!
//! It reads no settings: nothing of the machine's other deployments can be meant by mistake.

mod acts;
mod scene;
mod view;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

pub(crate) use self::acts::Act;
use self::acts::Troupe;
use self::scene::Scene;
pub(crate) use self::view::View;
use self::watch::Watch;
use crate::place::{Place, Site};
use crate::settings::Settings;
use crate::verify::{self, Count, Run, Stream};

/// How long nothing may happen before what is missing is given up.
const PATIENCE: Duration = Duration::from_secs(45);

/// How much, and how fast.
pub(crate) struct Plan {
    /// Commands a second.
    pub rate: f64,
    pub subjects: usize,
    /// Before each thing that is broken, and after the last.
    pub rest: Duration,
    pub data: PathBuf,
}

/// What was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Played {
    pub seconds: f64,
    pub acts: Vec<Act>,
    /// Tries that the broker did not confirm, made again.
    pub refused: u64,
    /// Commands that were sent twice on purpose.
    pub twice: u64,
    pub count: Count,
    /// Where the logs are, if something is wrong.
    pub kept: Option<PathBuf>,
}

/// Plays it. `None` if `stopped` came first. Whatever comes, what was started is stopped.
pub(crate) async fn run(
    plan: &Plan,
    view: &View,
    stopped: impl Future<Output = ()>,
) -> Result<Option<Played>> {
    let start = Instant::now();
    let scene = Arc::new(Scene::new(start));
    let mut stopped = std::pin::pin!(stopped);
    view.say(&scene, "starting Postgres, RabbitMQ, MongoDB and Redis");
    let settings = Settings::default();
    let opened = tokio::select! {
        opened = Place::open(&plan.data, &settings, 1, |line| view.say(&scene, line)) => Some(opened),
        () = &mut stopped => None,
    };
    let mut place = match opened {
        Some(Ok(place)) => place,
        // Dropped half-way, they were killed.
        Some(Err(error)) => return Err(error.context("start the demonstration's stores")),
        None => {
            taskflow_servers::discard(&plan.data).await?;
            return Ok(None);
        }
    };
    let played = tokio::select! {
        played = play(plan, &mut place, &scene, view) => Some(played),
        () = stopped => None,
    };
    view.say(&scene, "stopping the stores");
    let Some(mut played) = played.transpose()? else {
        place.close().await;
        return Ok(None);
    };
    if played.count.is_clean() {
        place.close().await;
    } else {
        played.kept = Some(place.keep().await);
    }
    played.seconds = start.elapsed().as_secs_f64();
    view.say(&scene, if played.count.is_clean() { "done" } else { "done, and something is wrong" });
    Ok(Some(played))
}

async fn play(plan: &Plan, place: &mut Place, scene: &Arc<Scene>, view: &View) -> Result<Played> {
    let site = place.site().await.context("prepare the stores")?;
    let drawing = view.draw(Arc::clone(scene));
    let mut troupe = Troupe::new(plan, &site, scene, view)?;
    troupe.start_worker()?;
    troupe.start_worker()?;
    view.say(scene, "waiting for the workers");
    let run = Run::begin(&site.stores, PATIENCE).await?;
    let stream = Stream::start(
        &site.stores.publisher,
        run,
        verify::Plan { subjects: plan.subjects, rate: plan.rate, seconds: 0, patience: PATIENCE },
    );
    let watch =
        Watch::start(site.stores.postgres.clone(), run.user, Arc::clone(&stream.progress), Arc::clone(scene));
    view.say(scene, &format!("sending {} commands a second", plan.rate));
    watch.wait_for_all(plan.subjects).await;

    let mut acts = Vec::new();
    for act in [Act::KILL_WORKER, Act::RESTART_BROKER, Act::RESTART_POSTGRES] {
        tokio::time::sleep(plan.rest).await;
        acts.push(troupe.play(act, place, &watch).await?);
    }
    tokio::time::sleep(plan.rest).await;

    let progress = Arc::clone(&stream.progress);
    let sent = stream.end().await;
    let accepted = sent.accepted();
    view.say(scene, "counting");
    let tell = |found: usize| scene.set_phase(&format!("counting: {found} receipts of {accepted}"));
    // Nothing is deleted: the stores are gone in a moment, and what is shown counts everything of the user's.
    let count = verify::count(&site.stores, run, &sent, PATIENCE, false, tell).await;
    watch.last_look().await;
    troupe.stop().await?;
    drop((watch, drawing));
    close(site).await;
    Ok(Played {
        seconds: 0.0,
        acts,
        refused: progress.refused.load(Ordering::Relaxed),
        twice: progress.twice.load(Ordering::Relaxed),
        count,
        kept: None,
    })
}

async fn close(site: Site) {
    // A pool waits for connections that are in use; nobody should have one any more.
    let _ = tokio::time::timeout(Duration::from_secs(2), site.close()).await;
}
