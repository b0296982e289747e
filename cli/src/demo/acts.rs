//! What is broken, by whom, and how long it takes until all goes on.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;
use taskflow_servers::Server;
use tokio::process::{Child, Command};

use super::Plan;
use super::scene::{Mark, Scene};
use super::view::View;
use super::watch::Watch;
use crate::place::{self, Place, Site};

/// How long is waited until every partition goes on. The count tells what came of it.
const LONGEST: Duration = Duration::from_secs(60);

/// One thing that is broken.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Act {
    pub what: &'static str,
    /// Seconds that the store was away; none for a process that is killed.
    #[serde(rename = "awayseconds")]
    pub away_s: Option<f64>,
    /// Seconds from the store's return, or from the kill, until every partition had applied a command again.
    #[serde(rename = "againseconds")]
    pub again_s: Option<f64>,
}

impl Act {
    pub(super) const KILL_WORKER: Self = Self::new("kill -9 of a worker");
    pub(super) const RESTART_BROKER: Self = Self::new("restart of RabbitMQ");
    pub(super) const RESTART_POSTGRES: Self = Self::new("restart of Postgres");

    const fn new(what: &'static str) -> Self {
        Self { what, away_s: None, again_s: None }
    }

    /// For people.
    pub(crate) fn outcome(&self) -> String {
        let away = self.away_s.map(|away| format!("away {away:.1} s; ")).unwrap_or_default();
        match self.again_s {
            Some(again) => format!("{away}all partitions went on after {again:.1} s"),
            None => format!("{away}not all partitions went on within {} s", LONGEST.as_secs()),
        }
    }
}

/// The workers, and who starts and kills them.
pub(super) struct Troupe<'p> {
    site: &'p Site,
    scene: &'p Arc<Scene>,
    view: &'p View,
    logs: PathBuf,
    run: PathBuf,
    workers: Vec<(usize, Child)>,
    started: usize,
}

impl<'p> Troupe<'p> {
    pub(super) fn new(plan: &Plan, site: &'p Site, scene: &'p Arc<Scene>, view: &'p View) -> Result<Self> {
        let data = plan.data.canonicalize()?;
        let (logs, run) = (data.join("log"), data.join("run"));
        Ok(Self { site, scene, view, logs, run, workers: Vec::new(), started: 0 })
    }

    pub(super) fn start_worker(&mut self) -> Result<()> {
        self.started += 1;
        let number = self.started;
        let log = File::create(self.logs.join(format!("worker{number}.log")))?;
        let mut command = self.site.command(&["worker"]);
        forget_settings(&mut command);
        // Ctrl-C is for us: we stop them. In that folder no settings lie about, and a left-over is found again.
        command.stderr(log).current_dir(&self.run).process_group(0);
        let child = command.spawn().context("start a worker")?;
        self.scene.worker(number, "up");
        self.workers.push((number, child));
        Ok(())
    }

    /// Breaks one thing, waits until all goes on, and tells how long it took.
    pub(super) async fn play(&mut self, act: Act, place: &mut Place, watch: &Watch) -> Result<Act> {
        let line = self.scene.begin(act.what);
        let servers = &mut place.servers;
        let away_s = match act.what {
            what if what == Act::RESTART_BROKER.what => {
                Some(restart(&mut servers.rabbitmq, self.scene, self.view).await?)
            }
            what if what == Act::RESTART_POSTGRES.what => {
                Some(restart(&mut servers.postgres, self.scene, self.view).await?)
            }
            _ => {
                self.kill_worker().await?;
                None
            }
        };
        let broken = Instant::now();
        self.scene.set_phase("waiting until every partition goes on");
        let again = tokio::time::timeout(LONGEST, watch.wait_for_all_again()).await;
        let again_s = again.is_ok().then(|| broken.elapsed().as_secs_f64());
        let act = Act { away_s, again_s, ..act };
        self.scene.end(line, if again_s.is_some() { Mark::Good } else { Mark::Bad }, &act.outcome());
        self.view.say(self.scene, &act.outcome());
        if self.workers.len() < 2 {
            self.start_worker()?;
        }
        Ok(act)
    }

    async fn kill_worker(&mut self) -> Result<()> {
        let (number, mut child) = self.workers.remove(0);
        let pid = child.id().unwrap_or_default();
        self.view.say(self.scene, &format!("kill -9 of worker {number}, process {pid}"));
        child.kill().await.context("kill a worker")?;
        self.scene.worker(number, "killed");
        Ok(())
    }

    /// Asks the workers to stop, as an operator would.
    pub(super) async fn stop(&mut self) -> Result<()> {
        for (number, worker) in self.workers.drain(..) {
            place::stop(worker).await?;
            self.scene.worker(number, "stopped");
        }
        Ok(())
    }
}

/// Stops a server as an operator would, and starts it again. Returns for how many seconds it was away.
async fn restart(server: &mut Server, scene: &Scene, view: &View) -> Result<f64> {
    let name = server.name();
    view.say(scene, &format!("stopping {name}, as an operator would, and starting it again"));
    scene.store(name, "stopping");
    let start = Instant::now();
    server.stop().await;
    scene.store(name, "away");
    server.restart().await?;
    scene.store(name, "up");
    Ok(start.elapsed().as_secs_f64())
}

/// The workers of a demonstration know nothing of settings that whoever runs it has for another deployment.
fn forget_settings(command: &mut Command) {
    let ours: Vec<_> = command.as_std().get_envs().map(|(name, _)| name.to_owned()).collect();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TASKFLOW_") && !ours.contains(&name) {
            command.env_remove(name);
        }
    }
}
