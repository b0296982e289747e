//! Every kind of caller makes every call that there is: docs/access.md says what must come of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN, USER, command_of, id};
use taskflow_tests::{Client, Result, Site, wait};
use uuid::Uuid;

use super::new_key;
use crate::{cluster, plain, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        plain("access: every route has its row in docs/access.md, and every row its route", documented),
        with_site(
            "access: every kind of caller makes every call, and gets what docs/access.md says",
            everybody,
        ),
        with_site("access: metrics have a port of their own, and on the public one ask who it is", metrics),
        with_site("access: who sees a receipt, and who may cancel what it is of", receipts),
    ]
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// A call, and who may make it.
struct Row {
    method: String,
    path: String,
    who: Vec<String>,
}

fn rows() -> Result<Vec<Row>> {
    let page = std::fs::read_to_string(root().join("docs/access.md"))?;
    let rows = page.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|').map(str::trim);
        let (method, path) = cells.next()?.strip_suffix('`')?.split_once(' ')?;
        let who = cells.next()?.split(", ").map(|who| who.trim_matches('`').to_owned()).collect();
        let call = path.starts_with('/') && method.chars().all(|c| c.is_ascii_uppercase());
        call.then(|| Row { method: method.to_owned(), path: path.to_owned(), who })
    });
    Ok(rows.collect())
}

/// The routes that the API registers, as they stand in its source: `.route("/path", get(one).post(other))`.
fn registered() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(root().join("api/src/routes"))? {
        let text = std::fs::read_to_string(file?.path())?;
        for route in text.split(".route(").skip(1) {
            let mut quoted = route.split('"');
            ensure!(
                quoted.next().is_some_and(|before| before.trim().is_empty()),
                "a path is a literal: {route:.80}"
            );
            let path = quoted.next().context("no path")?;
            let handlers = quoted.next().context("no handler")?;
            let handlers = handlers.split("\n        .").next().unwrap_or_default().split("\n}").next();
            for method in ["get", "post", "put", "patch", "delete", "any"] {
                let named =
                    |border: &str| handlers.is_some_and(|text| text.contains(&format!("{border}{method}(")));
                if named(" ") || named(".") || named("::") {
                    found.insert(format!("{} {path}", method.to_uppercase()));
                }
            }
        }
    }
    Ok(found)
}

fn documented() -> Result {
    let registered = registered()?;
    ensure!(registered.len() >= 30, "only {} routes were found in the source", registered.len());
    let documented: BTreeSet<String> =
        rows()?.iter().map(|row| format!("{} {}", row.method, row.path)).collect();
    let differ: Vec<_> = registered.symmetric_difference(&documented).collect();
    ensure!(differ.is_empty(), "routes and docs/access.md differ in {differ:?}");
    Ok(())
}

/// Whether a kind of caller is among those who may.
fn may(row: &Row, caller: &str) -> bool {
    row.who.iter().any(|who| match who.as_str() {
        "anybody" => true,
        "a user" => caller == "user" || caller == "admin",
        "an admin" => caller == "admin",
        scope => caller == scope || caller == format!("{scope} key"),
    })
}

async fn everybody(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, nobody) = cluster.api_with(&[("TASKFLOW_HTTP__OPEN_METRICS", "false")]).await?;
    let admin = nobody.admin().await?;
    let mut callers = vec![("nobody", nobody.clone()), ("garbage", nobody.with("tfs_nonsense"))];
    for (name, scope) in
        [("commands:write key", "commands:write"), ("read key", "read"), ("admin key", "admin")]
    {
        callers.push((name, new_key(&admin, &[scope], Some("/test")).await?.1));
    }
    callers.push(("user", nobody.user().await?));
    callers.push(("admin", nobody.admin().await?));
    let mut wrong = Vec::new();
    for (name, client) in &callers {
        let mut rows = rows()?;
        // Who logs out has no more to say.
        rows.sort_by_key(|row| row.path.ends_with("/sessions/current"));
        for row in &rows {
            let status = call(client, row).await?;
            let expected = match (may(row, name), *name) {
                (true, _) => !matches!(status, 401 | 403),
                (false, "nobody" | "garbage") => status == 401,
                (false, _) => status == 403,
            };
            // These are about oneself: for anybody else it is 403 from within. An admin and a key read all.
            let own_password = row.path == "/v1/users/{id}/password";
            let own_data = *name == "user" && row.path.starts_with("/v1/users/{id}");
            let about_oneself = status == 403 && (own_password || own_data);
            if !expected && !about_oneself {
                wrong.push(format!("{name}: {} {} gave {status}", row.method, row.path));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

async fn metrics(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let listen = taskflow_tests::free_address()?;
    let env = [("TASKFLOW_METRICS__LISTEN", listen.as_str()), ("TASKFLOW_HTTP__OPEN_METRICS", "false")];
    let (api, client) = cluster.api_with(&env).await?;
    let inside = Client::new(&format!("http://{listen}"))?;
    for path in ["/healthz", "/readyz", "/metrics"] {
        ensure!(inside.get(path).await?.status() == 200, "{path} on the port for the inside");
    }
    ensure!(
        inside.get("/v1/events").await?.status() == 404,
        "the port for the inside has more than it should"
    );
    ensure!(client.get("/metrics").await?.status() == 401, "open to anybody");
    ensure!(client.user().await?.get("/metrics").await?.status() == 403, "open to a user");
    let (_, operator) = new_key(&client.admin().await?, &["admin"], None).await?;
    // As Prometheus asks: not for JSON.
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3";
    let answer = operator.request(reqwest::Method::GET, "/metrics").header("accept", accept).send().await?;
    ensure!(answer.status() == 200, "{}", answer.status());
    ensure!(answer.text().await?.contains("taskflow_build_info"), "no metrics");
    api.stop().await?;
    ensure!(inside.get("/healthz").await.is_err(), "it outlives the API");
    Ok(())
}

/// A command of a source and an actor, one that waits for its time or not: who sees its receipt, and how cancelling it is
/// answered.
type Sent = (&'static str, Uuid, bool, &'static [&'static str], &'static [Answered]);
type Answered = (&'static str, u16);

/// The receipts of commands of two sources, and of two people, before every kind of caller.
async fn receipts(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    // Which knows of no command but what the stores know.
    let (_other, elsewhere) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let (_, crm) = new_key(&admin, &["commands:write"], Some("/crm")).await?;
    let (_, shop) = new_key(&admin, &["commands:write"], Some("/shop")).await?;
    let (_, reader) = new_key(&admin, &["read"], None).await?;
    let (_, both) = new_key(&admin, &["read", "commands:write"], Some("/shop")).await?;
    let (_, operator) = new_key(&admin, &["admin"], None).await?;
    let callers = [
        ("admin", &admin),
        ("user", &user),
        ("/crm", &crm),
        ("/shop", &shop),
        ("read", &reader),
        ("read, /shop", &both),
        ("admin key", &operator),
    ];
    let send = async |source: &str, actor: Uuid, wait: bool| -> Result<String> {
        let mut command = command_of(actor, "task.create", id(), json!({ "title": "whose" }));
        command["source"] = json!(source);
        if wait {
            command["notbefore"] = json!("2099-01-01T00:00:00Z");
        }
        let sender = if source.starts_with("/crm") { &crm } else { &shop };
        let (status, answer) = sender.send("application/json", command.to_string()).await?;
        ensure!(status == 202, "{status} {answer}");
        // The status address leads to what its sender may see, also at once.
        let at_once = sender.get(answer["status_url"].as_str().unwrap_or_default()).await?.status();
        ensure!(at_once == 200, "the sender's own command is {at_once}");
        let path = format!("/v1/commands/{}", answer["id"].as_str().unwrap_or_default());
        let state = if wait { "scheduled" } else { "applied" };
        wait::until("the command has come to rest", async || {
            let seen: Value = admin.get(&path).await?.json().await?;
            Ok(seen["status"] == state)
        })
        .await?;
        Ok(path)
    };
    // Who sees it, and what cancelling it is answered with. An admin's key reads no receipts: no scope includes another.
    let rows: [Sent; 4] = [
        (
            "/crm/eu",
            USER,
            false,
            &["admin", "user", "/crm", "read", "read, /shop"],
            &[
                ("/shop", 404),
                ("read, /shop", 404),
                ("read", 403),
                ("admin key", 403),
                ("/crm", 409),
                ("user", 409),
            ],
        ),
        (
            "/shop",
            ADMIN,
            false,
            &["admin", "/shop", "read", "read, /shop"],
            &[("/crm", 404), ("user", 404), ("/shop", 409)],
        ),
        (
            "/shop/eu",
            ADMIN,
            true,
            &["admin", "/shop", "read", "read, /shop"],
            &[("/crm", 404), ("user", 404), ("read", 403), ("read, /shop", 200), ("/shop", 409)],
        ),
        (
            "/crm",
            USER,
            true,
            &["admin", "user", "/crm", "read", "read, /shop"],
            &[("read, /shop", 404), ("/crm", 200)],
        ),
    ];
    for (source, actor, wait, sees, cancels) in rows {
        let path = send(source, actor, wait).await?;
        for (name, caller) in callers {
            for base in [client.base(), elsewhere.base()] {
                let seen = caller.at(base).get(&path).await?.status().as_u16();
                let expected = match name {
                    "admin key" => 403,
                    _ if sees.contains(&name) => 200,
                    _ => 404,
                };
                ensure!(seen == expected, "{name} asks for a receipt of {source}: {seen}, not {expected}");
            }
        }
        for (name, expected) in cancels {
            let (_, caller) = callers.iter().find(|(known, _)| known == name).context("who?")?;
            let status = caller.delete(&path).await?.status().as_u16();
            ensure!(status == *expected, "{name} cancels what is of {source}: {status}, not {expected}");
        }
        // What was cancelled still is of its source.
        let sender = if source.starts_with("/crm") { &crm } else { &shop };
        ensure!(sender.get(&path).await?.status() == 200, "the sender sees it no more");
    }
    worker.stop().await
}

/// Calls with an id that nothing has and a body that means nothing: whoever is let in changes nothing.
async fn call(client: &Client, row: &Row) -> Result<u16> {
    let path = row.path.replace("{id}", &id().to_string()).replace("{scope}", "type:task.delete");
    let request = client.request(row.method.parse()?, &path);
    let request = if row.method == "GET" || row.method == "DELETE" {
        request
    } else {
        request.header("content-type", "application/json").body("{}")
    };
    Ok(request.send().await?.status().as_u16())
}
