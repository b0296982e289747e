//! API keys: made, used, listed, revoked, by HTTP and at the command line.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::api_key;
use taskflow_tests::commands::{ADMIN, HASH, USER, id};
use taskflow_tests::socket::{Next, Socket};
use taskflow_tests::{Client, Result, Site, World, wait};

use super::{is, new_key, told};
use crate::{cluster, with_site, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("access: an API key sends as any user, from its sources alone", sends),
        with_site("access: API keys are made, listed and revoked at the command line", at_the_command_line),
        with_site("access: a revoked key is closed within a second, everywhere", revoked),
        with_site("access: a stream ends with its API key", streams_end),
        with_world("access: keys in use need no Postgres, and no limits no Redis", without_stores),
    ]
}

fn create(source: &str, actor: uuid::Uuid) -> Value {
    json!({
        "specversion": "1.0", "id": id(), "source": source, "type": "task.create", "subject": id(),
        "actorid": actor, "data": { "title": "from upstream" },
    })
}

async fn sent(client: &Client, command: &Value) -> Result<(u16, Value)> {
    client.send("application/json", command.to_string()).await
}

async fn sends(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let (key_id, key) = new_key(&admin, &["commands:write"], Some("/crm/eu")).await?;
    for actor in [USER, ADMIN] {
        let receipt = key.apply(&create("/crm/eu/sales", actor)).await?;
        ensure!(receipt["status"] == "applied", "{receipt}");
    }
    for source in ["/crm/europe", "/crm", "/test", "/crm/eu/../us"] {
        let (status, answer) = sent(&key, &create(source, USER)).await?;
        ensure!(status == 403 && answer["code"] == "actor_not_allowed", "{source}: {status} {answer}");
    }
    // Whoever may write must not be able to make itself an admin.
    let register = json!({
        "specversion": "1.0", "id": id(), "source": "/crm/eu", "type": "user.register", "subject": id(),
        "actorid": ADMIN, "data": { "email": "boss@crm.example", "passwordhash": HASH, "role": "admin" },
    });
    let (status, answer) = sent(&key, &register).await?;
    ensure!(status == 403 && answer["code"] == "actor_not_allowed", "{status} {answer}");
    // The audit trail names the key.
    wait::until("the key is in the audit trail", async || {
        let named = format!("api-key:{key_id}");
        let has = |event: &mongodb::bson::Document| {
            event.get_document("metadata").is_ok_and(|m| is(m, "sessionId", &named))
        };
        Ok(site.events().await?.iter().any(has))
    })
    .await?;
    for (body, pointer) in [
        (json!({ "name": "x", "scopes": ["commands:write"] }), "/sourceprefix"),
        (json!({ "name": "x", "scopes": [] }), "/scopes"),
        (json!({ "name": "x", "scopes": ["everything"] }), "/scopes"),
        (json!({ "name": "", "scopes": ["read"] }), "/name"),
        (json!({ "name": "x", "scopes": ["read"], "expiresat": "2020-01-01T00:00:00Z" }), "/expiresat"),
    ] {
        let (status, answer) = told(admin.post("/v1/admin/api-keys").json(&body).send().await?).await?;
        ensure!(status == 400 && answer["errors"][0]["pointer"] == pointer, "{body}: {status} {answer}");
    }
    worker.stop().await
}

async fn at_the_command_line(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api().await?;
    let run = async |args: &[&str]| -> Result<String> {
        let done = cluster.run(args, &[]).await?;
        ensure!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
        Ok(String::from_utf8(done.stdout)?.trim().to_owned())
    };
    let key =
        run(&["api-keys", "create", "--name", "crm", "--scope", "read", "--expires-in-days", "30"]).await?;
    let key_id = api_key::id_of(&key).context("its checksum is wrong")?;
    ensure!(
        client.with(&key).get(&format!("/v1/users/{USER}/permissions")).await?.status() == 200,
        "not good"
    );
    let mut broken = key.clone().into_bytes();
    broken[50] = if broken[50] == b'x' { b'y' } else { b'x' };
    let broken = String::from_utf8(broken)?;
    let (status, answer) = told(client.with(&broken).get("/v1/commands/x").await?).await?;
    ensure!(status == 401 && answer.to_string().contains("no complete API key"), "{status} {answer}");
    // Only the digest is kept.
    let kept = format!("SELECT count(*) FROM api_keys WHERE api_keys::text LIKE '%{}%'", &key[40..]);
    ensure!(site.count(&kept).await? == 0, "the key itself is in the table");
    // The minute of its use is written down at the end at the latest.
    api.stop().await?;
    let list = run(&["api-keys", "list"]).await?;
    ensure!(
        list.contains(&key_id.to_string()) && list.contains("used 20") && !list.contains(&key[40..]),
        "{list}"
    );
    let revoked = run(&["api-keys", "revoke", &key_id.to_string()]).await?;
    ensure!(revoked.contains("is revoked"), "{revoked}");
    ensure!(run(&["api-keys", "list"]).await?.contains("revoked 20"), "not marked");
    let none = cluster.run(&["api-keys", "revoke", &id().to_string()], &[]).await?;
    ensure!(none.status.code() == Some(1), "{none:?}");
    let wrong = cluster.run(&["api-keys", "create", "--name", "x", "--scope", "commands:write"], &[]).await?;
    ensure!(wrong.status.code() == Some(2), "{wrong:?}");
    let (_api, client) = cluster.api().await?;
    ensure!(client.with(&key).get("/v1/commands/x").await?.status() == 401, "still good");
    Ok(())
}

async fn revoked(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_here, client) = cluster.api().await?;
    let (_there, elsewhere) = cluster.api().await?;
    let admin = client.admin().await?;
    let (key_id, key) = new_key(&admin, &["read"], None).await?;
    let there = elsewhere.with(&key.token().unwrap_or_default());
    let path = format!("/v1/users/{USER}/permissions");
    ensure!(key.get(&path).await?.status() == 200 && there.get(&path).await?.status() == 200, "not good");
    // Expired keys close by themselves.
    let (expiring, until_then) = new_key(&admin, &["read"], None).await?;
    ensure!(until_then.get(&path).await?.status() == 200, "not good");
    site.sql(&format!("UPDATE api_keys SET expires_at = now() WHERE id = '{expiring}'")).await?;
    ensure!(admin.delete(&format!("/v1/admin/api-keys/{key_id}")).await?.status() == 204, "not revoked");
    ensure!(key.get(&path).await?.status() == 401, "it is good where it was revoked");
    let since = std::time::Instant::now();
    for other in [&there, &until_then] {
        wait::until("it is closed elsewhere", async || Ok(other.get(&path).await?.status() == 401)).await?;
    }
    // A second, and some time for a busy machine.
    ensure!(since.elapsed().as_secs() < 10, "it took {:?}", since.elapsed());
    let (_, list) = told(admin.get("/v1/admin/api-keys?pagesize=1").await?).await?;
    ensure!(list["items"].as_array().map(Vec::len) == Some(1) && list["next"].is_string(), "{list}");
    let next = format!("/v1/admin/api-keys?cursor={}", list["next"].as_str().unwrap_or_default());
    let (_, list) = told(admin.get(&next).await?).await?;
    ensure!(list["items"][0]["id"] == key_id.as_str() && list["items"][0]["revokedat"].is_string(), "{list}");
    ensure!(!list.to_string().contains("digest"), "{list}");
    Ok(())
}

async fn streams_end(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_here, client) = cluster.api().await?;
    let (_there, elsewhere) = cluster.api().await?;
    let admin = client.admin().await?;
    let (revoked_id, revoked) = new_key(&admin, &["read"], None).await?;
    let (expiring_id, expiring) = new_key(&admin, &["read"], None).await?;
    let (_, stays) = new_key(&admin, &["read"], None).await?;
    let there = elsewhere.with(&revoked.token().unwrap_or_default());
    let mut ending = vec![Socket::open(&revoked, "").await?, Socket::open(&there, "").await?];
    ending.push(Socket::open(&expiring, "").await?);
    let mut stays = Socket::open(&stays, "").await?;
    ensure!(admin.delete(&format!("/v1/admin/api-keys/{revoked_id}")).await?.status() == 204, "not revoked");
    site.sql(&format!("UPDATE api_keys SET expires_at = now() WHERE id = '{expiring_id}'")).await?;
    let since = std::time::Instant::now();
    for socket in &mut ending {
        let (code, reason) = socket.closed().await?;
        ensure!(code == 4001 && reason.contains("API key"), "{code} {reason}");
    }
    // Five seconds, and some time for a busy machine.
    ensure!(since.elapsed().as_secs() < 15, "it took {:?}", since.elapsed());
    // The neighbour's goes on: marks come with the pings.
    ensure!(matches!(stays.next().await?, Next::Mark), "another key's stream has ended");
    Ok(())
}

async fn without_stores(world: &World) -> Result {
    let site = Site::new(world).await?;
    let cluster = cluster(&site)?;
    // Small enough to be counted one by one.
    let user = ("TASKFLOW_HTTP__LIMITS__USER_REQUESTS_PER_MINUTE", "900");
    let address = ("TASKFLOW_HTTP__LIMITS__ADDRESS_REQUESTS_PER_HOUR", "900");
    let (_api, client) = cluster.api_with(&[user, address]).await?;
    let (_, key) = new_key(&client.admin().await?, &["commands:write"], Some("/crm")).await?;
    let (status, answer) = sent(&key, &create("/crm", USER)).await?;
    ensure!(status == 202, "{status} {answer}");
    let mut servers = world.servers.lock().await;
    servers.postgres.kill().await;
    servers.redis.kill().await;
    // Long enough for what is remembered to be old.
    let since = std::time::Instant::now();
    wait::until("what was looked up is old", async || {
        let (status, answer) = sent(&key, &create("/crm", USER)).await?;
        ensure!(status == 202, "{status} {answer}");
        Ok(since.elapsed().as_secs() >= 3)
    })
    .await?;
    let answer = key.post("/v1/commands").json(&create("/crm", USER)).send().await?;
    ensure!(answer.status() == 202 && !answer.headers().contains_key("ratelimit"), "{answer:?}");
    let metrics = client.get("/metrics").await?.text().await?;
    let unchecked = metrics.lines().find_map(|line| line.strip_prefix("taskflow_limits_unchecked_total "));
    ensure!(unchecked.and_then(|count| count.parse::<f64>().ok()) > Some(0.0), "{unchecked:?}");
    // Whoever has these servers next wants them whole.
    servers.postgres.restart().await?;
    servers.redis.restart().await
}
