//! Writes due times into the ledger, before anything is run, together with each schedule's next due time: one
//! transaction, so that no due time is forgotten or written twice.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use taskflow_core::job::outage::Due;
use taskflow_core::job::{Met, Overlapping, State};
use taskflow_core::metric;
use taskflow_stores::postgres::job_runs::{self, End, New, Outside};
use taskflow_stores::postgres::leader::{self, Fence, Fenced};
use taskflow_stores::postgres::{job_schedules, system_events};
use taskflow_stores::{crash, observe};

use crate::arm::{arm, never};
use crate::jobs;
use crate::schedules::{Schedule, Schedules};

/// Rows of one transaction, about, and the time that is thought about them: the lead must be renewed meanwhile.
const ROWS_MAX: usize = 2_000;
const THINK_MAX: Duration = Duration::from_millis(500);

/// Deals with schedules whose due time has come; those that are not dealt with come again at the next look. Returns whether
/// all are.
pub(crate) async fn fire(
    schedules: &Schedules,
    fence: &Fence,
    due: &[(String, DateTime<Utc>)],
    now: DateTime<Utc>,
) -> Result<bool, Fenced> {
    if due.is_empty() {
        return Ok(true);
    }
    let mut transaction = fence.begin().await?;
    let names: Vec<&str> = due.iter().map(|(name, _)| name.as_str()).collect();
    let mut unfinished = job_runs::unfinished(&mut transaction, &names).await?;
    let (mut rows, mut arms, mut replaced) = (Vec::new(), Vec::new(), HashSet::new());
    let mut all = true;
    let started = Instant::now();
    for (name, armed) in due {
        let Some(schedule) = schedules.get(name) else { continue };
        let plan = schedule.timing().plan(*armed, now);
        let before = unfinished.remove(name).unwrap_or(0);
        let (new, replaces) = decide(schedule, schedules, plan.dues, before, now);
        rows.extend(new);
        if replaces {
            replaced.insert(name.as_str());
        }
        arms.push(arm(schedule, Some(*armed), plan.next.unwrap_or_else(never)));
        if rows.len() >= ROWS_MAX || started.elapsed() >= THINK_MAX {
            all = arms.len() >= due.len();
            break;
        }
    }
    let written = job_runs::write(&mut transaction, fence.epoch(), &rows).await?;
    // A due time that has its row already, since the clock went back, takes nobody's place.
    let new = written.iter().map(|(place, _)| &rows[*place]).filter(|row| row.met.runs());
    let replaced: Vec<&str> =
        new.map(|row| row.schedule.as_str()).filter(|schedule| replaced.contains(schedule)).collect();
    if !replaced.is_empty() {
        let ids: Vec<i64> = written.iter().map(|(_, id)| *id).collect();
        job_runs::replace(&mut transaction, &replaced, &ids).await?;
    }
    job_schedules::arm(&mut transaction, &arms).await?;
    leader::commit(transaction).await?;
    crash::point("fired");
    for (place, _) in written {
        let row = &rows[place];
        count(row);
        if !row.met.runs() && row.met != Met::Coalesced {
            tracing::warn!(schedule = row.schedule, due_at = %row.due_at, met = row.met.as_str(), "A due time gets no run.");
        }
    }
    Ok(all)
}

/// Counts a due time that is in the ledger.
pub(crate) fn count(row: &New) {
    let met = row.met.as_str();
    observe::counter(&metric::JOB_DUE_TIMES, &[("job", row.job), ("met", met)]).increment(1);
    if !row.met.runs() {
        observe::counter(&metric::JOB_RUNS, &[("job", row.job), ("outcome", met)]).increment(1);
    }
}

/// Ends what is ready and would begin outside the maintenance window: what is tried again, what an earlier leader left,
/// what has waited for others. A run that a person asked for is not bound to the window.
pub(crate) async fn outside_window(
    schedules: &Schedules,
    fence: &Fence,
    ready: &[(String, i64)],
    now: DateTime<Utc>,
) -> Result<(), Fenced> {
    if ready.is_empty() || schedules.in_window(now) {
        return Ok(());
    }
    let heavy: Vec<&str> = jobs::all().filter(|job| job.heavy).map(|job| job.name).collect();
    let mut transaction = fence.begin().await?;
    let window = schedules.window();
    let ids: Vec<i64> = ready.iter().map(|(_, id)| *id).collect();
    let ended = job_runs::end_outside_window(&mut transaction, fence.epoch(), &ids, &heavy, &window).await?;
    if ended.is_empty() {
        return Ok(());
    }
    for one in ended.iter().filter(|one| one.run.attempt > 0) {
        let end =
            End { state: State::Failed, again_after: None, detail: Some(one.detail.clone()), told: None };
        let event = jobs::named(&one.run.job).and_then(|job| job.ended_event(&one.run, &end, now));
        system_events::insert(&mut transaction, event.as_slice()).await?;
    }
    leader::commit(transaction).await?;
    for Outside { run, detail } in ended {
        let outcome = if run.attempt > 0 { State::Failed.as_str() } else { Met::OutsideWindow.as_str() };
        if let Some(job) = jobs::named(&run.job) {
            observe::counter(&metric::JOB_RUNS, &[("job", job.name), ("outcome", outcome)]).increment(1);
        }
        tracing::warn!(schedule = run.schedule, run = run.id, outcome, detail, "A run is not begun.");
    }
    Ok(())
}

/// The rows of a schedule's due times, and whether they take the place of earlier runs.
fn decide(
    schedule: &Schedule,
    schedules: &Schedules,
    dues: Vec<Due>,
    before: usize,
    now: DateTime<Utc>,
) -> (Vec<New>, bool) {
    let (mut unfinished, mut replaces) = (before, false);
    let mut rows = Vec::with_capacity(dues.len());
    for Due { at, met, through } in dues {
        let (mut met, mut detail) =
            (met, through.map(|through| format!("and all that was due until {through}")));
        if met.runs() && schedule.job.heavy && !schedules.in_window(now) {
            met = Met::OutsideWindow;
            detail = Some(format!("the maintenance window is {}", schedules.window()));
        }
        if met.runs() {
            match schedule.overlap.decide(met, unfinished) {
                Overlapping::Run => unfinished += 1,
                Overlapping::Skip => {
                    met = Met::Overlapped;
                    detail = Some("an earlier run was not over".to_owned());
                }
                Overlapping::CancelPrevious => (unfinished, replaces) = (1, true),
            }
        }
        rows.push(New {
            schedule: schedule.name.clone(),
            job: schedule.job.name,
            due_at: at,
            through,
            met,
            begins_at: schedule.timing().begins(at),
            detail,
        });
    }
    (rows, replaces)
}
