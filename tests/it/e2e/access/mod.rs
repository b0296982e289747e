//! Who may do what, and how much: authority, keys, users' rights, limits, and what a socket may do.

mod authority;
mod flood;
mod keys;
mod limits;
mod logins;
mod outage;
mod sensitive;
mod sockets;
mod users;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::Document;
use reqwest::Response;
use serde_json::{Value, json};
use taskflow_tests::{Client, Result};

pub(crate) fn tests() -> Vec<Trial> {
    [
        authority::tests(),
        flood::tests(),
        keys::tests(),
        limits::tests(),
        logins::tests(),
        outage::tests(),
        sensitive::tests(),
        sockets::tests(),
        users::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A new API key and a client that sends it.
async fn new_key(admin: &Client, scopes: &[&str], prefix: Option<&str>) -> Result<(String, Client)> {
    let wanted = json!({ "name": "a test's", "scopes": scopes, "sourceprefix": prefix });
    let answer = admin.post("/v1/admin/api-keys").json(&wanted).send().await?;
    ensure!(answer.status() == 201, "{}", answer.text().await?);
    let answer: Value = answer.json().await?;
    let key = answer["key"].as_str().context("no key")?;
    Ok((answer["id"].as_str().context("no id")?.to_owned(), admin.with(key)))
}

/// An answer's status and JSON.
async fn told(answer: Response) -> Result<(u16, Value)> {
    let status = answer.status().as_u16();
    let text = answer.text().await?;
    Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

/// Whether a field of an event is this text.
fn is(event: &Document, field: &str, text: &str) -> bool {
    event.get_str(field).is_ok_and(|found| found == text)
}
