//! What a socket may do: heads, bodies and readers that are slow, sizes, forms, headers of answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use taskflow_tests::commands::{USER, id};
use taskflow_tests::{Client, Result, Site, wait};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::told;
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("access: slow heads, slow bodies, idle connections and slow readers are let go", slow),
        with_site("access: what is too large or has the wrong form has its answer", forms),
        with_site("access: connections are bounded, in all and by address", crowds),
        with_site("access: a crowd of slow logins leaves commands their room", slow_logins),
    ]
}

async fn open(client: &Client) -> Result<TcpStream> {
    Ok(TcpStream::connect(client.base().trim_start_matches("http://")).await?)
}

/// All that comes until the other end closes.
async fn rest(stream: &mut TcpStream) -> Result<String> {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut bytes)).await;
    // A reset is a closed connection too.
    let _ = read.context("the connection stays open")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn send(client: &Client, request: &str) -> Result<String> {
    let mut stream = open(client).await?;
    // The answer may come, and the connection close, before all is sent.
    let _ = stream.write_all(request.as_bytes()).await;
    rest(&mut stream).await
}

async fn slow(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let times = [
        ("TASKFLOW_HTTP__LIMITS__HEAD_TIMEOUT_MS", "1000"),
        ("TASKFLOW_HTTP__LIMITS__IDLE_TIMEOUT_MS", "2500"),
        ("TASKFLOW_HTTP__LIMITS__BODY_PAUSE_MS", "1000"),
        ("TASKFLOW_HTTP__LIMITS__BODY_TIMEOUT_MS", "2000"),
        ("TASKFLOW_HTTP__LIMITS__WRITE_TIMEOUT_MS", "1000"),
    ];
    let (api, client) = cluster.api_with(&times).await?;
    let token = client.user().await?.token().unwrap_or_default();

    // A head that comes letter by letter, each well within any pause.
    let mut drip = open(&client).await?;
    let since = Instant::now();
    let dripped = async {
        for letter in "GET /healthz HTTP/1.1\r\nhost: x\r\n".bytes().chain(std::iter::repeat(b'x')) {
            if drip.write_all(&[letter]).await.is_err() {
                return;
            }
            // Each letter is written for itself.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), dripped).await.context("a slow head is read for ever")?;
    ensure!(since.elapsed() >= Duration::from_secs(1), "it was closed too early: {:?}", since.elapsed());

    // An idle connection may rest longer than a head may take, and is let go after an answer too.
    let mut idle = open(&client).await?;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
    let since = Instant::now();
    let answer = rest(&mut idle).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    ensure!(since.elapsed() >= Duration::from_millis(2_400), "it had no rest: {:?}", since.elapsed());

    // A body that stops, one that drips, and a stream that stops.
    let head = |kind: &str| {
        format!(
            "POST /v1/commands HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: {kind}\r\ncontent-length: 500\r\n\r\n"
        )
    };
    for kind in ["application/json", "application/x-ndjson"] {
        let mut stops = open(&client).await?;
        stops.write_all(format!("{}{{", head(kind)).as_bytes()).await?;
        let answer = rest(&mut stops).await?;
        ensure!(answer.starts_with("HTTP/1.1 408") && answer.contains("too_slow"), "{kind}: {answer}");
    }
    let (mut reader, mut writer) = open(&client).await?.into_split();
    writer.write_all(head("application/json").as_bytes()).await?;
    let dripping = async {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = dripping => {}
        _ = reader.read_to_end(&mut answer) => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");

    // Answers that nobody reads.
    let closed = async |reason: &str| -> Result<f64> {
        let metrics = client.get("/metrics").await?.text().await?;
        let series = format!("taskflow_http_connections_closed_total{{reason=\"{reason}\"}} ");
        Ok(metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or_default())
    };
    ensure!(closed("head").await? >= 1.0, "no slow head was counted");
    let (_unread, mut writer) = open(&client).await?.into_split();
    let asking =
        async { while writer.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.is_ok() {} };
    tokio::select! {
        () = asking => {}
        told = wait::until("a slow reader is let go", async || Ok(closed("write").await? >= 1.0)) => told?,
    }
    ensure!(client.get("/healthz").await?.status() == 200, "the API is not well");
    api.stop().await
}

async fn forms(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let user = client.user().await?;
    let path = format!("/v1/users/{USER}/permissions");
    let huge = "x".repeat(40_000);
    for (request, status) in [
        (format!("GET /healthz HTTP/1.1\r\nhost: x\r\nx-huge: {huge}\r\n\r\n"), "431"),
        (format!("GET /{huge} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"), "4"),
        (format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(200)), "431"),
        ("NONSENSE\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(), "400"),
    ] {
        let answer = send(&client, &request).await?;
        ensure!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.60}\ngave {answer:.200}");
    }
    for (path, status) in [
        (format!("/v1/commands/{}", "x".repeat(1_100)), 414),
        (format!("/healthz?{}", "x".repeat(5_000)), 414),
        (format!("/v1/commands/{}", "%00".repeat(10)), 404),
        ("/v1/admin/dead-letters?pagesize=all".to_owned(), 403),
        (format!("/v1/users/{USER}/tasks?status=%00"), 400),
    ] {
        let (got, answer) = told(user.get(&path).await?).await?;
        ensure!(got == status && answer["status"] == status, "{path:.60}: {got} {answer}");
    }
    let get = |accept: &str| user.request(reqwest::Method::GET, &path).header("accept", accept).send();
    ensure!(get("text/html, application/*;q=0.1").await?.status() == 200, "JSON was accepted");
    let (status, answer) = told(get("text/html").await?).await?;
    ensure!(status == 406 && answer["code"] == "not_acceptable", "{status} {answer}");
    let gzip = user.post("/v1/commands").header("content-encoding", "gzip").body(vec![31, 139, 8]);
    let (status, answer) = told(gzip.send().await?).await?;
    ensure!(status == 415 && answer["detail"].as_str().is_some_and(|d| d.contains("compressed")), "{answer}");
    let answer = user.request(reqwest::Method::PATCH, "/v1/commands").send().await?;
    let allow = answer.headers().get("allow").and_then(|value| value.to_str().ok()).unwrap_or_default();
    ensure!(answer.status() == 405 && allow == "POST", "{answer:?}");
    // What the framework refuses by itself is told in the same form.
    let too_large = vec![b' '; 9 * 1024 * 1024];
    if let Ok(answer) = user.post("/v1/users").body(too_large).send().await {
        ensure!(answer.headers()["content-type"] == "application/problem+json", "{answer:?}");
        let (status, answer) = told(answer).await?;
        ensure!(status == 413 && answer["code"] == "too_large", "{status} {answer}");
    }
    for path in ["/v1/commands/x", "/healthz", "/nowhere"] {
        let answer = user.get(path).await?;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("cache-control", "no-store"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            let got = answer.headers().get(name).and_then(|value| value.to_str().ok());
            ensure!(got == Some(value), "{path}: {name} is {got:?}");
        }
        ensure!(!answer.headers().contains_key("server"), "it tells what it is");
    }
    // A table that is gone is our fault, and nobody else's business.
    site.sql("ALTER TABLE api_keys RENAME TO elsewhere").await?;
    let admin = client.admin().await?;
    let wanted = json!({ "name": "x", "scopes": ["read"] });
    let answer = told(admin.post("/v1/admin/api-keys").json(&wanted).send().await?).await?;
    let said = answer.1.to_string();
    ensure!(answer.0 == 500 && !said.contains("api_keys") && !said.contains("42P01"), "{said}");
    ensure!(user.get(&format!("/v1/commands/{}", id())).await?.status() == 404, "the API is not well");
    Ok(())
}

async fn crowds(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let most = ("TASKFLOW_HTTP__LIMITS__CONNECTIONS", "8");
    let here = ("TASKFLOW_HTTP__LIMITS__ADDRESS_CONNECTIONS", "4");
    for (setting, room) in [(most, 8), (here, 4)] {
        let (_api, client) = cluster.api_with(&[setting]).await?;
        let mut guests = Vec::new();
        for _ in 0..room {
            guests.push(open(&client).await?);
        }
        // The client's own connection is one more, or will be: whoever comes late is let go at once.
        wait::until("one more is turned away", async || {
            let mut late = open(&client).await?;
            let _ = late.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            Ok(rest(&mut late).await?.is_empty())
        })
        .await?;
        drop(guests);
        wait::until("there is room again", async || {
            let answer = client.get("/healthz").await;
            Ok(answer.is_ok_and(|answer| answer.status() == 200))
        })
        .await?;
    }
    Ok(())
}

async fn slow_logins(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // Room for 128 KiB of small bodies.
    let (api, client) = cluster.api_with(&[("TASKFLOW_HTTP__BODIES_MAX", "1048576")]).await?;
    let user = client.user().await?;
    let login = |kind: &str, length: usize| {
        format!(
            "POST /v1/sessions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n\
             content-length: {length}\r\n\r\n{{"
        )
    };
    // Too large for a login, whatever it calls itself: refused while most of it is still to come.
    for kind in ["application/json", "application/x-ndjson"] {
        let answer = send(&client, &login(kind, 60_000)).await?;
        ensure!(answer.starts_with("HTTP/1.1 413") && answer.contains("too_large"), "{kind}: {answer}");
    }
    let untold = format!(
        "POST /v1/sessions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         2000\r\n{}\r\n0\r\n\r\n",
        " ".repeat(0x2000)
    );
    let answer = send(&client, &untold).await?;
    ensure!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut stream = open(&client).await?;
        stream.write_all(login("application/json", 4_000).as_bytes()).await?;
        held.push(stream);
    }
    for _ in 0..5 {
        let command =
            taskflow_tests::commands::command_of(USER, "task.create", id(), json!({ "title": "small" }));
        let (status, answer) = user.send("application/json", command.to_string()).await?;
        ensure!(status == 202, "{status} {answer}");
    }
    // Others log in meanwhile; who is slow is told so.
    client.user().await?;
    let answer = rest(&mut held[0]).await?;
    ensure!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    drop(held);
    api.stop().await
}
