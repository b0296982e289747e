//! Every command type and every rejection, over HTTP, with what all four stores say afterwards.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN, HASH, USER, command, command_of, id};
use taskflow_tests::{Client, Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a task's life shows in all stores", task_life),
        with_site("users register, change and log in", users),
        with_site("every rejection has its code", rejections),
        with_site("reads of a receipt belong to who sent the command", receipts_are_private),
    ]
}

async fn apply(client: &Client, command: Value, status: &str, code: Option<&str>) -> Result<Value> {
    let receipt = client.apply(&command).await?;
    ensure!(receipt["status"] == status && receipt["code"].as_str() == code, "{command}\ngave {receipt}");
    Ok(receipt)
}

async fn task_life(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let ok = async |kind: &str, data: Value| apply(&admin, command(kind, task, data), "applied", None).await;

    let created = ok(
        "task.create",
        json!({ "title": "Tidy up", "assigneeid": USER, "duedate": "2099-01-01T00:00:00Z" }),
    )
    .await?;
    ensure!(created["version"] == 1 && created["events"].as_array().map(Vec::len) == Some(2), "{created}");
    ok("task.update", json!({ "title": "Tidy up well", "description": "all of it", "priority": "urgent", "expectedversion": 1 })).await?;
    ok("task.change_status", json!({ "status": "done" })).await?;
    let row: (String, i32, bool) =
        sqlx::query_as("SELECT status::text, version, completed_at IS NOT NULL FROM tasks WHERE id = $1")
            .bind(task)
            .fetch_one(&site.postgres)
            .await?;
    ensure!(row == ("done".into(), 3, true), "{row:?}");
    // Nothing changes, nothing is told.
    let again = ok("task.change_status", json!({ "status": "done" })).await?;
    ensure!(again["version"] == 3 && again["events"] == json!([]), "{again}");
    ok("task.change_status", json!({ "status": "review" })).await?;
    ok("task.assign", json!({ "assigneeid": null })).await?;
    let deleted = ok("task.delete", json!({})).await?;
    ensure!(deleted["version"] == 6, "{deleted}");

    // The other stores follow.
    let receipt_path = format!("/v1/commands/{}", deleted["id"].as_str().unwrap_or_default());
    wait::until("all stores have followed", async || {
        let receipt: Value = admin.get(&receipt_path).await?.json().await?;
        Ok(receipt["auditedat"].is_string()
            && receipt["cachedat"].is_string()
            && receipt["publishedat"].is_string())
    })
    .await?;
    let events: Vec<_> = site
        .events()
        .await?
        .into_iter()
        .filter(|e| e.get_str("entityId").unwrap_or_default() == task.to_string())
        .collect();
    let kinds: Vec<&str> = events.iter().filter_map(|e| e.get_str("type").ok()).collect();
    let expected = [
        "task.created",
        "task.assigned",
        "task.updated",
        "task.status_changed",
        "task.status_changed",
        "task.assigned",
        "task.deleted",
    ];
    ensure!(kinds == expected, "{kinds:?}");
    let update = events[2].get_document("payload")?;
    ensure!(update.get_str("title").unwrap_or_default() == "Tidy up well", "{update}");
    ensure!(update.get_document("previous")?.get_str("title").unwrap_or_default() == "Tidy up", "{update}");
    ensure!(
        events[0].get_document("metadata")?.get_str("ipAddress").unwrap_or_default() == "127.0.0.1",
        "{}",
        events[0]
    );
    ensure!(events.iter().all(|e| e.get_datetime("expiresAt").is_ok()), "no expiry");
    let cached = site.cached(&format!("task:{task}")).await?.unwrap_or_default();
    ensure!(cached.contains("\"deleted\":true"), "the cache holds {cached:?}");
    let metrics = client.get("/metrics").await?.text().await?;
    ensure!(metrics.contains("taskflow_commands_accepted_total{type=\"task.create\"} 1"), "{metrics}");
    api.stop().await?;
    worker.stop().await
}

async fn users(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let ada = id();
    let register =
        json!({ "email": "Ada@Example.org", "passwordhash": HASH, "profile": { "firstName": "Ada" } });
    apply(&admin, command_of(ada, "user.register", ada, register), "applied", None).await?;
    apply(
        &admin,
        command(
            "user.update_profile",
            ada,
            json!({ "profile": { "firstName": null, "lastName": "Lovelace" } }),
        ),
        "applied",
        None,
    )
    .await?;
    apply(
        &admin,
        command_of(ada, "user.record_login", ada, json!({ "sessionid": "digest" })),
        "applied",
        None,
    )
    .await?;
    apply(
        &admin,
        command_of(ada, "user.record_logout", ada, json!({ "sessionid": "digest" })),
        "applied",
        None,
    )
    .await?;
    let (email, profile): (String, Value) = sqlx::query_as("SELECT email, profile FROM users WHERE id = $1")
        .bind(ada)
        .fetch_one(&site.postgres)
        .await?;
    ensure!(email == "Ada@Example.org" && profile == json!({ "lastName": "Lovelace" }), "{email} {profile}");
    wait::until("the events are there", async || Ok(events_of(&site, ada).await?.len() == 4)).await?;
    let events = events_of(&site, ada).await?;
    ensure!(!format!("{events:?}").contains("$2b$"), "a password hash is in the audit trail");
    let cached = site.cached(&format!("user:profile:{ada}")).await?.unwrap_or_default();
    ensure!(cached.contains("Lovelace") && !cached.contains("$2b$"), "{cached}");
    worker.stop().await
}

async fn events_of(site: &Site, entity: Uuid) -> Result<Vec<mongodb::bson::Document>> {
    let mut events = site.events().await?;
    events.retain(|event| event.get_str("entityId").unwrap_or_default() == entity.to_string());
    Ok(events)
}

async fn rejections(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let (task, ada, eve) = (id(), id(), id());
    apply(&admin, command("task.create", task, json!({ "title": "A task" })), "applied", None).await?;
    let register = |email: &str, role: &str| json!({ "email": email, "passwordhash": HASH, "role": role });
    apply(
        &admin,
        command_of(ada, "user.register", ada, register("ada@example.org", "user")),
        "applied",
        None,
    )
    .await?;
    let rejected = [
        ("not_found", command("task.update", id(), json!({ "title": "x" }))),
        ("not_found", command("user.update_profile", id(), json!({ "profile": {} }))),
        ("already_exists", command("task.create", task, json!({ "title": "x" }))),
        ("already_exists", command("user.register", ada, register("other@example.org", "user"))),
        ("email_taken", command_of(eve, "user.register", eve, register("ADA@example.org", "user"))),
        ("unknown_user", command_of(eve, "task.create", id(), json!({ "title": "x" }))),
        ("unknown_user", command("task.assign", task, json!({ "assigneeid": eve }))),
        ("forbidden", command_of(ada, "task.update", task, json!({ "title": "x" }))),
        ("forbidden", command_of(ada, "task.delete", task, json!({}))),
        ("forbidden", command_of(ada, "user.register", eve, register("eve@example.org", "admin"))),
        ("forbidden", command_of(ada, "user.update_profile", USER, json!({ "profile": { "a": 1 } }))),
        ("version_conflict", command("task.update", task, json!({ "title": "x", "expectedversion": 7 }))),
        ("due_date_in_past", command("task.update", task, json!({ "duedate": "2001-01-01T00:00:00Z" }))),
        (
            "due_date_in_past",
            command("task.create", id(), json!({ "title": "x", "duedate": "2001-01-01T00:00:00Z" })),
        ),
    ];
    for (code, command) in rejected {
        apply(&admin, command, "rejected", Some(code)).await?;
    }
    let profile = |size: usize| json!({ "profile": { id().to_string(): "x".repeat(size) } });
    apply(&admin, command("user.update_profile", ada, profile(9_000)), "applied", None).await?;
    apply(&admin, command("user.update_profile", ada, profile(9_000)), "rejected", Some("validation_failed"))
        .await?;
    let mut late = command("task.update", task, json!({ "title": "too late" }));
    late["expirytime"] = json!("2020-01-01T00:00:00Z");
    apply(&admin, late, "expired", None).await?;
    worker.stop().await
}

async fn receipts_are_private(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let of_admin = admin.apply(&command("task.create", id(), json!({ "title": "x" }))).await?;
    let path = format!("/v1/commands/{}", of_admin["id"].as_str().unwrap_or_default());
    ensure!(admin.get(&path).await?.status() == 200, "the admin can't read its own receipt");
    ensure!(user.get(&path).await?.status() == 404, "a user reads the admin's receipt");
    let of_user = user.apply(&command_of(USER, "task.create", id(), json!({ "title": "x" }))).await?;
    let path = format!("/v1/commands/{}", of_user["id"].as_str().unwrap_or_default());
    ensure!(admin.get(&path).await?.status() == 200, "the admin can't read a user's receipt");
    let (status, answer) = user
        .send("application/json", command_of(ADMIN, "task.create", id(), json!({ "title": "x" })).to_string())
        .await?;
    ensure!(status == 403 && answer["code"] == "actor_not_allowed", "{status} {answer}");
    worker.stop().await
}
