//! Sees to it that every schedule has its next due time: after a start, a change of the settings, a pause, and when it
//! got lost.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use taskflow_core::job::Met;
use taskflow_core::metric;
use taskflow_stores::observe;
use taskflow_stores::postgres::job_runs::{self, New};
use taskflow_stores::postgres::job_schedules::{self, Arm};
use taskflow_stores::postgres::leader::{self, Fence, Fenced};

use crate::fire;
use crate::schedules::{Schedule, Schedules};

/// Due times that are written in one statement, and the time that is thought about them: the lead must be renewed
/// meanwhile, however many schedules there are.
const TOGETHER: usize = 1_000;
const THINK_MAX: Duration = Duration::from_millis(200);
/// Schedules that are named in the log one by one; of the others it says how many they are.
const NAMED_MAX: usize = 10;

/// Schedules whose due times are still to be looked at.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    /// By name, with the due time that each has.
    schedules: Vec<(String, Option<DateTime<Utc>>)>,
    /// Of them, what is new or has changed: it has no due time and has lost none.
    changed: HashSet<String>,
}

impl Rest {
    pub(crate) fn is_empty(&self) -> bool {
        self.schedules.is_empty()
    }
}

/// Brings the table in line with the settings. Returns what [`look_over`] then has to do.
pub(crate) async fn settle(schedules: &Schedules, fence: &Fence) -> Result<Rest, Fenced> {
    let mut transaction = fence.begin().await?;
    let before = job_schedules::armed(&mut transaction).await?;
    let changed: HashSet<String> =
        job_schedules::settle(&mut transaction, &schedules.wanted()).await?.into_iter().collect();
    let now = job_schedules::now(&mut transaction).await?;
    let missed = missed(schedules, &changed, &before, now);
    let written = job_runs::write(&mut transaction, fence.epoch(), &missed).await?;
    leader::commit(transaction).await?;
    for row in written.iter().map(|(place, _)| &missed[*place]) {
        fire::count(row);
        tracing::warn!(schedule = row.schedule, due_at = %row.due_at, "A due time is missed: its schedule was changed.");
    }
    // Whatever changed has lost its due time by that.
    let mut armed: HashMap<String, DateTime<Utc>> =
        before.into_iter().filter(|(name, _)| !changed.contains(name)).collect();
    let enabled = schedules.iter().filter(|one| one.enabled);
    let schedules = enabled.map(|one| (one.name.clone(), armed.remove(&one.name))).collect();
    Ok(Rest { schedules, changed })
}

/// Gives a due time to some of what is new or has changed. What has lost its due time, or has one that is too far away
/// since the clock was once ahead, gets one too and is reported.
pub(crate) async fn look_over(
    schedules: &Schedules,
    fence: &Fence,
    rest: &mut Rest,
    now: DateTime<Utc>,
) -> Result<(), Fenced> {
    let (mut arms, mut lost, mut far) = (Vec::new(), Vec::new(), Vec::new());
    let started = Instant::now();
    while arms.len() < TOGETHER && started.elapsed() < THINK_MAX {
        let Some((name, due)) = rest.schedules.pop() else { break };
        let Some(schedule) = schedules.get(&name) else { continue };
        match due {
            None => {
                if !rest.changed.contains(&name) {
                    lost.push(schedule);
                }
                arms.push(next(schedule, now));
            }
            Some(due) => {
                if let Some(sooner) = schedule.expression.after(now).filter(|next| *next < due) {
                    far.push(schedule);
                    arms.push(arm(schedule, Some(due), sooner));
                }
            }
        }
    }
    write(fence, &arms).await?;
    rearmed(&lost, "it had no next due time");
    rearmed(&far, "its next due time was too far away");
    Ok(())
}

/// What was due of schedules that have changed since, before anybody looked: the new schedule does not know of it, and no
/// due time goes in silence.
fn missed(
    schedules: &Schedules,
    changed: &HashSet<String>,
    before: &[(String, DateTime<Utc>)],
    now: DateTime<Utc>,
) -> Vec<New> {
    let due = before.iter().filter(|(name, due)| *due <= now && changed.contains(name));
    due.filter_map(|(name, due)| {
        Some(New {
            schedule: name.clone(),
            job: schedules.get(name)?.job.name,
            due_at: *due,
            through: None,
            met: Met::Missed,
            begins_at: *due,
            detail: Some("its schedule was changed while nobody was there".to_owned()),
        })
    })
    .collect()
}

/// Gives a due time to schedules without one: those that were resumed, and those that lost theirs.
pub(crate) async fn repair(
    schedules: &Schedules,
    fence: &Fence,
    names: &[String],
    now: DateTime<Utc>,
) -> Result<(), Fenced> {
    let unarmed: Vec<&Schedule> = names.iter().filter_map(|name| schedules.get(name)).collect();
    let arms: Vec<Arm> = unarmed.iter().map(|schedule| next(schedule, now)).collect();
    write(fence, &arms).await?;
    rearmed(&unarmed, "it had no next due time (it was resumed, or it got lost)");
    Ok(())
}

async fn write(fence: &Fence, arms: &[Arm]) -> Result<(), Fenced> {
    if arms.is_empty() {
        return Ok(());
    }
    let mut transaction = fence.begin().await?;
    job_schedules::arm(&mut transaction, arms).await?;
    leader::commit(transaction).await
}

fn next(schedule: &Schedule, now: DateTime<Utc>) -> Arm {
    arm(schedule, None, schedule.expression.after(now).unwrap_or_else(never))
}

pub(crate) fn arm(schedule: &Schedule, before: Option<DateTime<Utc>>, due_at: DateTime<Utc>) -> Arm {
    Arm { name: schedule.name.clone(), before, due_at, begins_at: schedule.timing().begins(due_at) }
}

/// The due time of what is never due again: an expression may name years.
pub(crate) fn never() -> DateTime<Utc> {
    DateTime::from_timestamp(253_370_764_800, 0).unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Reports what was given a due time by the reconciler.
fn rearmed(schedules: &[&Schedule], why: &str) {
    for schedule in schedules {
        observe::counter(&metric::JOB_REARMED, &[("job", schedule.job.name)]).increment(1);
    }
    for schedule in schedules.iter().take(NAMED_MAX) {
        tracing::warn!(
            schedule = schedule.name,
            why,
            "A schedule got its next due time from the reconciler."
        );
    }
    if let Some(more) = schedules.len().checked_sub(NAMED_MAX).filter(|more| *more > 0) {
        tracing::warn!(more, why, "More schedules got their next due times from the reconciler.");
    }
}
