//! Reads through the caches and single commands, at 64 connections: requests a second, and how long each takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use taskflow_core::Command;
use taskflow_servers::free_address;
use taskflow_stores::clock;
use taskflow_stores::rabbit::publish::Message;
use tokio::task::JoinSet;

use super::http::Connection;
use super::intake::log_in;
use super::report::Figure;
use super::{Plan, generate};
use crate::place::{self, Place, Site};

const CONNECTIONS: usize = 64;
/// Tasks that are read, each again and again.
const TASKS: usize = 500;

pub(super) async fn run(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    let address = free_address()?;
    let (api, worker) = (site.spawn("api", Some(&address))?, site.spawn("worker", None)?);
    let headers = log_in(&address).await?;
    let time = Duration::from_secs(plan.seconds);
    let api_pid = api.id().context("the API has ended")?;
    tell("reads: making tasks");
    let tasks: Vec<Command> = (0..TASKS).map(|number| generate::create(number, clock::now())).collect();
    let paths: Arc<Vec<String>> =
        Arc::new(tasks.iter().map(|task| format!("/v1/tasks/{}", task.subject)).collect());
    publish(&site, &tasks).await?;
    until_read(&address, &headers, &paths).await?;
    let mut figures = Vec::new();
    tell("reads: tasks");
    let get = |paths: Arc<Vec<String>>| {
        let headers = headers.clone();
        load(address.clone(), time, move |connection, number| {
            let (path, headers) = (paths[number % paths.len()].clone(), headers.clone());
            Box::pin(async move { connection.get(&path, &headers).await.map(|answer| answer.status) })
        })
    };
    let before = (place.cpu(), place::process_cpu(api_pid));
    let tasks = get(Arc::clone(&paths)).await?;
    let used = place.cpu().since(before.0);
    let each = |seconds: f64| seconds * 1_000.0 / tasks.took_us.len().max(1) as f64;
    tasks.tell("GET, one task, cached", "requests/s", Some(15_000.0), &mut figures);
    let api_used = place::process_cpu(api_pid) - before.1;
    figures.push(Figure::new("  CPU of the API", each(api_used), "ms/request", None));
    figures.push(Figure::new("  CPU of Redis", each(used.redis), "ms/request", None));
    figures.push(Figure::new("  CPU of Postgres", each(used.postgres), "ms/request", None));
    tell("reads: lists");
    let lists = Arc::new(vec![
        format!("/v1/users/{}/tasks", generate::ADMIN),
        format!("/v1/users/{}/task-stats", generate::ADMIN),
    ]);
    get(lists).await?.tell("GET, list and statistics, cached", "requests/s", None, &mut figures);
    tell("reads: single commands");
    let json = format!("{headers}content-type: application/json\r\n");
    let posts = load(address.clone(), time, move |connection, number| {
        let (body, headers) = (generate::create(number, clock::now()).to_json(), json.clone());
        Box::pin(async move {
            let answer = connection.post("/v1/commands", &headers, &body).await?;
            Ok(if answer.status == 202 { 200 } else { answer.status })
        })
    });
    posts.await?.tell("POST, one command, applied meanwhile", "requests/s", None, &mut figures);
    place::stop(worker).await?;
    let json = format!("{headers}content-type: application/json\r\n");
    let posts = load(address.clone(), time, move |connection, number| {
        let (body, headers) = (generate::create(number, clock::now()).to_json(), json.clone());
        Box::pin(async move {
            let answer = connection.post("/v1/commands", &headers, &body).await?;
            Ok(if answer.status == 202 { 200 } else { answer.status })
        })
    });
    posts.await?.tell("POST, one command, nobody drains", "requests/s", Some(8_000.0), &mut figures);
    place::stop(api).await?;
    site.close().await;
    Ok(figures)
}

async fn publish(site: &Site, commands: &[Command]) -> Result<()> {
    for command in commands {
        site.stores.publisher.publish(Message::command(command, clock::now(), None)).await?;
    }
    Ok(())
}

/// Waits until all can be read, and are cached.
async fn until_read(address: &str, headers: &str, paths: &[String]) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut connection = Connection::open(address).await?;
    for path in paths {
        while connection.get(path, headers).await?.status != 200 {
            ensure!(Instant::now() < deadline, "{path} is not there after 60 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(())
}

/// How long each request took, in microseconds, sorted.
struct Load {
    took_us: Vec<u32>,
    seconds: f64,
}

impl Load {
    fn tell(&self, name: &str, unit: &'static str, target: Option<f64>, figures: &mut Vec<Figure>) {
        let count = self.took_us.len();
        let percentile = |part: usize| {
            let at = (count * part / 100).min(count.saturating_sub(1));
            f64::from(self.took_us.get(at).copied().unwrap_or(0)) / 1_000.0
        };
        figures.push(Figure::new(name, count as f64 / self.seconds, unit, target));
        figures.push(Figure::new("  p50", percentile(50), "ms", None));
        figures.push(Figure::new("  p99", percentile(99), "ms", None));
    }
}

type Asked<'c> = std::pin::Pin<Box<dyn Future<Output = Result<u16>> + Send + 'c>>;

/// Sends requests over all connections, one after the other on each. `ask` gets a number that goes up.
async fn load(
    address: String,
    time: Duration,
    ask: impl for<'c> Fn(&'c mut Connection, usize) -> Asked<'c> + Send + Sync + 'static,
) -> Result<Load> {
    let ask = Arc::new(ask);
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for first in 0..CONNECTIONS {
        let (address, ask) = (address.clone(), Arc::clone(&ask));
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            let mut took_us = Vec::with_capacity(1 << 12);
            let mut number = first;
            while start.elapsed() < time {
                let begun = Instant::now();
                let status = ask(&mut connection, number).await?;
                took_us.push(begun.elapsed().as_micros() as u32);
                ensure!(status == 200, "a request was answered with {status}");
                number += CONNECTIONS;
            }
            Ok(took_us)
        });
    }
    let mut took_us = Vec::new();
    while let Some(ended) = clients.join_next().await {
        took_us.extend(ended??);
    }
    let seconds = start.elapsed().as_secs_f64();
    took_us.sort_unstable();
    Ok(Load { took_us, seconds })
}
