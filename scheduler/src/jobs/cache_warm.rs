//! Fills the caches in advance for those who read most: profile, first page of tasks, statistics. When they were emptied
//! (`emptied.rs` notices), the readers of the next minute would otherwise all ask Postgres at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use taskflow_core::task_page::FIRST;
use taskflow_core::{cache_key, early, heat};
use taskflow_stores::postgres::{task_lists, user_activity, users};
use taskflow_stores::redis::cache::{Entry, user_entry};
use taskflow_stores::redis::document::{Document, Life};
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

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
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
        let life = Life { ttl_s: cache_key::LIST_TTL_S, holds_until: None };
        kept(first_page(*user), pages.position, each, life, body)
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
        let life = Life { ttl_s: cache_key::STATS_TTL_S, holds_until: stats.next_due };
        kept(cache_key::task_stats(*user), counted.position, each, life, body)
    };
    Ok(counted.found.iter().filter_map(entry).collect())
}

/// An answer as readers keep it, if it is one that they keep.
fn kept(key: String, position: i64, took: Duration, life: Life, body: Vec<u8>) -> Option<Entry> {
    let life = Life { ttl_s: early::jittered_s(life.ttl_s, rand::random()), ..life };
    Document::made(position, body, took, clock::now(), life).entry(key, life.ttl_s)
}
