//! Every kind of caller makes every call that there is: docs/access.md says what must come of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_tests::commands::id;
use taskflow_tests::{Client, Result, Site};

use super::new_key;
use crate::{cluster, plain, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        plain("access: every route has its row in docs/access.md, and every row its route", documented),
        with_site(
            "access: every kind of caller makes every call, and gets what docs/access.md says",
            everybody,
        ),
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
    let (_api, nobody) = cluster.api().await?;
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
