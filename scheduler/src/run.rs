//! One run: the job with its time-out, its panics caught, and its end written down.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use taskflow_core::job::State;
use taskflow_core::metric;
use taskflow_stores::postgres::job_runs::{self, End, Run};
use taskflow_stores::postgres::leader::{self, Fence, Fenced};
use taskflow_stores::postgres::silence;
use taskflow_stores::postgres::system_events;
use taskflow_stores::{clock, crash, observe, supervise};

use crate::context::{Context, Failure, Stopped};
use crate::jobs;
use crate::schedules::Schedule;

/// How long a run that is told to stop has for it before it is dropped.
const GRACE: Duration = Duration::from_secs(5);
/// How long Postgres may take to write an end down: longer than it lets the statements take.
const ANSWER: Duration = Duration::from_secs(15);
/// Time between two tries to write an end down.
const AGAIN: Duration = Duration::from_millis(500);

/// Works through a run that was begun, and writes down how it ended.
pub(crate) async fn work(context: Arc<Context>, schedule: Schedule, run: Run) {
    let started = std::time::Instant::now();
    let result = supervised(&context, &schedule).await;
    crash::point("worked");
    observe::histogram(&metric::JOB_DURATION, &[("job", schedule.job.name)]).record(started.elapsed());
    let mut end = judge(&schedule, &run, context.stop.why(), result);
    end.told = Some(context.telling.told());
    write_end(&context.fence, &schedule, &run, &end, &context.stop).await;
    crash::point("ended");
}

/// How the job itself ended: by itself, by its panic, or dropped.
enum Ended {
    Done(Result<(), Failure>),
    Panicked(String),
    /// It did not stop when it was told to.
    Dropped,
}

async fn supervised(context: &Arc<Context>, schedule: &Schedule) -> Ended {
    let (own, job) = (Arc::clone(context), schedule.job);
    let work = AssertUnwindSafe(async move { (job.work)(own).await }).catch_unwind();
    let mut task = tokio::spawn(work);
    let timeout = Duration::from_secs(u64::from(schedule.timeout_s));
    let ended = tokio::select! {
        ended = &mut task => ended,
        () = overdue(context, timeout) => match tokio::time::timeout(GRACE, &mut task).await {
            Ok(ended) => ended,
            Err(_) => {
                task.abort();
                return Ended::Dropped;
            }
        },
    };
    match ended {
        Ok(Ok(result)) => Ended::Done(result),
        Ok(Err(panic)) => Ended::Panicked(supervise::words(panic.as_ref())),
        Err(error) => Ended::Panicked(error.to_string()),
    }
}

/// Until the run is told to stop, by whomever; its time-out does it too.
async fn overdue(context: &Context, timeout: Duration) {
    tokio::select! {
        () = context.stop.told() => {}
        () = tokio::time::sleep(timeout) => context.stop.tell(Stopped::TimedOut),
    }
}

/// What becomes of the run.
fn judge(schedule: &Schedule, run: &Run, stopped: Option<&Stopped>, ended: Ended) -> End {
    let over = |state, detail: Option<String>| End { state, again_after: None, detail, told: None };
    let failed =
        |detail| again(schedule, run, detail).unwrap_or_else(|detail| over(State::Failed, Some(detail)));
    match (ended, stopped) {
        // What is done is done, also when it was told to stop at the last moment.
        (Ended::Done(Ok(())), _) => over(State::Completed, None),
        (Ended::Panicked(words), _) => failed(format!("it panicked: {words}")),
        (_, Some(Stopped::Cancelled(by))) => over(State::Cancelled, Some(format!("cancelled by {by}"))),
        (ended, Some(Stopped::TimedOut)) => {
            let dropped = if matches!(ended, Ended::Dropped) {
                "; it did not stop when told to, and was dropped"
            } else {
                ""
            };
            over(State::TimedOut, Some(format!("not done after {} s{dropped}", schedule.timeout_s)))
        }
        (_, Some(Stopped::Leaving)) => failed("the scheduler was stopped".to_owned()),
        (Ended::Done(Err(Failure::Again(detail))), _) => failed(detail),
        (Ended::Done(Err(Failure::Final(detail))), _) => over(State::Failed, Some(detail)),
        (_, _) => failed("another scheduler leads by now".to_owned()),
    }
}

/// Another try after a pause, if the schedule says so; else what went wrong.
pub(crate) fn again(schedule: &Schedule, run: &Run, detail: String) -> Result<End, String> {
    match schedule.retries.pause(run.id, run.attempt.unsigned_abs()) {
        None => Err(detail),
        Some(pause) => Ok(End {
            state: State::Waiting,
            again_after: Some(pause),
            detail: Some(format!("try {} failed: {detail}", run.attempt)),
            told: None,
        }),
    }
}

/// Writes an end down, for as long as this scheduler leads.
async fn write_end(fence: &Fence, schedule: &Schedule, run: &Run, end: &End, stop: &crate::context::Stop) {
    let mut told = false;
    loop {
        match silence::within(ANSWER, "end a run", try_end(fence, run, end)).await {
            Ok(()) => return,
            Err(Fenced::Out) => {
                tracing::warn!(
                    schedule = schedule.name,
                    run = run.id,
                    "A run's end can't be written: another scheduler leads by now."
                );
                return;
            }
            Err(Fenced::Store(error)) => {
                if !told {
                    tracing::warn!(%error, schedule = schedule.name, run = run.id, "A run's end can't be written yet.");
                    told = true;
                }
                if stop.why() == Some(&Stopped::Out) {
                    return;
                }
            }
        }
        tokio::time::sleep(AGAIN.mul_f64(rand::random_range(0.5..=1.0))).await;
    }
}

/// Writes an end down, with the event that tells of it.
pub(crate) async fn try_end(fence: &Fence, run: &Run, end: &End) -> Result<(), Fenced> {
    end_in(fence.begin().await?, fence, run, end).await
}

/// The same in a transaction that is begun, and is committed.
pub(crate) async fn end_in(
    mut transaction: leader::Open,
    fence: &Fence,
    run: &Run,
    end: &End,
) -> Result<(), Fenced> {
    // One whose job this program does not know any more has no event and no figures.
    let job = jobs::named(&run.job);
    if !job_runs::end(&mut transaction, fence.epoch(), run.id, end).await? {
        return Ok(());
    }
    let event = job.and_then(|job| job.ended_event(run, end, clock::now()));
    system_events::insert(&mut transaction, event.as_slice()).await?;
    leader::commit(transaction).await?;
    let outcome = if end.state == State::Waiting { "retried" } else { end.state.as_str() };
    if let Some(job) = job {
        observe::counter(&metric::JOB_RUNS, &[("job", job.name), ("outcome", outcome)]).increment(1);
    }
    match end.state {
        State::Completed => {
            let now = clock::now().timestamp() as f64;
            if let Some(job) = job {
                observe::gauge(&metric::JOB_LAST_SUCCESS, &[("job", job.name)]).set(now);
            }
            tracing::info!(schedule = run.schedule, run = run.id, "A job is done.");
        }
        _ => {
            let detail = end.detail.as_deref().unwrap_or_default();
            tracing::warn!(schedule = run.schedule, run = run.id, outcome, detail, "A job is not done.");
        }
    }
    Ok(())
}
