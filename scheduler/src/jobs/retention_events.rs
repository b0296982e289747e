//! Removes events of the audit trail whose time is over, class by class, and stamps others anew when the policy has
//! changed. Holds are looked after first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use taskflow_core::event::TYPES;
use taskflow_core::retention::{Class, SYSTEM_TYPES, Verdict, stamp, verdict};
use taskflow_stores::crash;
use taskflow_stores::mongo::audit_leaves;
use taskflow_stores::mongo::retention::{self as trail, COUNT_MAX, Found};
use taskflow_stores::postgres::{job_schedules, leader};

use super::{Job, retention_holds};
use crate::context::{Context, Failure, Step};
use crate::load::Beside;

pub(super) const JOB: Job = Job {
    name: "retention.events",
    about: "Removes events whose time is over; stamps them anew after a change of the policy (--with restamp: always)",
    cron: "0 7 * * * *",
    jitter_s: 60,
    timeout_s: 3_000,
    retries: 3,
    beside: Beside::MongoDb,
    word: Some("retention"),
    work,
    ..Job::DEFAULT
};

/// Events of one step.
const TOGETHER: i64 = 500;

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        if context.dry_run() {
            return plan(&context).await;
        }
        retention_holds::look_after(&context).await?;
        if restamp(&context).await? == Step::Go && remove(&context).await? == Step::Go {
            prune_leaves(&context).await?;
        }
        Ok(())
    })
}

/// What a run would remove, from the counts of each type.
async fn plan(context: &Context) -> Result<(), Failure> {
    let holds = retention_holds::standing(context).await?;
    let mut classes = serde_json::Map::new();
    for class in Class::ALL {
        let days = context.retention.days(class);
        let (mut all, mut past, mut held) = (0, 0, 0);
        for kind in
            TYPES.into_iter().chain(SYSTEM_TYPES).filter(|kind| context.retention.class_of(kind) == class)
        {
            let before = context.days_ago(context.retention.days_of(kind))?;
            let started = Instant::now();
            let counted = trail::count(&context.stores.mongo, kind, before, &holds).await?;
            all += counted.all;
            past += counted.free;
            held += counted.past.saturating_sub(counted.free);
            context.step(started.elapsed()).await?;
        }
        let counts = json!({ "days": days, "events": all, "past": past, "past_on_hold": held });
        classes.insert(class.as_str().to_owned(), counts);
    }
    context.log(format!(
        "counts end at {COUNT_MAX} a type; what is past would be removed, but not what is on hold"
    ));
    context.set("policy", context.retention.policy());
    context.set("classes", classes);
    context.set("holds", holds.entities.len() + holds.actors.len());
    Ok(())
}

/// Goes through all events if the policy is not the one that they were stamped by, from where the last run got to.
async fn restamp(context: &Context) -> Result<Step, Failure> {
    let policy = context.retention.policy();
    let state = job_schedules::state(&context.stores.postgres, &context.schedule).await?.unwrap_or_default();
    let same = state["policy"] == policy.as_str();
    if same && state["stamped"] == true && !context.flag("restamp") {
        return Ok(Step::Go);
    }
    let mut cursor = if same { state["cursor"].as_str().and_then(id_of) } else { None };
    context.log(format!("stamps events anew: {policy}"));
    loop {
        let started = Instant::now();
        let page = trail::behind(&context.stores.mongo, cursor, TOGETHER).await?;
        // After the events: whatever was marked when they were read is known now.
        let holds = retention_holds::standing(context).await?;
        let wrong = page.iter().filter_map(|event| {
            let right = stamp(&context.retention, &holds, &event.kept());
            (right.timestamp_millis() != event.expires_at.timestamp_millis()).then_some((event, right))
        });
        let wrong: Vec<(&Found, DateTime<Utc>)> = wrong.collect();
        let (mongo, stamps) = (&context.stores.mongo, wrong.as_slice());
        let write = |until| async move {
            crash::point("stamps");
            trail::stamp(mongo, stamps, until).await
        };
        context.in_mongo(write).await?;
        context.add("looked_at", page.len() as u64);
        context.add("stamped", wrong.len() as u64);
        let done = page.len() < TOGETHER as usize;
        cursor = page.last().map(|event| event.id).or(cursor);
        let state = json!({ "policy": policy, "stamped": done, "cursor": cursor.map(hex).filter(|_| !done) });
        let mut transaction = context.fence.begin().await?;
        job_schedules::set_state(&mut transaction, &context.schedule, &state).await?;
        leader::commit(transaction).await?;
        crash::point("half_done");
        if done {
            return Ok(Step::Go);
        }
        if context.step(started.elapsed()).await? == Step::Enough {
            return Ok(Step::Enough);
        }
    }
}

async fn remove(context: &Context) -> Result<Step, Failure> {
    let mut removed = std::collections::BTreeMap::<&'static str, u64>::new();
    loop {
        let (started, now) = (Instant::now(), context.agreed_now()?);
        let page = trail::expired(&context.stores.mongo, now, TOGETHER).await?;
        let holds = retention_holds::standing(context).await?;
        let (mut gone, mut stamps) = (Vec::new(), Vec::new());
        let mut classes = std::collections::BTreeMap::<&'static str, u64>::new();
        for event in &page {
            match verdict(&context.retention, &holds, &event.kept(), now) {
                Verdict::Remove => {
                    gone.push(event.id);
                    *classes.entry(context.retention.class_of(&event.kind).as_str()).or_default() += 1;
                }
                // Too young or on hold, whatever its stamp said.
                Verdict::Stamp(right) => stamps.push((event, right)),
                Verdict::Keep => {}
            }
        }
        let (mongo, young, past) = (&context.stores.mongo, stamps.as_slice(), gone.as_slice());
        let write = |until| async move {
            crash::point("removes");
            trail::stamp(mongo, young, until).await?;
            trail::remove(mongo, past, now, until).await.map(drop)
        };
        context.in_mongo(write).await?;
        for (class, count) in classes {
            *removed.entry(class).or_default() += count;
        }
        context.add("removed", gone.len() as u64);
        context.add("stamped", stamps.len() as u64);
        context.set(
            "removed_by_class",
            removed
                .iter()
                .map(|(class, count)| ((*class).to_owned(), Value::from(*count)))
                .collect::<serde_json::Map<_, _>>(),
        );
        // Nothing that came back was dealt with: the next look would bring the same.
        if page.len() < TOGETHER as usize || (gone.is_empty() && stamps.is_empty()) {
            return Ok(Step::Go);
        }
        if context.step(started.elapsed().max(Duration::from_millis(1))).await? == Step::Enough {
            return Ok(Step::Enough);
        }
    }
}

/// Lists of leaves go when all their events are gone.
async fn prune_leaves(context: &Context) -> Result<(), Failure> {
    loop {
        let started = Instant::now();
        context.fence.holds().await?;
        let pruned = audit_leaves::prune(&context.stores.mongo, context.now(), TOGETHER).await?;
        context.add("leaves_removed", pruned.removed);
        if pruned.looked_at < TOGETHER as u64 || context.step(started.elapsed()).await? == Step::Enough {
            return Ok(());
        }
    }
}

fn hex(id: [u8; 12]) -> String {
    taskflow_core::event::EventId(id).to_string()
}

fn id_of(text: &str) -> Option<[u8; 12]> {
    serde_json::from_value::<taskflow_core::event::EventId>(text.into()).ok().map(|id| id.0)
}
