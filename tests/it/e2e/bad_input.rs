//! Bad input: each kind has its stated answer, and none disturbs its neighbours or the process.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{USER, command, id, ndjson};
use taskflow_tests::{Client, Result, Site};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("every kind of bad command is named by its pointer", by_pointer),
        with_site("one bad command among ten thousand harms no other", one_of_many),
        with_site("bodies that are no bodies have their answers", bodies),
        with_site("a body that stops half-way leaves the server well", half_a_body),
    ]
}

fn good() -> Value {
    command("task.create", id(), json!({ "title": "good" }))
}

fn with(pointer: &str, value: Value) -> Value {
    let mut command = good();
    let (parent, name) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    if let Some(object) = command.pointer_mut(parent).and_then(Value::as_object_mut) {
        object.insert(name.to_owned(), value);
    }
    command
}

async fn refused(client: &Client, body: &str, pointer: &str) -> Result {
    let (status, answer) = client.send("application/json", body.to_owned()).await?;
    let pointers: Vec<&str> = answer["errors"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    ensure!(
        status == 400 && pointers == [pointer],
        "{body:.300}\ngave {status} {answer}, not a fault at {pointer:?}"
    );
    Ok(())
}

async fn by_pointer(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let cases = [
        ("/subject", json!("not-a-uuid")),
        ("/subject", json!(42)),
        ("/id", json!("{0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10}")),
        ("/type", json!("task.explode")),
        ("/time", json!("2026-11-23T14:00:00")),
        ("/expirytime", json!("+099999-01-01T00:00:00Z")),
        ("/source", json!("with blanks in it")),
        ("/priority", json!("urgent")),
        ("/traceparent", json!("00-zz-1-1")),
        ("/dataschema", json!("taskflow:/schemas/task.create/2")),
        ("/surprise", json!(true)),
        ("/data", json!("text")),
        ("/data/title", json!("")),
        ("/data/title", json!("x".repeat(256))),
        ("/data/title", json!("with \u{0} in it")),
        ("/data/title", json!({ "nested": true })),
        ("/data/priority", json!("lowest")),
        ("/data/assigneeid", json!("me")),
        ("/data/duedate", json!("tomorrow")),
        ("/data/colour", json!("red")),
    ];
    for (pointer, value) in cases {
        refused(&admin, &with(pointer, value).to_string(), pointer).await?;
    }
    for version in [json!(0), json!(-1), json!(1.5), json!(99_999_999_999_i64), json!(1e300)] {
        let command = command("task.delete", id(), json!({ "expectedversion": version }));
        refused(&admin, &command.to_string(), "/data/expectedversion").await?;
    }
    // Names of people are in an index, and an index has no room for a novel.
    for (key, name) in [("firstName", json!("x".repeat(256))), ("lastName", json!({ "of": "the father" }))] {
        let command = command("user.update_profile", USER, json!({ "profile": { key: name } }));
        refused(&admin, &command.to_string(), &format!("/data/profile/{key}")).await?;
    }
    for body in ["", "{", "[1,2", "null", "42", r#"{"data":"\ud800"}"#, "{\"a\":1}{"] {
        let (status, answer) = admin.send("application/json", body).await?;
        ensure!(status == 400, "{body}: {status} {answer}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let (status, _) = admin.send("application/json", deep).await?;
    ensure!(status == 400, "deep nesting: {status}");
    let secret = "a clear password, sent by mistake";
    let register = command("user.register", id(), json!({ "email": "a@b.example", "passwordhash": secret }));
    let (status, answer) = admin.send("application/json", register.to_string()).await?;
    ensure!(status == 400 && !answer.to_string().contains(secret), "{status} {answer}");
    // 255 characters are more bytes where they are not ASCII.
    let (status, answer) =
        admin.send("application/json", with("/data/title", json!("é".repeat(255))).to_string()).await?;
    ensure!(status == 202, "{status} {answer}");
    Ok(())
}

async fn one_of_many(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let mut commands: Vec<Value> = (0..10_000).map(|_| good()).collect();
    commands[6_789]["data"]["title"] = json!(17);
    let (status, answer) =
        admin.send("application/cloudevents-batch+json", json!(commands).to_string()).await?;
    ensure!(status == 202 && answer["accepted"] == 9_999, "{status} {:.500}", answer.to_string());
    let refused = &answer["refused"];
    ensure!(refused.as_array().map(Vec::len) == Some(1) && refused[0]["index"] == 6_789, "{refused}");
    ensure!(
        refused[0]["id"] == commands[6_789]["id"]
            && refused[0]["problem"]["errors"][0]["pointer"] == "/data/title",
        "{refused}"
    );
    commands.push(good());
    let (status, answer) = admin.send("application/json", json!(commands).to_string()).await?;
    ensure!(status == 413 && answer["code"] == "too_large", "{status} {answer}");
    worker.stop().await
}

async fn bodies(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let huge = with("/data/title", json!("x".repeat(20 * 1024 * 1024))).to_string();
    // The server answers before it has read all; a client may see the closed connection first.
    if let Ok((status, answer)) = admin.send("application/json", huge.clone()).await {
        ensure!(status == 413 && answer["code"] == "too_large", "{status} {answer}");
    }
    // As a line of many it is refused alone.
    let lines = format!("{}{huge}\n{}", ndjson(&[good()]), ndjson(&[good()]));
    let (status, answer) = admin.send("application/x-ndjson", lines).await?;
    ensure!(
        status == 202 && answer["accepted"] == 2 && answer["refused"][0]["index"] == 1,
        "{status} {answer}"
    );
    let (status, answer) = admin.send("text/plain", good().to_string()).await?;
    ensure!(status == 415 && answer["code"] == "unsupported_media_type", "{status} {answer}");
    let (status, answer) = admin.send("application/json", "[]").await?;
    ensure!(status == 400, "{status} {answer}");
    let (status, answer) = admin.send("application/x-ndjson", "").await?;
    ensure!(status == 202 && answer["accepted"] == 0, "{status} {answer}");
    let (status, answer) = admin.send("application/x-ndjson", "no json\nneither\n").await?;
    ensure!(status == 400 && answer["refused"].as_array().map(Vec::len) == Some(2), "{status} {answer}");
    let answer = admin.get("/v1/nowhere").await?;
    ensure!(
        answer.status() == 404 && answer.headers()["content-type"] == "application/problem+json",
        "{answer:?}"
    );
    ensure!(answer.headers().contains_key("x-request-id"), "no request id");
    ensure!(admin.delete("/v1/commands").await?.status() == 405, "wrong method");
    ensure!(admin.get("/v1/commands/not-a-uuid").await?.status() == 404, "no uuid");
    Ok(())
}

async fn half_a_body(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let token = admin.token().unwrap_or_default();
    let address = client.base().trim_start_matches("http://").to_owned();
    for content_type in ["application/json", "application/x-ndjson"] {
        let body = good().to_string();
        let mut stream = tokio::net::TcpStream::connect(&address).await?;
        let head = format!(
            "POST /v1/commands HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
            body.len() * 2
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let (status, answer) = admin.send("application/json", good().to_string()).await?;
    ensure!(status == 202, "{status} {answer}");
    api.stop().await
}
