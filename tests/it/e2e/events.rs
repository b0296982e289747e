//! Reading the audit trail: each shape of a query, page by page, each by its index; and a task's recent changes.

use std::sync::Arc;

use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use libtest_mimic::Trial;
use mongodb::bson::{Bson, Document, doc};
use serde_json::{Value, json};
use taskflow_core::event::EventId;
use taskflow_stores::mongo::event_query::{self, Cursor, Query};
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_tests::commands::{ADMIN, USER, command, command_of, id, ndjson};
use taskflow_tests::{Client, Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("reads: the audit trail is read by entity, actor, type, correlation and time", trail),
        with_site("reads: pages of the audit trail go on where the last one ended", pages),
        with_site("reads: each shape of a query has its index", plans),
        with_site("reads: what a busy actor hardly ever did is looked for in bounded steps", scarce),
        with_site(
            "reads: a task's recent changes follow its receipts, also while MongoDB lacks them",
            changes,
        ),
    ]
}

async fn read(client: &Client, path: &str) -> Result<(String, Value)> {
    let response = client.get(path).await?;
    let status = response.status();
    let from =
        response.headers().get("x-cache").and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let body = response.text().await?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok((from, serde_json::from_str(&body)?))
}

fn ids(page: &Value) -> Vec<String> {
    let items = page["items"].as_array().into_iter().flatten();
    items.map(|event| event["id"].as_str().unwrap_or_default().to_owned()).collect()
}

async fn trail(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let (mine, other, correlation) = (id(), id(), id());
    let before = taskflow_stores::clock::now();
    // Nobody waits for the command that tells of a login.
    wait::until("the logins are told", async || Ok(site.events().await?.len() == 2)).await?;
    let mut create = command("task.create", mine, json!({ "title": "mine" }));
    create["correlationid"] = json!(correlation);
    let receipt = admin.apply(&create).await?;
    user.apply(&command_of(USER, "task.create", other, json!({ "title": "the user's" }))).await?;
    admin.apply(&command("task.update", other, json!({ "title": "changed", "description": null }))).await?;
    wait::until("five events are there", async || Ok(site.events().await?.len() == 5)).await?;
    let found = async |query: &str| -> Result<Vec<String>> {
        let (_, page) = read(&admin, &format!("/v1/events?{query}")).await?;
        let items = page["items"].as_array().context("items")?;
        Ok(items.iter().map(|event| event["type"].as_str().unwrap_or_default().to_owned()).collect())
    };
    ensure!(found("").await?.len() == 5, "{:?}", found("").await?);
    ensure!(found(&format!("entityid={other}")).await? == ["task.updated", "task.created"], "by entity");
    let by_user = found(&format!("actorid={USER}")).await?;
    ensure!(by_user == ["task.created", "user.login"], "{by_user:?}");
    ensure!(
        found(&format!("actorid={ADMIN}&type=task.updated")).await? == ["task.updated"],
        "by actor and type"
    );
    ensure!(found("type=task.created").await?.len() == 2, "by type");
    ensure!(found(&format!("correlationid={correlation}")).await? == ["task.created"], "by correlation");
    let at = before.to_rfc3339_opts(SecondsFormat::Millis, true);
    ensure!(
        found(&format!("from={at}")).await?.len()
            == 3 + found(&format!("from={at}&type=user.login")).await?.len(),
        "from"
    );
    ensure!(found(&format!("to={at}&type=task.created")).await?.is_empty(), "to");
    ensure!(found(&format!("entityid={}", id())).await?.is_empty(), "nothing");

    let (_, page) = read(&admin, &format!("/v1/events?correlationid={correlation}")).await?;
    let event = &page["items"][0];
    ensure!(
        event["id"] == receipt["events"][0] && event["commandId"] == receipt["id"],
        "{event} of {receipt}"
    );
    ensure!(event["payload"]["title"] == "mine" && event["metadata"]["ipAddress"] == "127.0.0.1", "{event}");
    ensure!(event["createdAt"].as_str().is_some_and(|at| at.parse::<DateTime<Utc>>().is_ok()), "{event}");

    ensure!(user.get("/v1/events").await?.status() == 403, "a user reads the audit trail");
    ensure!(client.get("/v1/events").await?.status() == 401, "the audit trail is open");
    for query in [
        "entityid=x",
        "from=yesterday",
        "cursor=1",
        "cursor=1-zz",
        "type=",
        "pagesize=101",
        "page=2",
        "colour=red",
    ] {
        let answer = admin.get(&format!("/v1/events?{query}")).await?;
        ensure!(answer.status() == 400, "{query}: {}", answer.status());
    }
    worker.stop().await
}

/// Events as the relay would have written them, with times of the test's choice.
async fn insert(site: &Site, events: impl Iterator<Item = (DateTime<Utc>, u16)>) -> Result {
    let documents = events.map(|(at, number)| {
        let (command, at_bson) = (id(), mongodb::bson::DateTime::from_millis(at.timestamp_millis()));
        let event = EventId::new(at, command, number);
        doc! {
            "_id": mongodb::bson::oid::ObjectId::from_bytes(event.0), "type": "task.created",
            "actorId": ADMIN.to_string(), "entityId": USER.to_string(), "entityType": "task", "version": 1,
            "payload": { "number": i32::from(number) }, "metadata": { "timestamp": at_bson },
            "correlationId": command.to_string(), "commandId": command.to_string(),
            "createdAt": at_bson, "expiresAt": mongodb::bson::DateTime::from_millis(4_000_000_000_000),
        }
    });
    site.mongo.collection::<Document>(COLLECTION).insert_many(documents).await?;
    Ok(())
}

async fn pages(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    // Many of one millisecond, as a batch makes them, so that a page ends among them.
    let long_ago = taskflow_stores::clock::now() - TimeDelta::hours(1);
    let times =
        (0..130u16).map(|number| (long_ago + TimeDelta::milliseconds(i64::from(number / 50)), number));
    insert(&site, times).await?;
    let query = format!("/v1/events?entityid={USER}&type=task.created&pagesize=40");
    let mut seen = Vec::new();
    let mut next = None;
    for page_number in 0..4 {
        let path = next.map_or_else(|| query.clone(), |next: String| format!("{query}&cursor={next}"));
        let (_, page) = read(&admin, &path).await?;
        ensure!(page["pagesize"] == 40 && ids(&page).len() == [40, 40, 40, 10][page_number], "{page}");
        seen.extend(ids(&page));
        next = page["next"].as_str().map(str::to_owned);
        ensure!(next.is_some() == (page_number < 3), "page {page_number}: {next:?}");
        if page_number == 1 {
            // What comes meanwhile moves nothing.
            insert(&site, std::iter::once((taskflow_stores::clock::now(), 1000))).await?;
        }
    }
    let mut distinct = seen.clone();
    distinct.sort();
    distinct.dedup();
    ensure!(distinct.len() == 130, "{} events of 130", distinct.len());
    // What is long past and waits for no store is kept; what is not, never.
    wait::until("nothing waits in the outbox", async || {
        Ok(site.count("SELECT count(*) FROM outbox").await? == 0)
    })
    .await?;
    site.redis_forget("api:response:*").await?;
    let to = (long_ago + TimeDelta::minutes(10)).to_rfc3339_opts(SecondsFormat::Millis, true);
    ensure!(read(&admin, &format!("{query}&to={to}")).await?.0 == "miss", "who has made it?");
    let (from, page) = read(&admin, &format!("{query}&to={to}")).await?;
    ensure!(from == "hit" && ids(&page).len() == 40, "{from} {page}");
    ensure!(read(&admin, &query).await?.0 == "miss" && read(&admin, &query).await?.0 == "miss", "kept");
    site.sql("INSERT INTO outbox (partition, number, created_at, payload) VALUES ('test', 1, now() - interval '2 hours', '')").await?;
    site.redis_forget("api:response:*").await?;
    for _ in 0..2 {
        ensure!(read(&admin, &format!("{query}&to={to}")).await?.0 == "miss", "kept though more may come");
    }
    site.sql("DELETE FROM outbox WHERE partition = 'test'").await?;
    worker.stop().await
}

/// What a query asks for: its shape.
fn shapes() -> Vec<Query> {
    let now = taskflow_stores::clock::now();
    let (from, to) = (Some(now - TimeDelta::hours(1)), Some(now + TimeDelta::hours(1)));
    let after = Some(Cursor { at_ms: now.timestamp_millis(), id: EventId([255; 12]) });
    let created = Some("task.created".to_owned());
    let narrow: [Query; 9] = [
        Query::default(),
        Query { entity: Some(USER), ..Query::default() },
        Query { actor: Some(ADMIN), ..Query::default() },
        Query { kind: Some("task.created".into()), ..Query::default() },
        Query { correlation: Some(Uuid::nil()), ..Query::default() },
        Query { actor: Some(ADMIN), kind: Some("task.created".into()), ..Query::default() },
        Query { entity: Some(USER), actor: Some(ADMIN), ..Query::default() },
        Query { entity: Some(USER), kind: created.clone(), ..Query::default() },
        Query { correlation: Some(Uuid::nil()), actor: Some(ADMIN), kind: created, ..Query::default() },
    ];
    let with_time = |query: &Query| {
        let query = query.clone();
        [
            query.clone(),
            Query { from, to, ..query.clone() },
            Query { after, ..query.clone() },
            Query { from, to, after, ..query },
        ]
    };
    narrow.iter().flat_map(with_time).collect()
}

/// The index that is meant to serve a query: of what narrows it most.
fn index_of(query: &Query) -> &'static str {
    match query {
        Query { entity: Some(_), .. } => "entityId_createdAt_id",
        Query { correlation: Some(_), .. } => "correlationId_createdAt_id",
        Query { actor: Some(_), .. } => "actorId_createdAt_id",
        Query { kind: Some(_), .. } => "type_createdAt_id",
        _ => "createdAt_id",
    }
}

/// The names of the stages of a plan, and of the indexes that it uses.
fn stages(plan: &Bson, names: &mut Vec<String>, indexes: &mut Vec<String>) {
    match plan {
        Bson::Document(document) => {
            for (name, value) in document {
                match (name.as_str(), value) {
                    ("stage", Bson::String(stage)) => names.push(stage.clone()),
                    ("indexName", Bson::String(index)) => indexes.push(index.clone()),
                    ("rejectedPlans", _) => {}
                    _ => stages(value, names, indexes),
                }
            }
        }
        Bson::Array(items) => items.iter().for_each(|item| stages(item, names, indexes)),
        _ => {}
    }
}

async fn plans(site: Arc<Site>) -> Result {
    let now = taskflow_stores::clock::now();
    insert(&site, (0..50).map(|number| (now, number))).await?;
    // The indexes that the queries name are there, and end in the order of the pages.
    let have = site.mongo.collection::<Document>(COLLECTION).list_index_names().await?;
    // Each page ends somewhere; some end at a border.
    let border = Some(Cursor { at_ms: now.timestamp_millis(), id: EventId([0; 12]) });
    let asked = shapes().into_iter().flat_map(|query| [(query.clone(), None), (query, border)]);
    for (query, border) in asked {
        let index = index_of(&query);
        ensure!(have.iter().any(|name| name == index), "{index} is not among {have:?}");
        let find = doc! {
            "find": COLLECTION, "filter": query.filter(border), "sort": event_query::order(), "limit": 21,
        };
        let explained = site.mongo.run_command(doc! { "explain": find, "verbosity": "queryPlanner" }).await?;
        let plan = explained.get("queryPlanner").cloned().unwrap_or(Bson::Null);
        let (mut names, mut indexes) = (Vec::new(), Vec::new());
        stages(&plan, &mut names, &mut indexes);
        let shape = format!("{query:?}\n{explained}");
        ensure!(!names.iter().any(|stage| stage == "COLLSCAN"), "all events are looked through: {shape}");
        // Of several conditions the server may choose; the border bounds each choice.
        let one = query.alone().is_none();
        let expected = |name: &String| name == index || !one && name.ends_with("createdAt_id");
        ensure!(indexes.iter().all(expected), "{indexes:?}: {shape}");
        // A server that tells its plans whole shows that the index gives the order too.
        if !indexes.is_empty() {
            ensure!(!names.iter().any(|stage| stage == "SORT"), "sorted in memory: {shape}");
        }
        event_query::page(&site.mongo, &query, 20).await?;
    }
    Ok(())
}

/// A page costs what it shows, or the looks that it may take: it never searches all that somebody ever did.
async fn scarce(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let begin = taskflow_stores::clock::now() - TimeDelta::days(2);
    let many = event_query::LOOKED_AT as u16 + 500;
    for part in (0..many).step_by(2_500) {
        // Some of them at one time, as batches make them.
        let at = |number: u16| begin + TimeDelta::seconds(i64::from(number / 40));
        insert(&site, (part..many.min(part + 2_500)).map(|number| (at(number), number))).await?;
    }
    // The oldest, one within the first page's looks, and the newest.
    let collection = site.mongo.collection::<Document>(COLLECTION);
    for number in [0, i32::from(many) - 9_000, i32::from(many) - 1] {
        let set = doc! { "$set": { "type": "task.deleted" } };
        collection.update_one(doc! { "payload.number": number }, set).await?;
    }
    let found = |page: &Value| -> Vec<i64> {
        let items = page["items"].as_array().into_iter().flatten();
        items.filter_map(|event| event["payload"]["number"].as_i64()).collect()
    };
    let query = format!("/v1/events?actorid={ADMIN}&type=task.deleted");
    let (_, page) = read(&admin, &query).await?;
    let many = i64::from(many);
    ensure!(found(&page) == [many - 1, many - 9_000], "{page}");
    let next = page["next"].as_str().context("the page says that this was all")?;
    let (_, page) = read(&admin, &format!("{query}&cursor={next}")).await?;
    ensure!(found(&page) == [0] && page["next"].is_null(), "{page}");
    // A page that is full goes on after its last event, and one that has looked at all there is has no next.
    let (_, page) = read(&admin, &format!("{query}&pagesize=1")).await?;
    let next = page["next"].as_str().context("no next page")?;
    ensure!(found(&page) == [many - 1], "{page}");
    let (_, page) = read(&admin, &format!("{query}&pagesize=1&cursor={next}")).await?;
    ensure!(found(&page) == [many - 9_000], "{page}");
    let to = (begin + TimeDelta::seconds(20)).to_rfc3339_opts(SecondsFormat::Millis, true);
    let (_, page) = read(&admin, &format!("{query}&to={to}")).await?;
    ensure!(found(&page) == [0] && page["next"].is_null(), "{page}");
    Ok(())
}

async fn changes(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let task = id();
    let path = format!("/v1/tasks/{task}/changes");
    let versions = |body: &Value| -> Vec<i64> {
        let items = body["items"].as_array().into_iter().flatten();
        items.filter_map(|change| change["version"].as_i64()).collect()
    };
    admin.apply(&command("task.create", task, json!({ "title": "v1", "assigneeid": USER }))).await?;
    for version in 2..=8 {
        admin.apply(&command("task.update", task, json!({ "title": format!("v{version}") }))).await?;
        // At once, whether the audit trail has it yet or not.
        let (_, body) = read(&user, &path).await?;
        let expected: Vec<i64> = (1..=version).rev().chain([1]).collect();
        ensure!(versions(&body) == expected, "{:?} after version {version}", versions(&body));
        let newest = &body["items"][0];
        ensure!(
            newest["data"]["title"] == format!("v{version}") && newest["actorid"] == json!(ADMIN),
            "{newest}"
        );
        ensure!(newest["metadata"].is_null(), "where from is told to all: {newest}");
    }
    let (from, _) = read(&user, &path).await?;
    ensure!(from == "hit", "it is not kept");
    ensure!(site.redis_command(&["LLEN"], &format!("task:recent:{task}")).await? == 9, "another length");
    // Many in one batch: one time, and still in their order.
    let many: Vec<Value> = (9..=60)
        .map(|version| command("task.update", task, json!({ "title": format!("v{version}") })))
        .collect();
    let (status, _) = admin.send("application/x-ndjson", ndjson(&many)).await?;
    ensure!(status == 202, "{status}");
    wait::until("they are applied", async || {
        Ok(read(&admin, &format!("/v1/tasks/{task}")).await?.1["version"] == 60)
    })
    .await?;
    let (_, body) = read(&admin, &path).await?;
    ensure!(versions(&body) == (41..=60).rev().collect::<Vec<i64>>(), "{:?}", versions(&body));
    admin.apply(&command("task.assign", task, json!({ "assigneeid": null }))).await?;
    ensure!(user.get(&path).await?.status() == 404, "whoever was assigned still reads it");
    // A task that no command has made has no changes.
    let seeded = id();
    site.sql(&format!("INSERT INTO tasks (id, title, creator_id) VALUES ('{seeded}', 'seeded', '{USER}')"))
        .await?;
    let (_, body) = read(&user, &format!("/v1/tasks/{seeded}/changes")).await?;
    ensure!(body == json!({ "items": [] }), "{body}");
    worker.stop().await
}
