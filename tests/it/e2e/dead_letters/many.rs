//! Many dead letters: lists, groups, replays at a rate, the command line.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_stores::rabbit::topology::COMMANDS;
use taskflow_tests::commands::{ADMIN, command, id, subject_in_slot};
use taskflow_tests::letters::{self, POISON, forbid_poison, poison, publish};
use taskflow_tests::{Client, Cluster, Result, Site, wait};
use uuid::Uuid;

use super::asking::{events, get, post, title, until_letters};
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("letters are listed by filters, page by page, and grouped by their errors", lists),
        with_site("a replay of many goes at its rate to its end", many),
        with_site("a replay of many stops by itself when its letters die again", stops),
        with_site("a replay of many is cancelled", cancelled),
        with_site("the command line shows and replays dead letters", command_line),
        with_site("letters are removed when their time is over", pruned),
    ]
}

async fn lists(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    for number in 0..25 {
        let mut invalid = command("task.create", id(), json!({ "title": "" }));
        invalid["source"] = json!(format!("/upstream/{}", number % 2));
        let subject: Uuid = serde_json::from_value(invalid["subject"].clone())?;
        letters::publish_to(&site, COMMANDS, letters::key(subject), invalid.to_string().into_bytes()).await?;
        let wrong = command("task.create", subject_in_slot(number), json!({ "title": "elsewhere" }));
        let key = taskflow_core::slot::routing_key(number + 1);
        letters::publish_to(&site, COMMANDS, key, wrong.to_string().into_bytes()).await?;
    }
    until_letters(&site, "kept", 50).await?;
    let (mut seen, mut path) = (HashSet::new(), "?pagesize=20".to_owned());
    let mut pages = 0;
    loop {
        let page = get(&admin, &path).await?;
        let items = page["items"].as_array().context("items")?;
        seen.extend(items.iter().map(|item| item["id"].to_string()));
        pages += 1;
        let Some(next) = page["next"].as_str() else { break };
        path = format!("?pagesize=20&cursor={next}");
    }
    ensure!(seen.len() == 50 && pages == 3, "{} letters on {pages} pages", seen.len());
    let count = async |query: &str| -> Result<usize> {
        Ok(get(&admin, &format!("?pagesize=100{query}")).await?["items"].as_array().map_or(0, Vec::len))
    };
    ensure!(count("&reason=wrong_slot").await? == 25, "by reason");
    ensure!(count("&type=task.create&source=/upstream/1").await? == 12, "by type and source");
    ensure!(count("&from=2199-01-01T00:00:00Z").await? == 0, "from");
    ensure!(count("&to=2199-01-01T00:00:00Z").await? == 50, "to");
    ensure!(count("&state=discarded").await? == 0, "by state");

    let groups = get(&admin, "/groups").await?;
    let found = groups["items"].as_array().context("groups")?;
    ensure!(found.len() == 2 && found.iter().all(|group| group["letters"] == 25), "{groups}");
    let fingerprint = found[0]["fingerprint"].as_str().context("a fingerprint")?;
    ensure!(count(&format!("&fingerprint={fingerprint}")).await? == 25, "by fingerprint");
    worker.stop().await
}

/// Letters of one group, dead of a constraint.
async fn poisoned(site: &Site, count: i64) -> Result<Vec<Uuid>> {
    forbid_poison(site).await?;
    let mut tasks = Vec::new();
    for _ in 0..count {
        let task = id();
        publish(site, &poison(task)).await?;
        tasks.push(task);
    }
    until_letters(site, "kept", count).await?;
    Ok(tasks)
}

async fn until_replay(client: &Client, id: &Value, state: &str) -> Result<Value> {
    let path = format!("/replays/{}", id.as_str().unwrap_or_default());
    let mut last = Value::Null;
    let reached = wait::until("the replay is in that state", async || {
        last = get(client, &path).await?;
        Ok(last["state"] == state)
    });
    reached.await.with_context(|| format!("it was never {state}, but {last}"))?;
    Ok(last)
}

async fn many(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (one, two) = (cluster.worker()?, cluster.worker()?);
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let tasks = poisoned(&site, 40).await?;
    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    for (filter, pointer) in
        [(json!({ "source": "\0" }), "/filter"), (json!({ "state": "replayed" }), "/filter/state")]
    {
        let (status, answer) = post(&admin, "/replays", &json!({ "filter": filter })).await?;
        ensure!(status == 400 && answer["errors"][0]["pointer"] == pointer, "{filter}: {status} {answer}");
    }
    let order = json!({ "filter": { "reason": "failing" }, "rate": 20, "why": "mended" });
    let started = std::time::Instant::now();
    let (status, replay) = post(&admin, "/replays", &order).await?;
    ensure!(status == 202 && replay["letters"] == 40 && replay["state"] == "running", "{status} {replay}");
    let done = until_replay(&admin, &replay["id"], "done").await?;
    ensure!(done["taken"] == 40 && done["lived"] == 40 && done["died"] == 0, "{done}");
    // Forty at twenty a second, the first at once.
    ensure!(started.elapsed().as_millis() >= 1_700, "too fast: {:?}", started.elapsed());
    for task in tasks {
        ensure!(title(&site, task).await?.is_some(), "{task} is missing");
    }
    ensure!(site.count("SELECT count(*) FROM receipts WHERE outcome = 'dead'").await? == 0, "dead receipts");
    events(&site, "system.dead_letter_replayed", 40).await?;
    one.stop().await?;
    two.stop().await
}

async fn stops(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    poisoned(&site, 80).await?;
    let (status, replay) =
        post(&admin, "/replays", &json!({ "filter": { "state": "kept" }, "rate": 10 })).await?;
    ensure!(status == 202, "{status} {replay}");
    let stopped = until_replay(&admin, &replay["id"], "stopped").await?;
    ensure!(stopped["stoppedsince"].as_str().is_some_and(|why| why.contains("died again")), "{stopped}");
    ensure!(stopped["taken"].as_i64().is_some_and(|taken| (3..60).contains(&taken)), "{stopped}");
    until_letters(&site, "kept", 80).await?;
    ensure!(site.count("SELECT count(*) FROM dead_letters").await? == 80, "letters have doubled");
    worker.stop().await
}

async fn cancelled(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    poisoned(&site, 5).await?;
    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let (_, replay) =
        post(&admin, "/replays", &json!({ "filter": { "state": "kept" }, "rate": 0.01 })).await?;
    until_letters(&site, "replayed", 1).await?;
    let path = format!("/v1/admin/dead-letters/replays/{}", replay["id"].as_str().unwrap_or_default());
    let answer = admin.delete(&path).await?;
    ensure!(answer.status() == 200, "{}", answer.text().await?);
    let cancelled = until_replay(&admin, &replay["id"], "cancelled").await?;
    ensure!(cancelled["taken"] == 1, "{cancelled}");
    until_letters(&site, "kept", 4).await?;
    worker.stop().await
}

async fn run(cluster: &Cluster<'_>, args: &[&str]) -> Result<(Option<i32>, String)> {
    let args: Vec<&str> = ["dead-letters"].iter().chain(args).copied().collect();
    let output = cluster.run(&args, &[]).await?;
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), text))
}

async fn command_line(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let tasks = poisoned(&site, 3).await?;
    let (code, list) = run(&cluster, &["list", "--reason", "failing", "--json"]).await?;
    let list: Value = serde_json::from_str(&list)?;
    ensure!(code == Some(0) && list["items"].as_array().map(Vec::len) == Some(3), "{code:?} {list}");
    let first = list["items"][0]["id"].as_str().context("an id")?;
    let (_, groups) = run(&cluster, &["groups"]).await?;
    ensure!(groups.contains("3 letters, 3 kept") && groups.contains("no_poison"), "{groups}");
    let (_, shown) = run(&cluster, &["show", first]).await?;
    ensure!(shown.contains("failing") && shown.contains(POISON), "{shown}");
    let (code, rehearsed) = run(&cluster, &["dry-run", first]).await?;
    ensure!(code == Some(0) && rehearsed.contains("would be dead (failing)"), "{rehearsed}");
    let (code, died) = run(&cluster, &["replay", first, "--watch"]).await?;
    ensure!(code == Some(1) && died.contains("died again"), "{code:?} {died}");

    // Its bytes, edited, from a file.
    let (_, body) = run(&cluster, &["show", first, "--body"]).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("command.json").display().to_string();
    std::fs::write(&file, body.replace(POISON, "harmless"))?;
    let author = ADMIN.to_string();
    let args = ["edit", first, "--file", &file, "--as", &author, "--why", "harmless now", "--watch"];
    let (code, edited) = run(&cluster, &args).await?;
    ensure!(code == Some(0) && edited.contains("applied"), "{code:?} {edited}");

    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let fingerprint = list["items"][0]["fingerprint"].as_str().context("a fingerprint")?;
    let args = ["replay", "--fingerprint", fingerprint, "--rate", "50", "--watch", "--json"];
    let (code, replay) = run(&cluster, &args).await?;
    let replay: Value = serde_json::from_str(&replay)?;
    ensure!(code == Some(0) && replay["items"][0]["lived"] == 2, "{code:?} {replay}");
    for task in tasks {
        ensure!(title(&site, task).await?.is_some(), "{task} is missing");
    }
    letters::publish_to(&site, COMMANDS, "10", b"noise".to_vec()).await?;
    until_letters(&site, "kept", 1).await?;
    let (_, list) = run(&cluster, &["list", "--state", "kept", "--json"]).await?;
    let list: Value = serde_json::from_str(&list)?;
    let noise = list["items"][0]["id"].as_str().context("an id")?;
    let (code, text) = run(&cluster, &["discard", noise]).await?;
    ensure!(code == Some(2) && text.contains("--why"), "{code:?} {text}");
    let (code, text) = run(&cluster, &["discard", noise, "--why", "noise"]).await?;
    ensure!(code == Some(0), "{code:?} {text}");
    let (_, text) = run(&cluster, &["show", noise, "--json"]).await?;
    ensure!(text.contains("noise (by ") && text.contains(" at the command line)"), "{text}");
    let (code, text) = run(&cluster, &["show", &id().to_string()]).await?;
    ensure!(code == Some(1) && text.contains("no dead letter"), "{code:?} {text}");
    let (code, text) = run(&cluster, &["replays"]).await?;
    ensure!(code == Some(0) && text.contains("2 taken, 2 lived, 0 died"), "{code:?} {text}");
    worker.stop().await
}

async fn pruned(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    poisoned(&site, 2).await?;
    worker.stop().await?;
    site.sql("UPDATE dead_letters SET last_died_at = now() - interval '40 days' WHERE id = (SELECT min(id::text)::uuid FROM dead_letters)")
        .await?;
    let scheduler = cluster.spawn("scheduler", &[("TASKFLOW_RETENTION__DEAD_LETTERS_DAYS", "30")])?;
    let known = "SELECT count(*) FROM job_schedules WHERE name = 'retention.dead_letters'";
    wait::until("the scheduler leads", async || Ok(site.count(known).await? == 1)).await?;
    let run = cluster.run(&["jobs", "run", "retention.dead_letters"], &[]).await?;
    ensure!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
    ensure!(
        site.count("SELECT count(*) FROM dead_letters").await? == 1,
        "other letters than the old one are gone"
    );
    scheduler.stop().await
}
