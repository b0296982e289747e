//! The leader's work: one look a second, or when the next schedule is due, and what follows from it.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use taskflow_core::event::Retention;
use taskflow_core::job::{Met, State};
use taskflow_core::metric;
use taskflow_stores::postgres::job_runs::{self, End};
use taskflow_stores::postgres::job_schedules::{self, Look};
use taskflow_stores::postgres::leader::{self, Fence, Fenced};
use taskflow_stores::postgres::silence;
use taskflow_stores::postgres::{job_history, system_events};
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{crash, observe};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::context::{Context, ServerClock, Stop, Stopped};
use crate::jobs::audit_verify;
use crate::schedules::{Schedule, Schedules};
use crate::{Settings, Stores, arm, audit, fire, jobs, run};

/// The longest time between two looks: what people ask for is seen within it.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SOONEST: Duration = Duration::from_millis(20);
/// A clock that goes back by more than this has jumped.
const JUMP: chrono::TimeDelta = chrono::TimeDelta::seconds(2);
/// How long runs have to stop before the lead is given up without them.
const GOODBYE: Duration = Duration::from_secs(12);

/// What a scheduler process works with.
pub(crate) struct Engine {
    pub settings: Arc<Settings>,
    pub audit: Arc<audit::Settings>,
    pub retention: Retention,
    pub stores: Stores,
    pub schedules: Arc<Schedules>,
    /// This process, new at every start.
    pub holder: Uuid,
    pub host: String,
}

/// A run at work.
struct AtWork {
    stop: Stop,
    /// Whether it may last for hours.
    is_long: bool,
}

/// Runs at work, by their numbers.
type Runs = HashMap<i64, AtWork>;

/// How far the table of schedules is in line with the settings, and with what others left.
enum Settled {
    /// It is to be brought in line.
    Not,
    /// Some due times are still to be looked at.
    Except(arm::Rest),
    Wholly,
}

impl Settled {
    /// It is to be brought in line again, unless all is well.
    fn only_if(&mut self, well: bool) {
        if !well {
            *self = Self::Not;
        }
    }
}

/// A run that is at work no more.
struct Over {
    run: i64,
    /// Whether its end was written down, or belongs to another leader.
    is_written: bool,
}

impl Engine {
    pub(crate) fn new(
        settings: Settings,
        audit: audit::Settings,
        retention: Retention,
        stores: Stores,
        schedules: Schedules,
        holder: Uuid,
        host: String,
    ) -> Self {
        Self {
            settings: Arc::new(settings),
            audit: Arc::new(audit),
            retention,
            stores,
            schedules: Arc::new(schedules),
            holder,
            host,
        }
    }

    pub(crate) fn lease(&self) -> Duration {
        Duration::from_millis(self.settings.lease_ms)
    }

    /// Leads under an epoch until `stop`, or until the lead is lost; `until` is when that is unless it is renewed.
    pub(crate) async fn lead(&self, epoch: i64, until: Instant, stop: &CancellationToken) {
        let fence = Fence::new(self.stores.postgres.clone(), epoch);
        let (mut runs, mut tasks) = (Runs::new(), JoinSet::new());
        let why = self.work(&fence, until, stop, &mut runs, &mut tasks).await;
        if why == Stopped::Out {
            tracing::warn!(epoch, "The lead is lost.");
        }
        for run in runs.values() {
            run.stop.tell(why.clone());
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE, all).await.is_err() {
            tracing::warn!("Jobs did not stop when told to; they are dropped.");
        }
    }

    /// Returns why it ended.
    async fn work(
        &self,
        fence: &Fence,
        mut until: Instant,
        stop: &CancellationToken,
        runs: &mut Runs,
        tasks: &mut JoinSet<Over>,
    ) -> Stopped {
        let complaints = Seldom::new();
        let (mut settled, mut newest) = (Settled::Not, chrono::DateTime::<chrono::Utc>::MIN_UTC);
        loop {
            let asked = Instant::now();
            let looked = tokio::time::timeout(
                self.lease(),
                job_schedules::look(
                    &self.stores.postgres,
                    self.holder,
                    fence.epoch(),
                    self.settings.lease_ms as i64,
                ),
            );
            let pause = match looked.await {
                Ok(Ok(None)) => return Stopped::Out,
                Ok(Ok(Some(look))) => {
                    until = asked + self.lease();
                    settled.only_if(look.now + JUMP >= newest);
                    newest = look.now;
                    let followed = self.follow(fence, &look, &mut settled, runs, tasks);
                    match silence::within(self.lease(), "do what is due", followed).await {
                        Ok(true) => pause(&look),
                        Ok(false) => LOOK_SOONEST,
                        Err(Fenced::Out) => return Stopped::Out,
                        Err(Fenced::Store(error)) => {
                            // A commit that seemed to fail may have lasted: a run may have begun that nobody works on.
                            settled = Settled::Not;
                            if complaints.due().is_some() {
                                tracing::warn!(%error, "The scheduler could not do what is due; it tries again.");
                            }
                            LOOK_EVERY
                        }
                    }
                }
                Ok(Err(error)) => {
                    settled = Settled::Not;
                    if complaints.due().is_some() {
                        tracing::warn!(%error, "The scheduler can't look what is due.");
                    }
                    LOOK_EVERY / 4
                }
                Err(_) => Duration::ZERO,
            };
            if Instant::now() >= until {
                return Stopped::Out;
            }
            tokio::select! {
                () = stop.cancelled() => return Stopped::Leaving,
                () = tokio::time::sleep(pause) => {}
                Some(ended) = tasks.join_next() => {
                    if let Ok(over) = ended {
                        runs.remove(&over.run);
                        settled.only_if(over.is_written);
                    }
                }
            }
        }
    }

    /// Returns whether everything that was seen is dealt with.
    async fn follow(
        &self,
        fence: &Fence,
        look: &Look,
        settled: &mut Settled,
        runs: &mut Runs,
        tasks: &mut JoinSet<Over>,
    ) -> Result<bool, Fenced> {
        let clock = ServerClock::new(look.now);
        match settled {
            Settled::Not => {
                self.take_over(fence, runs).await?;
                *settled = Settled::Except(arm::settle(&self.schedules, fence).await?);
                return Ok(false);
            }
            // A part at each look: the lead is renewed in between, however many they are.
            Settled::Except(rest) if !rest.is_empty() => {
                arm::look_over(&self.schedules, fence, rest, look.now).await?;
                return Ok(false);
            }
            Settled::Except(_) => {
                self.show_earlier().await?;
                *settled = Settled::Wholly;
            }
            Settled::Wholly => {}
        }
        if !look.unarmed.is_empty() {
            arm::repair(&self.schedules, fence, &look.unarmed, look.now).await?;
        }
        self.cancel(fence, &look.cancel, runs).await?;
        let all = fire::fire(&self.schedules, fence, &look.due, look.now).await?;
        fire::outside_window(&self.schedules, fence, &look.ready, look.now).await?;
        for (schedule, id) in &look.ready {
            let is_long = self.schedules.get(schedule).is_some_and(Schedule::is_long);
            if self.has_place(runs, is_long) {
                self.begin(fence, *id, clock, runs, tasks).await?;
            }
        }
        Ok(all && !look.is_full())
    }

    /// Whether one more may run. Long runs leave a place: what is done every minute need not wait for a night's backups.
    fn has_place(&self, runs: &Runs, is_long: bool) -> bool {
        let (all, long) = (self.settings.at_once, runs.values().filter(|run| run.is_long).count());
        runs.len() < all && (!is_long || all == 1 || long < all - 1)
    }

    /// Deals with what an earlier leader began and did not end, or this one without knowing. Whether it took effect is not
    /// known: it is tried again only where its schedule says so.
    async fn take_over(&self, fence: &Fence, runs: &Runs) -> Result<(), Fenced> {
        let mut transaction = fence.begin().await?;
        let orphans = job_runs::orphans(&mut transaction, fence.epoch()).await?;
        leader::commit(transaction).await?;
        for run in orphans.iter().filter(|run| !runs.contains_key(&run.id)) {
            let detail = "whoever worked on it is gone; how far it got is not known".to_owned();
            let end = match self.schedules.get(&run.schedule) {
                Some(schedule) => run::again(schedule, run, detail).unwrap_or_else(failed),
                None => failed(detail),
            };
            run::try_end(fence, run, &end).await?;
        }
        Ok(())
    }

    /// What was completed, and found, before this process led is in its metrics too.
    async fn show_earlier(&self) -> Result<(), Fenced> {
        // A job may have several schedules.
        let mut newest = HashMap::new();
        for (name, at) in job_history::successes(&self.stores.postgres).await? {
            if let Some(schedule) = self.schedules.get(&name) {
                let known = newest.entry(schedule.job.name).or_insert(at);
                *known = at.max(*known);
            }
        }
        for (job, at) in newest {
            observe::gauge(&metric::JOB_LAST_SUCCESS, &[("job", job)]).set(at.timestamp() as f64);
        }
        // What was found wrong stays wrong, whoever leads.
        let (job, figure) = (audit_verify::JOB.name, audit_verify::FOUND);
        if let Some(found) = job_history::newest_figure(&self.stores.postgres, job, figure).await? {
            audit_verify::show(&found);
        }
        Ok(())
    }

    async fn cancel(&self, fence: &Fence, ids: &[i64], runs: &Runs) -> Result<(), Fenced> {
        let (running, waiting): (Vec<i64>, Vec<i64>) = ids.iter().partition(|id| runs.contains_key(id));
        if !waiting.is_empty() {
            let mut transaction = fence.begin().await?;
            let cancelled = job_runs::cancel_waiting(&mut transaction, &waiting).await?;
            for run in cancelled.iter().filter(|run| run.attempt > 0) {
                // Its beginning is told; so is its end.
                let detail = format!("cancelled by {}", run.cancel_asked_by.as_deref().unwrap_or_default());
                let end =
                    End { state: State::Cancelled, again_after: None, detail: Some(detail), told: None };
                let event = jobs::named(&run.job)
                    .and_then(|job| job.ended_event(run, &end, taskflow_stores::clock::now()));
                system_events::insert(&mut transaction, event.as_slice()).await?;
            }
            leader::commit(transaction).await?;
            for run in cancelled {
                tracing::info!(
                    schedule = run.schedule,
                    run = run.id,
                    by = run.cancel_asked_by,
                    "A waiting run is cancelled."
                );
                if let Some(job) = jobs::named(&run.job) {
                    let labels = [("job", job.name), ("outcome", State::Cancelled.as_str())];
                    observe::counter(&metric::JOB_RUNS, &labels).increment(1);
                }
            }
        }
        for id in running {
            let by = job_history::read(&self.stores.postgres, id).await?.and_then(|row| row.cancelaskedby);
            if let Some(run) = runs.get(&id) {
                run.stop.tell(Stopped::Cancelled(by.unwrap_or_default()));
            }
        }
        Ok(())
    }

    async fn begin(
        &self,
        fence: &Fence,
        id: i64,
        clock: ServerClock,
        runs: &mut Runs,
        tasks: &mut JoinSet<Over>,
    ) -> Result<(), Fenced> {
        let mut transaction = fence.begin().await?;
        let Some(run) = job_runs::begin(&mut transaction, fence.epoch(), &self.host, id).await? else {
            return Ok(());
        };
        let Some(schedule) = self.schedules.get(&run.schedule) else {
            let detail = "the settings no longer have this schedule".to_owned();
            return run::end_in(transaction, fence, &run, &failed(detail)).await;
        };
        let words =
            run.arguments.iter().filter_map(|words| words.0.as_object()).flat_map(serde_json::Map::keys);
        if let Err(unknown) = schedule.job.knows(words.map(String::as_str)) {
            return run::end_in(transaction, fence, &run, &failed(unknown)).await;
        }
        let event = schedule.job.begun_event(&run, &self.host, taskflow_stores::clock::now());
        system_events::insert(&mut transaction, event.as_slice()).await?;
        leader::commit(transaction).await?;
        crash::point("begun");
        let stop = Stop::default();
        let context = Arc::new(Context {
            stores: self.stores.clone(),
            settings: Arc::clone(&self.settings),
            audit: Arc::clone(&self.audit),
            schedules: Arc::clone(&self.schedules),
            retention: self.retention,
            fence: fence.clone(),
            schedule: run.schedule.clone(),
            run: run.id,
            due_at: run.due_at,
            attempt: run.attempt,
            arguments: run.arguments.clone().map(|arguments| arguments.0).unwrap_or_default(),
            clock,
            heavy: schedule.job.heavy,
            bound: schedule.job.heavy && run.met != Met::ByHand.as_str(),
            beside: schedule.job.beside,
            stop: stop.clone(),
            telling: crate::context::Telling::default(),
        });
        runs.insert(id, AtWork { stop, is_long: schedule.is_long() });
        let schedule = schedule.clone();
        tasks.spawn(async move {
            // What it does about its job's panics is not all that may panic.
            let worked = AssertUnwindSafe(run::work(context, schedule, run)).catch_unwind().await;
            Over { run: id, is_written: worked.is_ok() }
        });
        Ok(())
    }
}

fn failed(detail: String) -> End {
    End { state: State::Failed, again_after: None, detail: Some(detail), told: None }
}

/// Until the next look.
fn pause(look: &Look) -> Duration {
    let next = look.next.map(|next| (next - look.now).to_std().unwrap_or_default());
    next.unwrap_or(LOOK_EVERY).clamp(LOOK_SOONEST, LOOK_EVERY)
}
