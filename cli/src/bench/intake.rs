//! The HTTP intake: one by one, in arrays, and as ndjson. Nobody drains meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use taskflow_servers::free_address;
use taskflow_stores::clock;
use tokio::task::JoinSet;

use super::http::Connection;
use super::report::Figure;
use super::{Plan, generate};
use crate::commands::seed::LOGINS;
use crate::place::{self, Place};

const CONNECTIONS: usize = 64;
const ARRAY: usize = 500;
const ARRAY_CONNECTIONS: usize = 4;

pub(super) async fn run(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    let address = free_address()?;
    let child = site.spawn("api", Some(&address))?;
    let headers = log_in(&address).await?;
    let time = Duration::from_secs(plan.seconds);
    tell("HTTP intake, one by one");
    let single = singles(&address, &headers, time).await?;
    tell("HTTP intake, arrays");
    let arrays = arrays(&address, &headers, time).await?;
    tell("HTTP intake, ndjson");
    let ndjson = ndjson(&address, &headers, plan.commands).await?;
    place::stop(child).await?;
    site.close().await;
    Ok(vec![
        Figure::new("POST, one command, 64 connections", single, "commands/s", None),
        Figure::new("POST, arrays of 500, 4 connections", arrays, "commands/s", None),
        Figure::new("POST, ndjson, 1 connection", ndjson, "commands/s", Some(20_000.0)),
    ])
}

/// Logs the sample admin in, as soon as the API listens; returns the header with the token.
pub(super) async fn log_in(address: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let body = serde_json::json!({ "email": LOGINS[0].0, "password": LOGINS[0].1 }).to_string();
    loop {
        if let Ok(mut connection) = Connection::open(address).await {
            let answer = connection
                .post("/v1/sessions", "content-type: application/json\r\n", body.as_bytes())
                .await?;
            if answer.status == 201 {
                let value: serde_json::Value = serde_json::from_slice(&answer.body)?;
                let token = value["token"].as_str().context("no token")?;
                return Ok(format!("authorization: Bearer {token}\r\n"));
            }
        }
        ensure!(Instant::now() < deadline, "the API at {address} did not get ready in 30 s");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn singles(address: &str, headers: &str, time: Duration) -> Result<f64> {
    let headers = format!("{headers}content-type: application/json\r\n");
    load(address, &headers, time, CONNECTIONS, 1, |number| generate::create(number, clock::now()).to_json())
        .await
}

async fn arrays(address: &str, headers: &str, time: Duration) -> Result<f64> {
    let headers = format!("{headers}content-type: application/cloudevents-batch+json\r\n");
    load(address, &headers, time, ARRAY_CONNECTIONS, ARRAY, |number| {
        let mut body = vec![b'['];
        for index in 0..ARRAY {
            if index > 0 {
                body.push(b',');
            }
            body.extend(generate::create(number + index, clock::now()).to_json());
        }
        body.push(b']');
        body
    })
    .await
}

async fn load(
    address: &str,
    headers: &str,
    time: Duration,
    connections: usize,
    commands_each: usize,
    body: fn(usize) -> Vec<u8>,
) -> Result<f64> {
    let accepted = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..connections {
        let (address, headers, accepted) = (address.to_owned(), headers.to_owned(), Arc::clone(&accepted));
        clients.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            while start.elapsed() < time {
                let answer = connection.post("/v1/commands", &headers, &body(number)).await?;
                ensure!(answer.status == 202, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
                accepted.fetch_add(commands_each as u64, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(accepted.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64())
}

async fn ndjson(address: &str, headers: &str, commands: usize) -> Result<f64> {
    // Made before: the time is the intake's, not the generator's.
    let chunks: Vec<Vec<u8>> = (0..commands.div_ceil(ARRAY))
        .map(|chunk| {
            let mut lines = Vec::with_capacity(ARRAY * 512);
            for number in chunk * ARRAY..((chunk + 1) * ARRAY).min(commands) {
                lines.extend(generate::create(number, clock::now()).to_json());
                lines.push(b'\n');
            }
            lines
        })
        .collect();
    let mut connection = Connection::open(address).await?;
    let start = Instant::now();
    connection.begin("/v1/commands", &format!("{headers}content-type: application/x-ndjson\r\n")).await?;
    for chunk in &chunks {
        connection.chunk(chunk).await?;
    }
    let answer = connection.end().await?;
    let took = start.elapsed();
    let value: serde_json::Value = serde_json::from_slice(&answer.body)?;
    ensure!(value["accepted"] == commands, "ndjson: {} {value}", answer.status);
    Ok(commands as f64 / took.as_secs_f64())
}
