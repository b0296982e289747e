//! Dead letters, as an operator meets them: seen, rehearsed, replayed, edited, discarded, over HTTP and from the command
//! line.

mod asking;
mod many;
mod odd;

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::json;
use taskflow_stores::rabbit::topology::{COMMANDS, DEAD_LETTERS};
use taskflow_tests::commands::{ADMIN, HASH, command, id, subject_in_slot};
use taskflow_tests::letters::{self, POISON, forbid_poison, poison, publish};
use taskflow_tests::{Result, Site, wait};

use self::asking::{events, get, only, post, title, until_letters};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = vec![
        with_site("a dead letter is shown whole and replayed once its cause is mended", one_letter),
        with_site("a dead letter that died of the broker's routing comes into its slot", unroutable),
        with_site("a dry run shows the decision and the rows, and nothing of it lasts", dry_run),
        with_site("an edited letter is checked, replayed and audited", edited),
        with_site("a letter of an id that is taken is edited to a new one", taken_id),
        with_site("a discarded letter says why in the audit trail", discarded),
        with_site("a letter that an older version could not read is replayed", older_version),
        with_site("only admins may see dead letters, and bad requests are named", refused),
    ];
    tests.extend(many::tests());
    tests.extend(odd::tests());
    tests
}

async fn one_letter(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    forbid_poison(&site).await?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let mut create = poison(task);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    create["traceparent"] = json!(format!("00-{trace}-b7ad6b7169203331-01"));
    publish(&site, &create).await?;
    until_letters(&site, "kept", 1).await?;
    wait::until("the queue is drained", async || Ok(site.link.depth(DEAD_LETTERS).await?.ready == 0)).await?;

    let letter = get(&admin, &format!("/{}", only(&admin).await?)).await?;
    let body = create.to_string();
    ensure!(letter["bytes"] == body.len() && letter["body"] == letters::base64(body.as_bytes()), "{letter}");
    ensure!(letter["command"] == create && letter["commandid"] == create["id"], "{letter}");
    ensure!(letter["reason"] == "failing" && letter["traceid"] == trace, "{letter}");
    ensure!(letter["pattern"].as_str().is_some_and(|text| text.contains("no_poison")), "{letter}");
    ensure!(letter["attempts"][0]["number"] == 1 && letter["attempts"][0]["reason"] == "failing", "{letter}");
    ensure!(letter["headers"]["content-type"] == "application/cloudevents+json", "{letter}");

    // It dies again while nothing is mended, and is still one letter.
    let path = format!("/{}", letter["id"].as_str().unwrap_or_default());
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({ "why": "once more" })).await?;
    ensure!(status == 202 && answer["attempt"] == 2, "{status} {answer}");
    wait::until("it died again", async || {
        let letter = get(&admin, &path).await?;
        Ok(letter["state"] == "kept" && letter["attempts"].as_array().map(Vec::len) == Some(2))
    })
    .await?;
    ensure!(site.count("SELECT count(*) FROM dead_letters").await? == 1, "another letter");

    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 202 && answer["attempt"] == 3, "{status} {answer}");
    wait::until("it is applied", async || Ok(title(&site, task).await?.as_deref() == Some(POISON))).await?;
    until_letters(&site, "replayed", 1).await?;
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 409 && answer["code"] == "not_kept", "{status} {answer}");
    let told = events(&site, "system.dead_letter_replayed", 2).await?;
    for event in told {
        ensure!(
            event.get_str("entityType")? == "system" && event.get_str("actorId")? == ADMIN.to_string(),
            "{event}"
        );
        ensure!(event.get_document("payload")?.get_str("commandId")? == create["id"], "{event}");
    }
    worker.stop().await
}

async fn unroutable(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = subject_in_slot(0x42);
    let create = command("task.create", task, json!({ "title": "lost on the way" }));
    letters::publish_to(&site, COMMANDS, "no slot", create.to_string().into_bytes()).await?;
    until_letters(&site, "kept", 1).await?;
    let path = format!("/{}", only(&admin).await?);
    let letter = get(&admin, &path).await?;
    ensure!(letter["reason"] == "unroutable" && letter["routingkey"] == "no slot", "{letter}");
    ensure!(letter["exchange"] == COMMANDS, "{letter}");
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 202, "{status} {answer}");
    wait::until("it is applied", async || Ok(title(&site, task).await?.is_some())).await?;
    // What names no subject has no slot of its own.
    letters::publish_to(&site, COMMANDS, "nor this", b"\xff no command".to_vec()).await?;
    until_letters(&site, "kept", 1).await?;
    let list = get(&admin, "?state=kept").await?;
    let path = format!("/{}", list["items"][0]["id"].as_str().unwrap_or_default());
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 409 && answer["code"] == "no_route", "{status} {answer}");
    worker.stop().await
}

async fn dry_run(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    forbid_poison(&site).await?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    admin.apply(&command("task.create", task, json!({ "title": "before" }))).await?;
    publish(&site, &command("task.update", task, json!({ "title": POISON, "expectedversion": 1 }))).await?;
    until_letters(&site, "kept", 1).await?;
    let path = format!("/{}/dry-run", only(&admin).await?);
    let (status, played) = post(&admin, &path, &json!({})).await?;
    ensure!(status == 200 && played["outcome"] == "dead" && played["code"] == "failing", "{status} {played}");
    ensure!(played["detail"].as_str().is_some_and(|detail| detail.contains("no_poison")), "{played}");

    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let receipts = site.count("SELECT count(*) FROM receipts").await?;
    let (status, played) = post(&admin, &path, &json!({})).await?;
    ensure!(status == 200 && played["outcome"] == "applied" && played["version"] == 2, "{status} {played}");
    let row = &played["rows"][0];
    ensure!(row["table"] == "tasks" && row["id"] == json!(task), "{played}");
    ensure!(row["before"]["title"] == "before" && row["after"]["title"] == POISON, "{played}");
    ensure!(played["events"][0]["type"] == "task.updated", "{played}");
    ensure!(title(&site, task).await?.as_deref() == Some("before"), "the rehearsal has lasted");
    ensure!(site.count("SELECT count(*) FROM receipts").await? == receipts, "the receipts have changed");
    ensure!(
        site.count("SELECT count(*) FROM receipts WHERE outcome = 'dead'").await? == 1,
        "its receipt is gone"
    );

    // An edit can be rehearsed before it is made.
    let other = command("task.update", task, json!({ "title": "edited", "expectedversion": 7 }));
    let (status, played) = post(&admin, &path, &json!({ "command": other })).await?;
    ensure!(status == 200 && played["code"] == "version_conflict", "{status} {played}");
    worker.stop().await
}

async fn edited(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let user = id();
    let data = json!({ "email": "no address", "passwordhash": HASH, "role": "user" });
    let broken = command("user.register", user, data);
    letters::publish_to(&site, COMMANDS, letters::key(user), broken.to_string().into_bytes()).await?;
    until_letters(&site, "kept", 1).await?;
    let path = format!("/{}/edit", only(&admin).await?);
    let mut mended = broken.clone();
    let (status, answer) = post(&admin, &path, &json!({ "command": mended })).await?;
    ensure!(status == 400 && answer["errors"][0]["pointer"] == "/command/data/email", "{status} {answer}");
    mended["data"]["email"] = json!("ada@taskflow.test");
    let mut foreign = mended.clone();
    foreign["id"] = json!(id());
    let (status, answer) = post(&admin, &path, &json!({ "command": foreign })).await?;
    ensure!(status == 400 && answer["errors"][0]["pointer"] == "/command/id", "{status} {answer}");

    let (status, answer) =
        post(&admin, &path, &json!({ "command": mended, "why": "a typing error" })).await?;
    ensure!(status == 202, "{status} {answer}");
    let users = "SELECT count(*) FROM users WHERE email = 'ada@taskflow.test'";
    wait::until("the user is there", async || Ok(site.count(users).await? == 1)).await?;
    until_letters(&site, "replayed", 1).await?;
    let letter = get(&admin, &format!("/{}", only(&admin).await?)).await?;
    ensure!(
        letter["body"] == letters::base64(broken.to_string().as_bytes()),
        "the bytes have changed: {letter}"
    );
    ensure!(letter["editedcommand"]["data"]["email"] == "ada@taskflow.test", "{letter}");

    let told = events(&site, "system.dead_letter_edited", 1).await?;
    let payload = told[0].get_document("payload")?;
    let data = |version: &str| payload.get_document(version)?.get_document("command")?.get_document("data");
    ensure!(payload.get_str("why")? == "a typing error", "{payload}");
    ensure!(data("previous")?.get_str("email")? == "no address", "{payload}");
    ensure!(data("edited")?.get_str("email")? == "ada@taskflow.test", "{payload}");
    ensure!(!payload.to_string().contains(HASH), "a password hash is in the audit trail");
    ensure!(told[0].get_str("actorId")? == ADMIN.to_string(), "{}", told[0]);
    worker.stop().await
}

async fn taken_id(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let first = command("task.create", id(), json!({ "title": "first" }));
    admin.apply(&first).await?;
    let mut other = first.clone();
    let task = id();
    other["subject"] = json!(task);
    publish(&site, &other).await?;
    until_letters(&site, "kept", 1).await?;
    let path = format!("/{}", only(&admin).await?);
    let (status, answer) = post(&admin, &format!("{path}/replay"), &json!({})).await?;
    ensure!(status == 409 && answer["code"] == "id_taken", "{status} {answer}");
    let (_, played) = post(&admin, &format!("{path}/dry-run"), &json!({})).await?;
    ensure!(played["outcome"] == "mismatch", "{played}");
    other["id"] = json!(id());
    let (status, answer) = post(&admin, &format!("{path}/edit"), &json!({ "command": other })).await?;
    ensure!(status == 202, "{status} {answer}");
    wait::until("it is applied", async || Ok(title(&site, task).await?.is_some())).await?;
    // The one that was first has its receipt still.
    let receipt = client.admin().await?.apply(&first).await?;
    ensure!(receipt["status"] == "applied", "{receipt}");
    worker.stop().await
}

async fn discarded(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    letters::publish_to(&site, COMMANDS, "10", b"\xff\xfe no text".to_vec()).await?;
    until_letters(&site, "kept", 1).await?;
    let path = format!("/{}", only(&admin).await?);
    let (status, answer) = post(&admin, &format!("{path}/discard"), &json!({})).await?;
    ensure!(status == 400 && answer["errors"][0]["pointer"] == "/why", "{status} {answer}");
    let (status, answer) = post(&admin, &format!("{path}/discard"), &json!({ "why": "noise" })).await?;
    ensure!(status == 200 && answer["state"] == "discarded", "{status} {answer}");
    let told = events(&site, "system.dead_letter_discarded", 1).await?;
    let payload = told[0].get_document("payload")?;
    let bytes = payload.get_document("discarded")?.get_str("base64")?;
    ensure!(payload.get_str("why")? == "noise" && bytes == letters::base64(b"\xff\xfe no text"), "{payload}");
    // The same bytes, sent once more after that, are seen again.
    letters::publish_to(&site, COMMANDS, "10", b"\xff\xfe no text".to_vec()).await?;
    until_letters(&site, "kept", 1).await?;
    let letter = get(&admin, &path).await?;
    ensure!(letter["attempts"].as_array().map(Vec::len) == Some(2), "{letter}");
    worker.stop().await
}

async fn refused(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    ensure!(client.get("/v1/admin/dead-letters").await?.status() == 401, "without a token");
    let user = client.user().await?;
    for path in ["", "/groups", "/replays", &format!("/{}", id())] {
        let answer = user.get(&format!("/v1/admin/dead-letters{path}")).await?;
        ensure!(answer.status() == 403, "{path}: {}", answer.status());
    }
    let (status, answer) = post(&user, &format!("/{}/replay", id()), &json!({})).await?;
    ensure!(status == 403 && answer["code"] == "admin_only", "{status} {answer}");
    let admin = client.admin().await?;
    for path in ["?colour=red", "?state=lost", "?from=yesterday", "?pagesize=0", "?cursor=x"] {
        let answer = admin.get(&format!("/v1/admin/dead-letters{path}")).await?;
        ensure!(answer.status() == 400, "{path}: {}", answer.status());
    }
    for deed in ["replay", "dry-run"] {
        let (status, answer) = post(&admin, &format!("/{}/{deed}", id()), &json!({})).await?;
        ensure!(status == 404, "{deed}: {status} {answer}");
    }
    let wrong = [
        json!({}),
        json!({ "filter": { "state": "kept" }, "rate": 0 }),
        json!({ "filter": { "state": "kept" }, "rate": 1e-13 }),
        json!({ "filter": { "state": "replayed" } }),
    ];
    for order in wrong {
        let (status, answer) = post(&admin, "/replays", &order).await?;
        ensure!(status == 400 && answer["code"] == "validation_failed", "{order}: {status} {answer}");
    }
    Ok(())
}

/// The receipt of a type that was unknown then bears the fingerprint of the bytes, not of the command.
async fn older_version(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    forbid_poison(&site).await?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let create = poison(task);
    publish(&site, &create).await?;
    until_letters(&site, "kept", 1).await?;
    let digest = taskflow_core::command::digest(create.to_string().as_bytes());
    let then = "UPDATE receipts SET code = 'unknown_type', fingerprint = $1 WHERE outcome = 'dead'";
    sqlx::query(then).bind(digest.as_slice()).execute(&site.postgres).await?;
    site.sql("ALTER TABLE tasks DROP CONSTRAINT no_poison").await?;
    let path = format!("/{}/replay", only(&admin).await?);
    let (status, answer) = post(&admin, &path, &json!({})).await?;
    ensure!(status == 202, "{status} {answer}");
    wait::until("it is applied", async || Ok(title(&site, task).await?.is_some())).await?;
    worker.stop().await
}
