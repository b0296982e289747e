//! Registering users, their permissions, and what another role or password does.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use reqwest::Method;
use serde_json::{Value, json};
use taskflow_tests::commands::{
    ADMIN, ADMIN_EMAIL, ADMIN_PASSWORD, HASH, USER, USER_EMAIL, USER_PASSWORD, command, id,
};
use taskflow_tests::{Client, Result, Site, World, wait};

use super::{is, new_key, told};
use crate::{cluster, with_site, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("access: users are registered by whoever may, with passwords that are hashed", registers),
        with_site("access: a registered admin is counted as a sensitive operation", new_admin),
        with_site("access: another role changes permissions and ends sessions", roles),
        with_site("access: another password ends sessions and is asked for the old one", passwords),
        with_site("access: a clear password is nowhere", nowhere),
        with_world(
            "access: sessions end when Redis is back, though the role changed while it was away",
            later,
        ),
    ]
}

async fn register(client: &Client, body: &Value) -> Result<(u16, Value)> {
    told(client.post("/v1/users").header("prefer", "wait=20").json(body).send().await?).await
}

async fn new_admin(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let listen = taskflow_tests::free_address()?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    for (email, role) in [("eve@taskflow.test", "user"), ("ada@taskflow.test", "admin")] {
        let body = json!({ "email": email, "passwordhash": HASH, "role": role });
        let receipt = admin.apply(&command("user.register", id(), body)).await?;
        ensure!(receipt["status"] == "applied", "{receipt}");
    }
    let metrics = Client::new(&format!("http://{listen}"))?;
    wait::until("one admin is counted", async || {
        let text = metrics.get("/metrics").await?.text().await?;
        let series = "taskflow_sensitive_operations_total{operation=\"admin_registration\"} ";
        Ok(text.lines().find_map(|line| line.strip_prefix(series)) == Some("1"))
    })
    .await?;
    worker.stop().await
}

async fn registers(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let (_, key) = new_key(&admin, &["commands:write"], Some("/crm")).await?;
    let password = "correct horse battery";
    for (number, caller) in [&admin, &user, &key].into_iter().enumerate() {
        let (new, email) = (id(), format!("ada{number}@taskflow.test"));
        let body =
            json!({ "id": new, "email": email, "password": password, "profile": { "firstName": "Ada" } });
        let (status, receipt) = register(caller, &body).await?;
        ensure!(status == 200 && receipt["status"] == "applied", "{status} {receipt}");
        ensure!(receipt["subject"] == new.to_string(), "{receipt}");
        client.logged_in(&email, password).await?;
        let role = format!("SELECT count(*) FROM users WHERE id = '{new}' AND role = 'user'");
        ensure!(site.count(&role).await? == 1, "no plain user");
    }
    // Without waiting, the answer names the command and the user.
    let body = json!({ "email": "grace@taskflow.test", "password": password });
    let (status, answer) = told(user.post("/v1/users").json(&body).send().await?).await?;
    ensure!(
        status == 202 && answer["status"] == "accepted" && answer["userid"].is_string(),
        "{status} {answer}"
    );
    let (status, receipt) = register(&user, &body).await?;
    ensure!(status == 200 && receipt["code"] == "email_taken", "{status} {receipt}");
    for (body, pointer) in [
        (json!({ "email": "x@y.example", "password": "x".repeat(72) }), "/password"),
        (json!({ "email": "x@y.example", "password": "é".repeat(36) }), "/password"),
        (json!({ "email": "x@y.example", "password": "short" }), "/password"),
        (json!({ "email": "x@y.example", "password": "with \u{0} in it" }), "/password"),
        (json!({ "email": "x@y.example", "password": { "a": 1 } }), "/password"),
        (json!({ "email": "x@y.example" }), "/password"),
        (json!({ "email": "no address", "password": password }), "/email"),
        (json!({ "email": "x@y.example", "password": password, "profile": 7 }), "/profile"),
        (json!({ "email": "x@y.example", "password": password, "role": "admin" }), "/role"),
        (json!({ "email": "x@y.example", "password": password, "id": "me" }), "/id"),
    ] {
        let (status, answer) = register(&user, &body).await?;
        ensure!(status == 400 && answer["errors"][0]["pointer"] == pointer, "{body}\ngave {status} {answer}");
        ensure!(!answer.to_string().contains(password), "the answer quotes the password: {answer}");
    }
    // 71 bytes are the most that are read.
    let longest = "x".repeat(71);
    let body = json!({ "email": "long@taskflow.test", "password": longest });
    ensure!(register(&user, &body).await?.0 == 200, "71 bytes were refused");
    client.logged_in("long@taskflow.test", &longest).await?;
    worker.stop().await
}

async fn permissions(client: &Client, user: uuid::Uuid) -> Result<(u16, Value, String)> {
    let answer = client.get(&format!("/v1/users/{user}/permissions")).await?;
    let cache =
        answer.headers().get("x-cache").and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let (status, answer) = told(answer).await?;
    Ok((status, answer, cache))
}

fn has(permissions: &Value, word: &str) -> bool {
    permissions.as_array().is_some_and(|words| words.iter().any(|known| known == word))
}

async fn give_role(admin: &Client, user: uuid::Uuid, role: &str) -> Result<(u16, Value)> {
    let request = admin.request(Method::PUT, &format!("/v1/admin/users/{user}/role"));
    told(request.json(&json!({ "role": role })).send().await?).await
}

async fn roles(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (_elsewhere, there) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let (status, words, cache) = permissions(&user, USER).await?;
    ensure!(
        status == 200 && cache == "miss" && has(&words, "task:create") && !has(&words, "admin"),
        "{words}"
    );
    let (_, again, cache) = permissions(&user, USER).await?;
    ensure!(cache == "hit" && again == words, "{cache} {again}");
    let cached = site.cached(&format!("user:permissions:{USER}")).await?.context("not cached")?;
    ensure!(serde_json::from_str::<Value>(&cached)? == words, "{cached}");
    // What a Redis holds that was set back is not shown.
    site.set_cached(&format!("user:permissions:{USER}"), "[\"admin\"]").await?;
    let (_, again, cache) = permissions(&user, USER).await?;
    ensure!(cache == "miss" && again == words, "{cache} {again}");
    let path = format!("/v1/users/{USER}/permissions");
    let etag = user.get(&path).await?.headers().get("etag").cloned().context("no etag")?;
    let known = user.request(reqwest::Method::GET, &path).header("if-none-match", etag).send().await?;
    ensure!(known.status() == 304, "{}", known.status());
    ensure!(permissions(&user, ADMIN).await?.0 == 404, "others' permissions are shown");
    ensure!(permissions(&admin, id()).await?.0 == 404, "nobody's permissions are shown");

    let (status, answer) = give_role(&admin, USER, "admin").await?;
    ensure!(status == 200 && answer["sessions"] == "ended" && answer["version"] == 2, "{status} {answer}");
    ensure!(user.get("/v1/commands/x").await?.status() == 401, "the session goes on");
    let there = there.with(&user.token().unwrap_or_default());
    wait::until("it has ended elsewhere", async || Ok(there.get("/v1/commands/x").await?.status() == 401))
        .await?;
    let user = client.user().await?;
    let (_, words, cache) = permissions(&user, USER).await?;
    ensure!(cache == "miss" && has(&words, "admin"), "{cache} {words}");
    ensure!(user.get("/v1/admin/pauses").await?.status() == 200, "no admin");
    // What is cached of the user is not older than the change.
    let profile = site.cached(&format!("user:profile:{USER}")).await?.context("no profile")?;
    ensure!(profile.starts_with("{\"version\":2") && profile.contains("\"role\":\"admin\""), "{profile}");
    // The same again changes nothing.
    let (status, answer) = give_role(&admin, USER, "admin").await?;
    ensure!(status == 200 && answer["version"] == 2, "{status} {answer}");
    ensure!(user.get("/v1/commands/x").await?.status() == 404, "the session has ended for nothing");

    // Somebody must be left.
    ensure!(give_role(&user, ADMIN, "user").await?.0 == 200, "not demoted");
    let (status, answer) = give_role(&user, USER, "user").await?;
    ensure!(status == 409 && answer["code"] == "last_admin", "{status} {answer}");
    ensure!(give_role(&user, id(), "admin").await?.0 == 404, "nobody was promoted");
    ensure!(give_role(&user, USER, "emperor").await?.0 == 400, "there is no such role");
    wait::until("both changes are audited", async || {
        let events = site.events().await?;
        let changes: Vec<_> =
            events.iter().filter(|event| is(event, "type", "system.role_changed")).collect();
        let payload = |index: usize| changes[index].get_document("payload");
        Ok(changes.len() == 2
            && payload(0)?.get_str("role")? == "admin"
            && payload(0)?.get_str("ipAddress")? == "127.0.0.1"
            && changes[0].get_str("actorId")? == ADMIN.to_string())
    })
    .await?;
    worker.stop().await
}

async fn passwords(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let put = async |client: &Client, path: &str, body: Value| -> Result<(u16, Value)> {
        told(client.request(Method::PUT, path).json(&body).send().await?).await
    };
    let own = format!("/v1/users/{USER}/password");
    let next = "another password of the user";
    let (status, answer) = put(&user, &own, json!({ "current": "wrong", "password": next })).await?;
    ensure!(status == 400 && answer["errors"][0]["pointer"] == "/current", "{status} {answer}");
    ensure!(put(&user, &own, json!({ "password": next })).await?.0 == 400, "not asked for the old one");
    let others = format!("/v1/users/{ADMIN}/password");
    ensure!(
        put(&user, &others, json!({ "current": "x", "password": next })).await?.0 == 403,
        "not one's own"
    );
    let (status, answer) = put(&user, &own, json!({ "current": USER_PASSWORD, "password": next })).await?;
    ensure!(status == 200 && answer["sessions"] == "ended", "{status} {answer}");
    ensure!(user.get("/v1/commands/x").await?.status() == 401, "the session goes on");
    ensure!(client.user().await.is_err(), "the old password is good");
    let user = client.logged_in(USER_EMAIL, next).await?;

    let by_admin = format!("/v1/admin/users/{USER}/password");
    let (status, answer) = put(&admin, &by_admin, json!({ "password": "a third password" })).await?;
    ensure!(status == 200, "{status} {answer}");
    ensure!(user.get("/v1/commands/x").await?.status() == 401, "the session goes on");
    client.logged_in(USER_EMAIL, "a third password").await?;
    // An admin shows the old one like everybody else.
    let own = format!("/v1/admin/users/{ADMIN}/password");
    ensure!(put(&admin, &own, json!({ "password": next })).await?.0 == 409, "not asked for the old one");
    client.logged_in(ADMIN_EMAIL, ADMIN_PASSWORD).await?;
    reset_meanwhile(&site, &client).await
}

/// Who knows the old password can't undo that an admin gives a new one, however close the two are.
async fn reset_meanwhile(site: &Site, client: &Client) -> Result {
    let user = client.logged_in(USER_EMAIL, "a third password").await?;
    let mut reset = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::query("SELECT FROM users WHERE id = $1 FOR UPDATE").bind(USER).execute(&mut *reset).await?;
    let own = user.request(Method::PUT, &format!("/v1/users/{USER}/password"));
    let own = own.json(&json!({ "current": "a third password", "password": "a third password" })).send();
    let resets = async {
        let held = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                    AND wait_event_type = 'Lock' AND query LIKE '/* load_users */%'";
        wait::until("the change waits", async || Ok(site.count(held).await? == 1)).await?;
        sqlx::query("UPDATE users SET password_hash = $2, version = version + 1 WHERE id = $1")
            .bind(USER)
            .bind(HASH)
            .execute(&mut *reset)
            .await?;
        Ok(reset.commit().await?)
    };
    let (own, reset): (_, Result) = tokio::join!(own, resets);
    reset?;
    let (status, answer) = told(own?).await?;
    ensure!(status == 409 && answer["code"] == "changed_meanwhile", "{status} {answer}");
    let kept = format!("SELECT count(*) FROM users WHERE id = '{USER}' AND password_hash = '{HASH}'");
    ensure!(site.count(&kept).await? == 1, "the reset is undone");
    Ok(())
}

/// Everything that can be written is, at the finest level; then it is searched for what must not be there.
async fn nowhere(site: Arc<Site>) -> Result {
    const FIRST: &str = "Zebra-Quartz-8472";
    const SECOND: &str = "Walrus-Onyx-1930";
    const GUESS: &str = "Ferret-Topaz-5561";
    let cluster = cluster(&site)?;
    let fine = [("TASKFLOW_LOG", "trace")];
    let worker = cluster.spawn("worker", &fine)?;
    let (api, client) = cluster.api_with(&fine).await?;
    let admin = client.admin().await?;
    let new = id();
    let body = json!({ "id": new, "email": "zoe@taskflow.test", "password": FIRST });
    ensure!(register(&admin, &body).await?.1["status"] == "applied", "not registered");
    let zoe = client.logged_in("zoe@taskflow.test", FIRST).await?;
    let mut said = Vec::new();
    let guess = json!({ "email": "zoe@taskflow.test", "password": GUESS });
    said.push(told(client.post("/v1/sessions").json(&guess).send().await?).await?);
    for body in [
        format!("{{\"email\": \"zoe@taskflow.test\", \"password\": \"{GUESS}\""),
        format!("{{\"email\": \"{GUESS}\", \"password\": [\"{GUESS}\"], \"{GUESS}\": 1}}"),
        format!("{{\"email\": \"x@y.example\", \"password\": \"{}\"}}", GUESS.repeat(5)),
    ] {
        for path in ["/v1/sessions", "/v1/users"] {
            said.push(told(admin.post(path).body(body.clone()).send().await?).await?);
        }
    }
    let own = zoe.request(Method::PUT, &format!("/v1/users/{new}/password"));
    let (status, answer) =
        told(own.json(&json!({ "current": FIRST, "password": SECOND })).send().await?).await?;
    ensure!(status == 200, "{status} {answer}");
    client.logged_in("zoe@taskflow.test", SECOND).await?;
    wait::until("the change is audited", async || {
        Ok(site.events().await?.iter().any(|event| is(event, "type", "system.password_changed")))
    })
    .await?;
    let events = format!("{:?}", site.events().await?);
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema()")
            .fetch_all(&site.postgres)
            .await?;
    ensure!(tables.len() > 10, "{tables:?}");
    let logs = format!("{}{}", api.log(), worker.log());
    ensure!(logs.contains("TRACE") && logs.contains("DEBUG"), "the logs are not fine");
    let redis = site.dump_redis().await?;
    ensure!(redis.contains("zoe@taskflow.test"), "Redis was not read");
    for secret in [FIRST, SECOND, GUESS] {
        ensure!(!events.contains(secret), "{secret} is in the audit trail");
        for table in &tables {
            // Bytes are shown as hexadecimal digits.
            let hex = secret.bytes().fold(String::new(), |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            });
            let found = format!(
                "SELECT count(*) FROM {table} t WHERE t::text LIKE '%{secret}%' OR t::text LIKE '%{hex}%'"
            );
            ensure!(site.count(&found).await? == 0, "{secret} is in {table}");
        }
        if let Some(line) = logs.lines().find(|line| line.contains(secret)) {
            anyhow::bail!("{secret} is in the log: {line}");
        }
        ensure!(!redis.contains(secret), "{secret} is in Redis");
    }
    // A name that nobody knows is quoted, a value never is.
    for (status, answer) in said {
        let quoted = answer["errors"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|error| error["detail"].as_str().is_some_and(|detail| detail.contains(GUESS)));
        ensure!(!quoted && (400..500).contains(&status), "{status} {answer}");
    }
    api.stop().await?;
    worker.stop().await
}

async fn later(world: &World) -> Result {
    let site = Site::new(world).await?;
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let user = client.user().await?;
    let (_, operator) = new_key(&admin, &["admin"], None).await?;
    ensure!(permissions(&user, USER).await?.0 == 200, "no permissions");
    // Redis stands still, and keeps what it has.
    world.servers.lock().await.redis.pause();
    let (status, answer) = give_role(&operator, USER, "admin").await?;
    ensure!(status == 200 && answer["sessions"] == "ending", "{status} {answer}");
    world.servers.lock().await.redis.resume();
    wait::until("the session has ended", async || Ok(user.get("/v1/commands/x").await?.status() == 401))
        .await?;
    wait::until("nothing is left to do", async || {
        Ok(site.count("SELECT count(*) FROM session_endings").await? == 0)
    })
    .await?;
    let words = permissions(&client.admin().await?, USER).await?.1;
    ensure!(has(&words, "admin"), "{words}");
    Ok(())
}
