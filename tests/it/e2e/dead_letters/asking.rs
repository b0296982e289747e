//! Asking about dead letters, and waiting for what is told of them.

use anyhow::ensure;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_tests::{Client, Result, Site, letters, wait};
use uuid::Uuid;

pub(super) async fn get(client: &Client, path: &str) -> Result<Value> {
    let answer = client.get(&format!("/v1/admin/dead-letters{path}")).await?;
    let status = answer.status().as_u16();
    let value: Value = answer.json().await?;
    ensure!(status == 200, "{path}: {status} {value}");
    Ok(value)
}

pub(super) async fn post(client: &Client, path: &str, body: &Value) -> Result<(u16, Value)> {
    let answer = client.post(&format!("/v1/admin/dead-letters{path}")).json(body).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

/// The only letter.
pub(super) async fn only(client: &Client) -> Result<String> {
    let list = get(client, "").await?;
    ensure!(list["items"].as_array().map(Vec::len) == Some(1), "{list}");
    Ok(list["items"][0]["id"].as_str().unwrap_or_default().to_owned())
}

pub(super) async fn until_letters(site: &Site, state: &str, count: i64) -> Result {
    letters::until(site, state, count).await
}

pub(super) async fn title(site: &Site, task: Uuid) -> Result<Option<String>> {
    Ok(sqlx::query_scalar("SELECT title FROM tasks WHERE id = $1")
        .bind(task)
        .fetch_optional(&site.postgres)
        .await?)
}

/// The events of a type, as soon as there are so many.
pub(super) async fn events(site: &Site, kind: &str, count: u64) -> Result<Vec<Document>> {
    let collection = site.mongo.collection::<Document>("event_logs");
    wait::until("the audit trail has it", async || {
        Ok(collection.count_documents(doc! { "type": kind }).await? == count)
    })
    .await?;
    let all = site.events().await?;
    Ok(all.into_iter().filter(|event| event.get_str("type").unwrap_or_default() == kind).collect())
}
