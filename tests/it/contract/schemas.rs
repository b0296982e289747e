//! The schemas of the command types: what was released is still taken, and a change of it is meant.

use std::process::Command;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::command::TYPES;
use taskflow_tests::{Result, Site};

use super::tidy::root;
use crate::{PROGRAM, cluster, plain, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        plain("schemas: docs/schemas.json is what the program says", written_down),
        plain("schemas: a breaking change ends with 1, a compatible one with 0", told_apart),
        with_site("schemas: they are served to all", served),
    ]
}

fn schema(args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(PROGRAM).arg("schema").args(args).output()?;
    Ok((output.status.code(), String::from_utf8(output.stdout)?))
}

fn written_down() -> Result {
    let (code, text) = schema(&["export"])?;
    ensure!(code == Some(0), "export ended with {code:?}");
    let file = root().join("docs/schemas.json");
    let released: Value = serde_json::from_str(&std::fs::read_to_string(&file)?)?;
    let now: Value = serde_json::from_str(&text)?;
    let (_, differences) = schema(&["check", "--against", &file.display().to_string()])?;
    ensure!(
        released == now,
        "the schemas have changed:\n{differences}\nif that is meant and breaks nobody: taskflow schema export > docs/schemas.json"
    );
    Ok(())
}

fn told_apart() -> Result {
    let (_, text) = schema(&["export"])?;
    let now: Value = serde_json::from_str(&text)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("earlier.json");
    let against = |earlier: &Value| -> Result<(Option<i32>, String)> {
        std::fs::write(&file, earlier.to_string())?;
        schema(&["check", "--against", &file.display().to_string()])
    };
    ensure!(against(&now)? == (Some(0), "nothing has changed\n".to_owned()), "{:?}", against(&now)?);
    let mut wider = now.clone();
    wider["task.create/1"]["properties"]["data"]["properties"]["title"]["maxLength"] = json!(1_000);
    let (code, told) = against(&wider)?;
    ensure!(
        code == Some(1) && told.starts_with("breaking") && told.contains("title/maxLength"),
        "{code:?} {told}"
    );
    let mut narrower = now.clone();
    narrower["task.create/1"]["properties"]["data"]["properties"]["title"]["maxLength"] = json!(10);
    let (code, told) = against(&narrower)?;
    ensure!(code == Some(0) && told.starts_with("compatible"), "{code:?} {told}");
    std::fs::write(&file, "no JSON")?;
    let (code, _) = schema(&["check", "--against", &file.display().to_string()])?;
    ensure!(code == Some(2), "{code:?}");
    Ok(())
}

async fn served(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let list: Value = client.get("/schemas").await?.json().await?;
    ensure!(list["items"].as_array().map(Vec::len) == Some(TYPES.len()), "{list}");
    for kind in TYPES {
        let answer = client.get(&format!("/schemas/{kind}/1")).await?;
        ensure!(answer.status() == 200, "{kind}: {}", answer.status());
        let schema: Value = answer.json().await?;
        ensure!(schema["properties"]["type"]["const"] == kind, "{schema}");
    }
    for path in ["/schemas/task.paint/1", "/schemas/task.create/2", "/schemas/task.create/x"] {
        ensure!(client.get(path).await?.status() == 404, "{path}");
    }
    Ok(())
}
