//! Fills the caches in advance for those who read most: profile, first page of tasks, statistics. When they were emptied
//! (`emptied.rs` notices), the readers of the next minute would otherwise all ask Postgres at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::BoxFuture;
use taskflow_core::task_page::FIRST;
use taskflow_core::{cache_key, early, heat};
use taskflow_stores::postgres::{leader, task_lists, user_activity, users};
use taskflow_stores::redis::cache::{Entry, user_entry};
use taskflow_stores::redis::document::{Document, KEPT_MAX};
use taskflow_stores::{StoreError, clock};
use uuid::Uuid;

use super::Job;
use crate::context::{Context, Failure, Step};

pub(super) const JOB: Job = Job {
    name: "cache.warm",
    about: "Fills the caches for those who read most; also whenever they were emptied",
    cron: "0 30 5 * * *",
    jitter_s: 60,
    timeout_s: 900,
    missed: taskflow_core::job::Missed::Skip,
    work,
    ..Job::DEFAULT
};

/// Users whose answers are made in three statements.
const TOGETHER: usize = 20;
/// Who has read less than this, as reads of now, is not waited for.
const COUNT_MIN: f64 = 0.05;
/// Who has not read for so long is forgotten.
const FORGET_AFTER: TimeDelta = TimeDelta::days(30);
const FORGET_TOGETHER: i64 = 1_000;

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        forget(&context).await?;
        let begun = Instant::now();
        let mut left = context.settings.warm_users;
        let coldest = heat::of(1, clock::now()) + COUNT_MIN.log2();
        let mut last = None;
        while left > 0 {
            let started = Instant::now();
            let limit = left.min(TOGETHER);
            let found = user_activity::hottest(&context.stores.postgres, last, coldest, limit as i64).await?;
            let Some(hindmost) = found.last() else { break };
            last = Some(*hindmost);
            left -= found.len();
            let users: Vec<Uuid> = found.iter().map(|(_, user)| *user).collect();
            context.add("users", users.len() as u64);
            warm(&context, &users).await?;
            if found.len() < limit || context.step(started.elapsed()).await? == Step::Enough {
                break;
            }
        }
        context.set("seconds", begun.elapsed().as_secs_f64());
        Ok(())
    })
}

/// Makes what is missing of some users' answers.
async fn warm(context: &Context, users: &[Uuid]) -> Result<(), Failure> {
    let keys = |key: fn(Uuid) -> String| users.iter().map(move |user| key(*user));
    let all: Vec<String> =
        keys(cache_key::profile).chain(keys(first_page)).chain(keys(cache_key::task_stats)).collect();
    let there = context.stores.redis.are_there(&all).await?;
    let mut missing = there.chunks(users.len()).map(|there| {
        let missing = users.iter().zip(there).filter(|(_, there)| !**there);
        missing.map(|(user, _)| *user).collect::<Vec<Uuid>>()
    });
    let mut next = || missing.next().unwrap_or_default();
    let (of_profile, of_page, of_stats) = (next(), next(), next());
    context.add("answers_there", there.iter().filter(|there| **there).count() as u64);
    if context.dry_run() {
        context.add("answers_missing", there.iter().filter(|there| !**there).count() as u64);
        return Ok(());
    }
    let mut entries = profiles(context, &of_profile).await?;
    entries.extend(pages(context, &of_page).await?);
    entries.extend(statistics(context, &of_stats).await?);
    context.add("answers_made", entries.len() as u64);
    Ok(context.stores.redis.fill(entries).await?)
}

fn first_page(user: Uuid) -> String {
    cache_key::task_list(user, "all", None, FIRST.page, FIRST.unusual_size())
}

async fn profiles(context: &Context, users: &[Uuid]) -> Result<Vec<Entry>, StoreError> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let found = users::read_all(&context.stores.postgres, users).await?;
    Ok(found.iter().map(user_entry).collect())
}

async fn pages(context: &Context, users: &[Uuid]) -> Result<Vec<Entry>, StoreError> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let pages = task_lists::newest_of(&context.stores.postgres, users, FIRST.limit()).await?;
    let each = started.elapsed() / users.len() as u32;
    let entry = |(user, tasks): (&Uuid, &Vec<taskflow_core::Task>)| {
        let body = FIRST.body(tasks);
        kept(first_page(*user), cache_key::LIST_TTL_S, pages.position, None, each, body)
    };
    Ok(pages.found.iter().filter_map(entry).collect())
}

async fn statistics(context: &Context, users: &[Uuid]) -> Result<Vec<Entry>, StoreError> {
    if users.is_empty() {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let counted = task_lists::stats_of(&context.stores.postgres, users, clock::now()).await?;
    let each = started.elapsed() / users.len() as u32;
    let entry = |(user, stats): &(Uuid, task_lists::Stats)| {
        let body = serde_json::to_vec(stats).ok()?;
        let key = cache_key::task_stats(*user);
        kept(key, cache_key::STATS_TTL_S, counted.position, stats.next_due, each, body)
    };
    Ok(counted.found.iter().filter_map(entry).collect())
}

/// An answer as readers keep it, if it is one that they keep.
fn kept(
    key: String,
    ttl_s: u64,
    position: i64,
    holds_until: Option<DateTime<Utc>>,
    took: Duration,
    body: Vec<u8>,
) -> Option<Entry> {
    if body.len() > KEPT_MAX {
        return None;
    }
    let ttl_s = early::jittered_s(ttl_s, rand::random());
    let ends_ms = clock::now().timestamp_millis() + ttl_s as i64 * 1_000;
    let ends_ms = holds_until.map_or(ends_ms, |until| ends_ms.min(until.timestamp_millis()));
    let value = Document::new(position, ends_ms, took.as_secs_f64() * 1_000.0, body).to_stored()?;
    Some(Entry { key, value, ttl_s })
}

async fn forget(context: &Context) -> Result<(), Failure> {
    if context.dry_run() {
        return Ok(());
    }
    let mut transaction = context.fence.begin().await?;
    let before = heat::of(1, clock::now() - FORGET_AFTER);
    let forgotten = user_activity::forget(&mut transaction, before, FORGET_TOGETHER).await?;
    leader::commit(transaction).await?;
    if forgotten > 0 {
        context.set("forgotten", forgotten);
    }
    Ok(())
}
