//! Sees to it that every schedule has its next due time: after a start, a change of the settings, a pause, and when it
//! got lost.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use taskflow_core::job::Met;
use taskflow_core::metric;
use taskflow_stores::observe;
use taskflow_stores::postgres::job_runs::{self, New};
use taskflow_stores::postgres::job_schedules::{self, Arm};
use taskflow_stores::postgres::leader::{self, Fence, Fenced};

use crate::fire;
use crate::schedules::{Schedule, Schedules};

/// Due times that are written in one statement.
const TOGETHER: usize = 1_000;

/// Brings the table in line with the settings, and gives a due time to whatever is new or has changed. What has lost its
/// due time, or has one that is too far away since the clock was once ahead, is reported.
pub(crate) async fn settle(schedules: &Schedules, fence: &Fence) -> Result<(), Fenced> {
    let mut transaction = fence.begin().await?;
    let before = job_schedules::armed(&mut transaction).await?;
    let changed: HashSet<String> =
        job_schedules::settle(&mut transaction, &schedules.wanted()).await?.into_iter().collect();
    let now = job_schedules::now(&mut transaction).await?;
    let armed = job_schedules::armed(&mut transaction).await?;
    let missed = missed(schedules, &changed, &before, now);
    let written = job_runs::write(&mut transaction, fence.epoch(), &missed).await?;
    leader::commit(transaction).await?;
    for row in written.iter().map(|(place, _)| &missed[*place]) {
        fire::count(row);
        tracing::warn!(schedule = row.schedule, due_at = %row.due_at, "A due time is missed: its schedule was changed.");
    }
    let mut arms = Vec::new();
    for (name, due) in &armed {
        let Some(schedule) = schedules.get(name) else { continue };
        if let Some(next) = schedule.expression.after(now).filter(|next| next < due) {
            rearmed(schedule, "its next due time was too far away");
            arms.push(arm(schedule, Some(*due), next));
        }
    }
    let armed: HashSet<&str> = armed.iter().map(|(name, _)| name.as_str()).collect();
    for schedule in schedules.iter().filter(|one| one.enabled && !armed.contains(one.name.as_str())) {
        if !changed.contains(&schedule.name) {
            rearmed(schedule, "it had no next due time");
        }
        arms.push(next(schedule, now));
    }
    write(fence, &arms).await
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
    let unarmed = names.iter().filter_map(|name| schedules.get(name));
    let arms: Vec<Arm> = unarmed
        .map(|schedule| {
            rearmed(schedule, "it had no next due time (it was resumed, or it got lost)");
            next(schedule, now)
        })
        .collect();
    write(fence, &arms).await
}

async fn write(fence: &Fence, arms: &[Arm]) -> Result<(), Fenced> {
    for arms in arms.chunks(TOGETHER) {
        let mut transaction = fence.begin().await?;
        job_schedules::arm(&mut transaction, arms).await?;
        leader::commit(transaction).await?;
    }
    Ok(())
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

fn rearmed(schedule: &Schedule, why: &str) {
    observe::counter(&metric::JOB_REARMED, &[("job", schedule.job.name)]).increment(1);
    tracing::warn!(schedule = schedule.name, why, "A schedule got its next due time from the reconciler.");
}
