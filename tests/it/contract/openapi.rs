//! The OpenAPI document: it is one, it names the routes that there are, and what it says of answers is so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::backups::Backups;
use taskflow_tests::commands::{ADMIN, ADMIN_EMAIL, ADMIN_PASSWORD, HASH, command, id};
use taskflow_tests::{Result, Site, letters, wait};

use super::tidy::root;
use crate::{cluster, with_site};

/// OpenAPI's own schema (spec.openapis.org/oas/3.1/schema/2022-10-07).
const META: &str = include_str!("data/openapi-3.1.json");
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("openapi: the document is valid and names every route", document),
        with_site("openapi: answers are as the document says", answers),
        with_site("openapi: what operators are answered is as the document says", operators),
    ]
}

async fn document(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let document: Value = client.get("/openapi.json").await?.json().await?;
    let meta: Value = serde_json::from_str(META)?;
    let validator = jsonschema::options().build(&meta)?;
    let faults: Vec<String> = validator.iter_errors(&document).map(|error| error.to_string()).collect();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    for (name, schema) in document["components"]["schemas"].as_object().context("schemas")? {
        ensure!(jsonschema::meta::is_valid(schema), "{name} is no schema");
    }
    references(&document, &document)?;

    let mut named = BTreeSet::new();
    let mut names = BTreeSet::new();
    for (path, calls) in document["paths"].as_object().context("paths")? {
        for (method, call) in calls.as_object().context("calls")? {
            named.insert(format!("{method} {path}"));
            let name = call["operationId"].as_str().unwrap_or_default();
            ensure!(names.insert(name.to_owned()), "two calls have the name {name}");
            let declared: BTreeSet<&str> = call["parameters"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|parameter| parameter["in"] == "path")
                .filter_map(|parameter| parameter["name"].as_str())
                .collect();
            let used: BTreeSet<&str> = path.split('{').skip(1).filter_map(|p| p.split('}').next()).collect();
            ensure!(declared == used, "{method} {path}: parameters {declared:?}");
        }
    }
    examples(&document)?;
    let gated = errors(&document)?;
    ensure!(gated > 40, "only {gated} calls ask who it is");
    codes(&document)?;
    let there = routes()?;
    let unnamed: Vec<&String> = there.difference(&named).collect();
    let gone: Vec<&String> = named.difference(&there).collect();
    ensure!(
        unnamed.is_empty() && gone.is_empty(),
        "api/src/openapi/calls.rs lacks {unnamed:?}, and names what is not there: {gone:?}"
    );
    let page = client.get("/docs").await?;
    let policy = page.headers().get("content-security-policy").is_some();
    let text = page.text().await?;
    ensure!(policy && !text.contains("http://") && !text.contains("https://"), "the page asks elsewhere");
    Ok(())
}

/// Every body has a sample that says something, and every sample is valid by the schema that it stands at.
fn examples(document: &Value) -> Result {
    let mut faults = Vec::new();
    let mut looked = 0;
    let mut check = |place: &str, schema: &Value, sample: &Value| -> Result {
        let mut schema = schema.clone();
        schema["components"] = document["components"].clone();
        let validator = jsonschema::options().should_validate_formats(true).build(&schema)?;
        faults.extend(validator.iter_errors(sample).map(|error| format!("{place}: {error}\n    {sample}")));
        if sample.as_object().is_some_and(serde_json::Map::is_empty) {
            faults.push(format!("{place}: a bare object says nothing"));
        }
        looked += 1;
        Ok(())
    };
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        for sample in schema["examples"].as_array().into_iter().flatten() {
            check(name, schema, sample)?;
        }
    }
    let calls = document["paths"].as_object().into_iter().flatten();
    let calls =
        calls.flat_map(|(path, calls)| calls.as_object().into_iter().flatten().map(move |call| (path, call)));
    for (path, (method, call)) in calls {
        let answers = call["responses"].as_object().into_iter().flatten();
        let answers = answers.map(|(status, answer)| (status.as_str(), answer));
        for (what, given) in answers.chain([("request", &call["requestBody"])]) {
            let given = match given["$ref"].as_str() {
                Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap_or(given),
                None => given,
            };
            for (kind, media) in given["content"].as_object().into_iter().flatten() {
                let place = format!("{method} {path} {what} {kind}");
                let several =
                    media["examples"].as_object().into_iter().flatten().map(|(_, sample)| &sample["value"]);
                let samples: Vec<&Value> = several.chain(media.get("example")).collect();
                ensure!(!samples.is_empty(), "{place} has no sample");
                for sample in samples {
                    check(&place, &media["schema"], sample)?;
                }
            }
        }
    }
    ensure!(looked > 200, "only {looked} samples were looked at");
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// What the gate may answer stands with every call that passes it, once for all. Returns how many there are.
fn errors(document: &Value) -> Result<usize> {
    let calls = document["paths"].as_object().into_iter().flatten();
    let calls =
        calls.flat_map(|(path, calls)| calls.as_object().into_iter().flatten().map(move |call| (path, call)));
    let mut gated = 0;
    for (path, (method, call)) in calls {
        let is_login = path == "/v1/sessions";
        if call["security"].is_array() && !is_login {
            continue;
        }
        gated += 1;
        let closed: &[u16] = if is_login { &[] } else { &[401, 403] };
        let with_body: &[u16] = if call["requestBody"].is_null() { &[] } else { &[408, 413] };
        for status in [&[406, 414, 415, 429, 500, 503], closed, with_body].concat() {
            let reference = call["responses"][status.to_string()]["$ref"].as_str().unwrap_or_default();
            let shared = reference.starts_with("#/components/responses/");
            ensure!(shared, "{method} {path} has no {status} of those that all share");
        }
        let good =
            call["responses"].as_object().into_iter().flatten().find(|(status, _)| status.starts_with('2'));
        let limits = good.is_none_or(|(_, answer)| answer["headers"]["ratelimit"].is_object());
        ensure!(limits, "{method} {path} names no header of limits");
    }
    let keys = &document["paths"]["/v1/admin/api-keys"]["get"]["parameters"];
    let named: Vec<&Value> =
        keys.as_array().into_iter().flatten().map(|parameter| &parameter["name"]).collect();
    ensure!(named == ["pagesize", "cursor"], "{named:?}");
    Ok(gated)
}

/// The codes of problem documents are those in the code.
fn codes(document: &Value) -> Result {
    let named = document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array();
    let named: BTreeSet<&str> = named.into_iter().flatten().filter_map(Value::as_str).collect();
    let mut texts = Vec::new();
    let mut folders = vec![root().join("api/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("openapi") {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                texts.push(std::fs::read_to_string(path)?);
            }
        }
    }
    let text = texts.concat();
    let mut used = BTreeSet::new();
    for maker in ["bad_request(", "forbidden(", "conflict(", "Self::new(", "Problem::new("] {
        for part in text.split(maker).skip(1) {
            let first = part.trim_start();
            let status = first.strip_prefix("StatusCode::").and_then(|rest| rest.split_once(','));
            let code = status.map_or(first, |(_, rest)| rest.trim_start()).strip_prefix('"');
            used.extend(code.and_then(|rest| rest.split('"').next()));
        }
    }
    let unnamed: Vec<&&str> = used.difference(&named).collect();
    let gone: Vec<&&str> = named.iter().filter(|code| !text.contains(&format!("\"{code}\""))).collect();
    ensure!(
        used.len() > 30 && unnamed.is_empty() && gone.is_empty(),
        "api/src/openapi/errors.rs lacks the codes {unnamed:?}, and names what is not there: {gone:?}"
    );
    Ok(())
}

/// Every reference leads somewhere.
pub(super) fn references(document: &Value, at: &Value) -> Result {
    match at {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let target = document.pointer(reference.trim_start_matches('#'));
                ensure!(target.is_some(), "{reference} leads nowhere");
            }
            fields.values().try_for_each(|field| references(document, field))
        }
        Value::Array(items) => items.iter().try_for_each(|item| references(document, item)),
        _ => Ok(()),
    }
}

/// The routes in the code: `method path`.
fn routes() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(root().join("api/src/routes"))? {
        let file = file?.path();
        if file.extension().is_none_or(|ext| ext != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file)?;
        // Where paths are put together, their beginning has a name.
        let base = text.lines().find_map(|line| line.trim().strip_prefix("let letters = "));
        let base = base.and_then(|rest| rest.split('"').nth(1)).unwrap_or_default();
        for part in text.split(".route(").skip(1) {
            let call = arguments(part);
            let (first, handlers) = call.split_once(',').context("a route without handlers")?;
            let literal = first.split('"').nth(1).unwrap_or_default();
            let path = match first.trim() {
                name if !name.contains('"') => base.to_owned(),
                name if name.starts_with("&at(") => format!("{base}{literal}"),
                _ => literal.to_owned(),
            };
            let used = METHODS.iter().filter(|method| {
                let calls = [format!(" {method}("), format!(".{method}("), format!("\n{method}(")];
                calls.iter().any(|call| handlers.contains(call.as_str()))
            });
            found.extend(used.map(|method| format!("{method} {path}")));
        }
    }
    Ok(found)
}

/// The text up to the bracket that closes the call.
fn arguments(text: &str) -> &str {
    let mut open = 1;
    let end = text.char_indices().find(|(_, sign)| {
        open += i32::from(*sign == '(') - i32::from(*sign == ')');
        open == 0
    });
    end.map_or(text, |(end, _)| &text[..end])
}

async fn answers(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let document: Value = client.get("/openapi.json").await?.json().await?;
    let task = id();
    let receipt = admin.apply(&command("task.create", task, json!({ "title": "described" }))).await?;
    let receipt_path = format!("/v1/commands/{}", receipt["id"].as_str().unwrap_or_default());
    let unknown = format!("/v1/tasks/{}", id());
    let admin_path = |rest: &str| format!("/v1/users/{ADMIN}{rest}");
    for (route, path) in [
        ("/v1/tasks/{id}", format!("/v1/tasks/{task}")),
        ("/v1/tasks/{id}/changes", format!("/v1/tasks/{task}/changes")),
        ("/v1/tasks/{id}", unknown),
        ("/v1/tasks/search", "/v1/tasks/search?q=described".to_owned()),
        ("/v1/tasks/search", "/v1/tasks/search".to_owned()),
        ("/v1/users/{id}", admin_path("")),
        ("/v1/users/{id}/tasks", admin_path("/tasks?pagesize=1")),
        ("/v1/users/{id}/permissions", admin_path("/permissions")),
        ("/v1/users/{id}/task-stats", admin_path("/task-stats")),
        ("/v1/events", "/v1/events?pagesize=2".to_owned()),
        ("/v1/commands/{id}", receipt_path),
        ("/v1/admin/pauses", "/v1/admin/pauses".to_owned()),
        ("/v1/admin/dead-letters", "/v1/admin/dead-letters".to_owned()),
        ("/readyz", "/readyz".to_owned()),
        ("/schemas", "/schemas".to_owned()),
    ] {
        let answer = admin.get(&path).await?;
        fits(&document, &document["paths"][route]["get"], answer).await.with_context(|| path.clone())?;
    }
    let login =
        client.post("/v1/sessions").json(&json!({ "email": ADMIN_EMAIL, "password": ADMIN_PASSWORD }));
    let answer = login.send().await?;
    ensure!(answer.status() == 201, "{}", answer.status());
    fits(&document, &document["paths"]["/v1/sessions"]["post"], answer).await?;
    let bad = json!({ "type": "task.create" });
    let good = command("task.create", id(), json!({ "title": "x" }));
    // One and many, good and bad: of many, what came of each is told.
    for body in [bad.clone(), json!([bad]), good.clone(), json!([good, bad]), json!([])] {
        let answer = admin.post("/v1/commands").json(&body).send().await?;
        fits(&document, &document["paths"]["/v1/commands"]["post"], answer)
            .await
            .with_context(|| body.to_string())?;
    }
    worker.stop().await
}

async fn operators(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let worker = cluster.worker()?;
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    let (_api, client) = cluster.api_with(&backups.env()).await?;
    let admin = client.admin().await?;
    let document: Value = client.get("/openapi.json").await?.json().await?;
    // Something of each kind.
    letters::forbid_poison(&site).await?;
    letters::publish(&site, &letters::poison(id())).await?;
    letters::until(&site, "kept", 1).await?;
    let backup = backups.create("mongodb").await?;
    wait::until("the scheduler has its schedules", async || {
        let jobs: Value = admin.get("/v1/admin/jobs").await?.json().await?;
        Ok(jobs["items"].as_array().is_some_and(|items| !items.is_empty()))
    })
    .await?;
    // One call after the other, what an answer names goes into the paths of those behind it.
    let mut known: BTreeMap<&str, String> = BTreeMap::new();
    let user = id();
    admin
        .apply(&command(
            "user.register",
            user,
            json!({ "email": "described@taskflow.test", "passwordhash": HASH }),
        ))
        .await?;
    let letters: Value = admin.get("/v1/admin/dead-letters").await?.json().await?;
    known.insert("letter", letters["items"][0]["id"].as_str().context("no letter")?.to_owned());
    known.insert("user", user.to_string());
    known.insert("backup", backup);
    let calls = [
        ("get", "/v1/admin/jobs", json!(null), ""),
        ("get", "/v1/admin/jobs/{schedule}", json!(null), ""),
        ("post", "/v1/admin/jobs/{schedule}/runs", json!({ "dryrun": true }), "run"),
        ("get", "/v1/admin/jobs/runs/{run}", json!(null), ""),
        ("get", "/v1/admin/jobs/runs", json!(null), ""),
        ("post", "/v1/admin/jobs/{schedule}/pause", json!({ "reason": "a test" }), ""),
        ("post", "/v1/admin/pauses", json!({ "scope": "type:task.delete", "reason": "a test" }), ""),
        ("get", "/v1/admin/pauses", json!(null), ""),
        ("post", "/v1/admin/holds", json!({ "entity": user, "why": "a test" }), "hold"),
        ("get", "/v1/admin/holds/{hold}", json!(null), ""),
        ("get", "/v1/admin/holds", json!(null), ""),
        ("delete", "/v1/admin/holds/{hold}", json!(null), ""),
        ("get", "/v1/admin/backups", json!(null), ""),
        ("get", "/v1/admin/backups/{backup}", json!(null), ""),
        ("get", "/v1/admin/dead-letters", json!(null), ""),
        ("get", "/v1/admin/dead-letters/groups", json!(null), ""),
        ("get", "/v1/admin/dead-letters/{letter}", json!(null), ""),
        ("post", "/v1/admin/dead-letters/{letter}/dry-run", json!({}), ""),
        ("post", "/v1/admin/dead-letters/{letter}/discard", json!({ "why": "a test" }), ""),
        ("post", "/v1/admin/dead-letters/replays", json!({ "filter": { "state": "kept" } }), "replay"),
        ("get", "/v1/admin/dead-letters/replays/{replay}", json!(null), ""),
        ("get", "/v1/admin/dead-letters/replays", json!(null), ""),
        ("post", "/v1/admin/api-keys", json!({ "name": "a test's", "scopes": ["read"] }), "key"),
        ("get", "/v1/admin/api-keys", json!(null), ""),
        ("put", "/v1/admin/users/{user}/role", json!({ "role": "admin" }), ""),
        ("put", "/v1/admin/users/{user}/password", json!({ "password": "correct horse battery" }), ""),
        ("get", "/healthz", json!(null), ""),
    ];
    known.insert("schedule", "retention.events".to_owned());
    for (method, route, body, names) in calls {
        let (mut path, mut template) = (route.to_owned(), route.to_owned());
        for (name, value) in &known {
            path = path.replace(&format!("{{{name}}}"), value);
            let documented = if *name == "schedule" { "{schedule}" } else { "{id}" };
            template = template.replace(&format!("{{{name}}}"), documented);
        }
        let request = admin.request(method.to_uppercase().parse()?, &path);
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await?;
        ensure!(answer.status().is_success(), "{method} {path}: {}", answer.text().await?);
        let told = fits(&document, &document["paths"][&template][method], answer)
            .await
            .with_context(|| format!("{method} {path}"))?;
        if !names.is_empty() {
            let id = told["id"].as_str().map_or_else(|| told["id"].to_string(), str::to_owned);
            known.insert(names, id);
        }
    }
    scheduler.stop().await?;
    worker.stop().await
}

/// Holds an answer against what the document says of the call: status, content type, schema.
async fn fits(document: &Value, call: &Value, answer: reqwest::Response) -> Result<Value> {
    let status = answer.status().as_u16().to_string();
    let kind = answer.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().to_owned();
    let body: Value = answer.json().await?;
    let given = &call["responses"][&status];
    ensure!(!given.is_null(), "the document does not know the status {status}; {body}");
    let given = match given["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).context("a reference")?,
        None => given,
    };
    let content = &given["content"][&kind];
    ensure!(!content.is_null(), "the document does not know {kind} with {status}; {body}");
    let mut schema = content["schema"].clone();
    schema["components"] = document["components"].clone();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema)?;
    let faults: Vec<String> = validator.iter_errors(&body).map(|error| error.to_string()).collect();
    ensure!(faults.is_empty(), "{}\n{body}", faults.join("\n"));
    Ok(body)
}
