//! Marks the events of what is on hold, so that neither we nor MongoDB's own reaper removes them, and gives them their
//! own times back when the hold is released.

use std::sync::Arc;
use std::time::Instant;

use chrono::TimeDelta;
use futures_util::future::BoxFuture;
use taskflow_core::retention::{self, Holds, stamp};
use taskflow_stores::mongo::retention::{self as trail, From, Subject};
use taskflow_stores::postgres::leader;
use taskflow_stores::postgres::legal_holds::{self, Hold};
use tokio::sync::Mutex;

use super::Job;
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "retention.holds",
    about: "Marks the events of what is on hold; gives them their own times back after a release",
    cron: "30 */5 * * * *",
    timeout_s: 3_000,
    retries: 5,
    word: None,
    work,
    ..Job::DEFAULT
};

/// Events of one step.
const TOGETHER: i64 = 500;
/// How much later than it was made an event comes to the trail, as a rule.
const LATE_MAX: TimeDelta = TimeDelta::hours(1);

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        if context.dry_run() {
            let holds = standing(&context).await?;
            context.set("holds", holds.entities.len() + holds.actors.len());
            return Ok(());
        }
        look_after(&context).await
    })
}

fn subject(hold: &Hold) -> Subject {
    if hold.scope == "entity" { Subject::Entity(hold.subject) } else { Subject::Actor(hold.subject) }
}

fn gathered(holds: &[Hold]) -> Holds {
    let of = |scope: &str| holds.iter().filter(|hold| hold.scope == scope).map(|hold| hold.subject).collect();
    Holds { entities: of("entity"), actors: of("actor") }
}

/// The holds that stand.
pub(super) async fn standing(context: &Context) -> Result<Holds, Failure> {
    Ok(gathered(&legal_holds::list(&context.stores.postgres, false).await?))
}

/// One at a time: who marks the events of a new hold must not meet somebody who still lifts those of an older one, and
/// knows nothing of it. Only the leader's process does either.
static LOOKING_AFTER: Mutex<()> = Mutex::const_new(());

/// Brings all events in line with the holds. Whoever removes or stamps events asks for the holds that stand once more,
/// after having read the events: a hold may be put, and marked, at any time.
pub(super) async fn look_after(context: &Context) -> Result<(), Failure> {
    let _turn = tokio::select! {
        () = context.stop.told() => return Err(Failure::Stopped),
        turn = LOOKING_AFTER.lock() => turn,
    };
    for hold in &legal_holds::list(&context.stores.postgres, false).await? {
        mark(context, hold).await?;
    }
    for hold in legal_holds::unlifted(&context.stores.postgres).await? {
        lift(context, &hold).await?;
    }
    Ok(())
}

/// Also what an older hold has marked gets this one's mark: a leader that was stopped while it lifted the older one, and
/// goes on, finds it changed. Once all events are marked only new ones are looked at, and all again on another day: an
/// event that came to the trail much later than it was made has months until anybody removes it.
async fn mark(context: &Context, hold: &Hold) -> Result<(), Failure> {
    let own = retention::mark(hold.since);
    let today = context.now().date_naive();
    let mut from = match hold.appliedat {
        Some(applied) if applied.date_naive() == today => From::Time(applied - LATE_MAX),
        _ => From::Start,
    };
    loop {
        let started = Instant::now();
        let found = trail::unmarked(&context.stores.mongo, subject(hold), own, from, TOGETHER).await?;
        from = found.last().map_or(from, From::behind);
        let stamps: Vec<_> = found.iter().map(|event| (event, own)).collect();
        if !stamps.is_empty() {
            context.in_mongo(|until| trail::stamp(&context.stores.mongo, &stamps, until)).await?;
            context.add("events_held", stamps.len() as u64);
        }
        if found.len() < TOGETHER as usize {
            break;
        }
        context.step(started.elapsed()).await?;
    }
    note(context, hold, false).await
}

async fn lift(context: &Context, hold: &Hold) -> Result<(), Failure> {
    let mut from = From::Start;
    loop {
        let started = Instant::now();
        let found = trail::held(&context.stores.mongo, subject(hold), from, TOGETHER).await?;
        let holds = standing(context).await?;
        let stamps = found.iter().map(|event| (event, stamp(&context.retention, &holds, &event.kept())));
        let stamps: Vec<_> = stamps.filter(|(event, right)| *right != event.expires_at).collect();
        // What another hold keeps stays as it is, and is passed over.
        from = found.last().map_or(from, From::behind);
        if !stamps.is_empty() {
            context.in_mongo(|until| trail::stamp(&context.stores.mongo, &stamps, until)).await?;
            context.add("events_lifted", stamps.len() as u64);
        }
        if found.len() < TOGETHER as usize {
            break;
        }
        context.step(started.elapsed()).await?;
    }
    note(context, hold, true).await
}

async fn note(context: &Context, hold: &Hold, lifted: bool) -> Result<(), Failure> {
    let mut transaction = context.fence.begin().await?;
    legal_holds::done(&mut transaction, hold.id, lifted).await?;
    Ok(leader::commit(transaction).await?)
}
