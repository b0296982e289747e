//! What filling the caches in advance is worth: how many reads of the first minute after a flush are answered from the
//! caches, without it and with it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use taskflow_core::heat;
use taskflow_servers::free_address;
use taskflow_stores::clock;
use tokio::task::JoinSet;

use super::http::Connection;
use super::intake::log_in;
use super::report::Figure;
use crate::place::{self, Place, Site};

const USERS: usize = 1_000;
const TASKS_OF_EACH: i64 = 40;
const CONNECTIONS: usize = 8;
/// Reads a second over all connections.
const RATE: usize = 200;
const MINUTE: Duration = Duration::from_secs(60);
/// The part of the minute that is told apart.
const AT_FIRST: Duration = Duration::from_secs(10);

pub(super) async fn run(place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    tell("warming: making users and their tasks");
    fill(&site).await?;
    let address = free_address()?;
    let api = site.spawn("api", Some(&address))?;
    let mut figures = Vec::new();
    for (name, warmed) in
        [("first minute after a flush, caches not filled", false), ("… filled by cache.warm", true)]
    {
        let scheduler = if warmed { Some(site.spawn("scheduler", None)?) } else { None };
        // The first fill is not the one that is measured.
        if warmed {
            first_fill(&site).await?;
        }
        log_in(&address).await?;
        flush(&site).await?;
        let before = place.cpu();
        tell(&format!("warming: {name}"));
        let seen = minute(&address).await?;
        seen.tell(name, place.cpu().since(before).postgres, &mut figures);
        if let Some(scheduler) = scheduler {
            place::stop(scheduler).await?;
        }
    }
    place::stop(api).await?;
    site.close().await;
    Ok(figures)
}

/// Users with tasks, and the note of how much each reads: the one of rank `r` a part of `1/r`.
async fn fill(site: &Site) -> Result<()> {
    let pool = &site.stores.postgres;
    sqlx::query(
        "INSERT INTO users (id, email, password_hash)
         SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'reader' || n || '@example.com', 'none'
         FROM generate_series(1, $1) AS n",
    )
    .bind(USERS as i32)
    .execute(pool)
    .await?;
    sqlx::query(
        "INSERT INTO tasks (title, description, creator_id, created_at, priority)
         SELECT 'Task ' || t, repeat('what is to be done ', 5), u.id, now() - t * interval '1 hour', 'medium'
         FROM users u, generate_series(1, $1) AS t WHERE u.email LIKE 'reader%'",
    )
    .bind(TASKS_OF_EACH)
    .execute(pool)
    .await?;
    sqlx::query(
        "INSERT INTO user_activity (user_id, heat)
         SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, $2 + ln(10000.0 / n) / ln(2.0)
         FROM generate_series(1, $1) AS n",
    )
    .bind(USERS as i32)
    .bind(heat::of(1, clock::now()))
    .execute(pool)
    .await?;
    sqlx::query("ANALYZE").execute(pool).await.map(drop).context("analyze")
}

async fn first_fill(site: &Site) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let filled: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM job_runs WHERE job = 'cache.warm' AND state = 'completed'",
        )
        .fetch_one(&site.stores.postgres)
        .await?;
        if filled > 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "cache.warm has not run after two minutes");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Of the benchmark's own server.
async fn flush(site: &Site) -> Result<()> {
    let client = redis::Client::open(site.settings.redis.url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    Ok(redis::cmd("FLUSHALL").query_async(&mut connection).await?)
}

/// What a minute's reads were: when each came after the flush, whether from a cache, and how long it took.
#[derive(Default)]
struct Seen(Vec<(Duration, bool, Duration)>);

impl Seen {
    fn tell(&self, name: &str, postgres_s: f64, figures: &mut Vec<Figure>) {
        let rate = |until: Duration| {
            let all = self.0.iter().filter(|(at, ..)| *at < until).count();
            let hits = self.0.iter().filter(|(at, hit, _)| *at < until && *hit).count();
            hits as f64 * 100.0 / all.max(1) as f64
        };
        let mut took: Vec<f64> = self.0.iter().map(|(.., took)| took.as_secs_f64() * 1_000.0).collect();
        took.sort_by(f64::total_cmp);
        let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or(0.0);
        figures.push(Figure::new(name, rate(MINUTE), "% hits", None));
        figures.push(Figure::new("  of its first ten seconds", rate(AT_FIRST), "% hits", None));
        figures.push(Figure::new("  p99", p99, "ms", None));
        figures.push(Figure::new("  CPU of Postgres", postgres_s, "s", None));
    }
}

async fn minute(address: &str) -> Result<Seen> {
    let begun = Instant::now();
    // Sessions went with the flush.
    let headers = log_in(address).await?;
    let mut readers = JoinSet::new();
    for first in 0..CONNECTIONS {
        let (address, headers) = (address.to_owned(), headers.clone());
        readers.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            let mut seen = Vec::new();
            for number in (first..).step_by(CONNECTIONS) {
                let due = begun + Duration::from_secs_f64(number as f64 / RATE as f64);
                if due > begun + MINUTE {
                    break;
                }
                tokio::time::sleep_until(due.into()).await;
                let asked = Instant::now();
                let answer = connection.get(&path(number), &headers).await?;
                ensure!(answer.status == 200, "a read was answered with {}", answer.status);
                seen.push((asked - begun, answer.hit, asked.elapsed()));
            }
            Ok(seen)
        });
    }
    let mut all = Seen::default();
    while let Some(ended) = readers.join_next().await {
        all.0.extend(ended??);
    }
    Ok(all)
}

/// The reads, always the same: of the user of rank `r` about as many as `1/r`.
fn path(number: usize) -> String {
    const GOLDEN: f64 = 0.618_033_988_749_895;
    let rank = (USERS as f64).powf((number as f64 * GOLDEN).fract()) as usize;
    let what = ["", "/tasks", "/task-stats"][number % 3];
    format!("/v1/users/00000000-0000-7000-8000-{:012}{what}", rank.clamp(1, USERS))
}
