//! A hold on more events than one step reads, many of them made in the same moment.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};
use taskflow_core::retention::held_until;
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_tests::commands::ADMIN;
use taskflow_tests::{Cluster, Result, Site};

use super::{DAY_MS, by_hand, created, made, until_led};
use crate::{cluster, with_site};

/// Beside the first; a step reads 500.
const COPIES: usize = 1_300;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site("a hold on more events than one step reads marks them all, and lifts them all", many)]
}

async fn many(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand(""))?;
    let (task, create) = created(ADMIN);
    made(&site, &cluster, &[create]).await?;
    let events = site.mongo.collection::<Document>(COLLECTION);
    let first = events.find_one(doc! { "entityId": task.to_string() }).await?.context("no event")?;
    let made_at = first.get_datetime("createdAt")?.timestamp_millis();
    let copy = |n: usize| {
        // Three moments for all.
        let at = made_at - n as i64 % 3 * DAY_MS;
        let mut copy = first.clone();
        copy.insert("_id", ObjectId::new());
        copy.insert("createdAt", DateTime::from_millis(at));
        copy.insert("expiresAt", DateTime::from_millis(at + 180 * DAY_MS));
        copy
    };
    events.insert_many((0..COPIES).map(copy)).await?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;
    let all = COPIES as u64 + 1;
    let id = put(&cluster, &task.to_string()).await?;
    let held = doc! { "expiresAt": { "$gte": DateTime::from_millis(held_until().timestamp_millis()) } };
    let marked = events.count_documents(held).await?;
    ensure!(marked == all, "{marked} events of {all} are marked");
    let released = cluster.run(&["holds", "release", &id], &[]).await?;
    ensure!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    let mut own = 0;
    for event in site.events().await? {
        let [from, to] = ["createdAt", "expiresAt"].map(|name| event.get_datetime(name));
        own += u64::from(to?.timestamp_millis() - from?.timestamp_millis() == 180 * DAY_MS);
    }
    ensure!(own >= all, "{own} events of {all} have their own times again");
    scheduler.stop().await
}

async fn put(cluster: &Cluster<'_>, entity: &str) -> Result<String> {
    let args = ["holds", "put", "--entity", entity, "--why", "a case", "--as", "ada", "--json"];
    let output = cluster.run(&args, &[]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let hold: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(hold["id"].as_str().context("no id")?.to_owned())
}
