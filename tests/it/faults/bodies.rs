//! Bodies without number: the API's memory has a bound, and small requests are answered all the same.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures_util::StreamExt;
use libtest_mimic::Trial;
use reqwest::{Body, Response};
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN, USER, command, command_of, id};
use taskflow_tests::{Client, Process, Result, Site, wait};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{cluster, with_site};

const MIB: usize = 1024 * 1024;
/// Room for two of the large ones.
const ROOM: usize = 16 * MIB;
const LARGE: usize = 7 * MIB;
const AT_ONCE: usize = 40;
/// What the process may need beside what it had: some copies of what it has room for. All at once would be 280 MiB.
const MORE: usize = 6 * ROOM;

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("many large bodies at once take bounded memory", bounded)]
}

async fn bounded(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api_with(&[("TASKFLOW_HTTP__BODIES_MAX", &ROOM.to_string())]).await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let before = peak(&api)?;

    // One that comes but for its last byte has its caller's share, and leaves room for somebody else's.
    let go = watch::Sender::new(false);
    let mut held = JoinSet::new();
    let mut hold = |client: &Client, actor| {
        let (client, body) = (client.clone(), slowly(large_of(actor), go.subscribe()));
        held.spawn(async move { send(&client, body, Some(LARGE)).await });
    };
    let has_no_room = async |client: &Client, actor| {
        wait::until("there is no room", async || {
            let refused = send(client, Body::from(large_of(actor)), None).await?;
            Ok(refused.status() == 503)
        })
        .await
    };
    hold(&admin, ADMIN);
    has_no_room(&admin, ADMIN).await?;
    let answer = send(&user, Body::from(large_of(USER)), None).await?;
    ensure!(answer.status() == 202, "{}", answer.text().await?);
    // Two have all the room.
    hold(&user, USER);
    has_no_room(&user, USER).await?;
    is_busy(send(&admin, Body::from(large()), None).await?).await?;
    // One that does not tell its length is refused on its way.
    let untold = futures_util::stream::iter(large().chunks(MIB).map(<[u8]>::to_vec).collect::<Vec<_>>());
    is_busy(send(&admin, Body::wrap_stream(untold.map(std::io::Result::Ok)), None).await?).await?;

    let mut many = JoinSet::new();
    for _ in 0..AT_ONCE {
        let admin = admin.clone();
        many.spawn(async move { send(&admin, Body::from(large()), None).await });
    }
    let mut taken = 0;
    while !many.is_empty() {
        let small = command("task.create", id(), json!({ "title": "small" }));
        let (status, answer) = admin.send("application/json", small.to_string()).await?;
        ensure!(status == 202, "{status} {answer}");
        taken += 1;
        while let Some(ended) = many.try_join_next() {
            // Whoever sends on after the answer may not see it.
            if let Ok(answer) = ended? {
                is_busy(answer).await?;
            }
        }
    }
    ensure!(taken > 1, "small commands were not taken meanwhile");

    go.send_replace(true);
    while let Some(ended) = held.join_next().await {
        let answer = ended??;
        ensure!(answer.status() == 202, "{}", answer.text().await?);
    }
    let answer = send(&admin, Body::from(large()), None).await?;
    ensure!(answer.status() == 202, "{}", answer.text().await?);

    // A stream goes through, however long.
    let line = |_| {
        let value = command("task.create", id(), json!({ "title": "long" })).to_string();
        format!("{value}{}\n", " ".repeat(MIB - MIB / 10))
    };
    let lines: Vec<String> = (0..ROOM / MIB * 2).map(line).collect();
    let count = lines.len();
    let (status, answer) = admin.send("application/x-ndjson", lines.concat()).await?;
    ensure!(status == 202 && answer["accepted"] == count, "{status} {answer}");

    let too_large = send(&admin, Body::from(vec![b' '; 9 * MIB]), None).await;
    // Refused unread; a caller that is still sending may only see the end of the connection.
    if let Ok(answer) = too_large {
        ensure!(answer.status() == 413, "9 MiB were taken");
    }

    let more = peak(&api)?.saturating_sub(before);
    ensure!(more < MORE, "{} MiB more were needed", more / MIB);
    let worker = cluster.worker()?;
    let expected = (taken + 4 + count) as i64;
    wait::until("what was taken is applied", async || {
        Ok(site.count("SELECT count(*) FROM tasks").await? == expected)
    })
    .await?;
    worker.stop().await?;
    api.stop().await
}

/// One command in much white space.
fn large() -> Vec<u8> {
    large_of(ADMIN)
}

fn large_of(actor: Uuid) -> Vec<u8> {
    let mut body = json!([command_of(actor, "task.create", id(), json!({ "title": "large" }))]).to_string();
    body.push_str(&" ".repeat(LARGE - body.len()));
    body.into_bytes()
}

/// All but the last byte, and that when it is time.
fn slowly(mut body: Vec<u8>, mut go: watch::Receiver<bool>) -> Body {
    let last = body.split_off(body.len() - 1);
    let first = futures_util::stream::once(async { std::io::Result::Ok(body) });
    let rest = futures_util::stream::once(async move {
        let _ = go.wait_for(|go| *go).await;
        std::io::Result::Ok(last)
    });
    Body::wrap_stream(first.chain(rest))
}

async fn send(client: &Client, body: Body, length: Option<usize>) -> Result<Response> {
    let mut request = client.post("/v1/commands").header("content-type", "application/json");
    if let Some(length) = length {
        request = request.header("content-length", length);
    }
    Ok(request.timeout(Duration::from_secs(60)).body(body).send().await?)
}

async fn is_busy(answer: Response) -> Result {
    let after =
        answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let status = answer.status().as_u16();
    let problem: Value = answer.json().await?;
    ensure!(status == 503 && problem["code"] == "busy", "{status} {problem}");
    ensure!(after.is_some_and(|seconds| seconds > 0), "retry after {after:?}");
    Ok(())
}

/// The most memory that the process had at a time, in bytes.
fn peak(process: &Process) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.split_whitespace().next().context("no number")?.parse::<usize>()? * 1024)
}
