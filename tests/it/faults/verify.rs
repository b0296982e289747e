//! `taskflow verify`: clean where the promise holds, loud where somebody has meddled.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

const ALLOWED: (&str, &str) = ("TASKFLOW_VERIFY__ALLOWED", "true");
const MAY_BREAK: (&str, &str) = ("TASKFLOW_VERIFY__MAY_BREAK", "true");

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("verify finds nothing wrong while workers die", clean),
        with_site("verify finds what somebody has changed behind our back", meddled),
        with_site("verify breaks things by itself, and knows what is stuck", breaking),
        with_site("verify asks for consent", consent),
    ]
}

async fn clean(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let mut worker = cluster.worker()?;
    let args = ["verify", "--json", "--seconds", "8", "--rate", "150", "--subjects", "16"];
    let verify = cluster.command(&args, &[ALLOWED]).output();
    let kill = async {
        for _ in 0..2 {
            let before = site.count("SELECT count(*) FROM receipts").await?;
            wait::until("commands are applied", async || {
                Ok(site.count("SELECT count(*) FROM receipts").await? > before + 100)
            })
            .await?;
            let successor = cluster.worker()?;
            std::mem::replace(&mut worker, successor).kill().await?;
        }
        anyhow::Ok(())
    };
    let (output, killed) = tokio::join!(verify, kill);
    killed?;
    let output = output?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&text)?;
    let count = &report["count"];
    ensure!(count["accepted"].as_i64() > Some(300) && count["accepted"] == count["applied"], "{report}");
    // It leaves no task behind.
    wait::until("its tasks are deleted", async || {
        Ok(site.count("SELECT count(*) FROM tasks WHERE deleted_at IS NULL").await? == 0)
    })
    .await?;
    worker.stop().await
}

async fn meddled(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let args = ["verify", "--json", "--seconds", "5", "--rate", "20", "--subjects", "4", "--patience", "5"];
    let verify = cluster.command(&args, &[ALLOWED]).output();
    let meddle = async {
        wait::until("tasks are there", async || Ok(site.count("SELECT count(*) FROM tasks").await? == 4))
            .await?;
        // Skips a version: the next update does not find the one that it names.
        site.sql("UPDATE tasks SET version = version + 1 WHERE id = (SELECT min(id::text)::uuid FROM tasks)")
            .await
    };
    let (output, meddled) = tokio::join!(verify, meddle);
    meddled?;
    let output = output?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).context("no report")?;
    ensure!(report["count"]["reordered"].as_i64() > Some(0), "{report}");
    ensure!(report["count"]["examples"][0].is_string(), "{report}");
    worker.stop().await
}

async fn breaking(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (worker, other) = (cluster.worker()?, cluster.worker()?);
    let hook = cluster.folder().join("hook");
    let run = format!("echo broken >> {}", hook.display());
    let args = [
        "verify",
        "--json",
        "--seconds",
        "8",
        "--rate",
        "100",
        "--subjects",
        "16",
        "--every",
        "1",
        "--break",
        "lease,sessions",
        "--run",
        &run,
    ];
    let output = cluster.run(&args, &[ALLOWED, MAY_BREAK]).await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_str(&text)?;
    let broken = report["broken"].as_array().context("nothing was broken")?;
    for what in ["lease", "sessions", "echo"] {
        let one = broken.iter().find(|one| one["what"].as_str().is_some_and(|text| text.contains(what)));
        ensure!(one.is_some_and(|one| one["error"].is_null()), "{what}: {report}");
    }
    ensure!(std::fs::read_to_string(hook)?.starts_with("broken"), "the operator's command did not run");
    ensure!(report["twice"].as_i64() > Some(0), "{report}");
    let source = report["source"].as_str().context("no source")?;
    ensure!(source.starts_with("/taskflow/verify/"), "{report}");
    other.stop().await?;

    // Workers that are there, and hold one partition back: what waits is stuck, not lost.
    let before = site.count("SELECT count(*) FROM tasks").await?;
    let args = ["verify", "--json", "--seconds", "5", "--rate", "30", "--subjects", "24", "--patience", "5"];
    let verify = cluster.command(&args, &[ALLOWED]).output();
    let pause = async {
        wait::until("tasks are there", async || {
            Ok(site.count("SELECT count(*) FROM tasks").await? > before + 20)
        })
        .await?;
        cluster.run(&["pause", "--partition", "01", "--reason", "a test"], &[]).await
    };
    let (output, paused) = tokio::join!(verify, pause);
    ensure!(paused?.status.success(), "not paused");
    let output = output?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).context("no report")?;
    let count = &report["count"];
    ensure!(count["stuck"].as_i64() > Some(0) && count["lost"] == 0 && count["reordered"] == 0, "{report}");
    cluster.run(&["resume", "--partition", "01"], &[]).await?;
    worker.stop().await
}

async fn consent(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    for (args, env, hint) in [
        (vec!["verify"], vec![], "verify.allowed"),
        (
            vec!["verify"],
            vec![ALLOWED, ("TASKFLOW_ENVIRONMENT", "production")],
            "verify.allowed_in_production",
        ),
        (vec!["verify", "--break", "lease"], vec![ALLOWED], "verify.may_break"),
        (vec!["verify", "--run", "true"], vec![ALLOWED], "verify.may_break"),
    ] {
        let refused = cluster.run(&args, &env).await?;
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(2) && text.contains(hint), "{text}");
    }
    Ok(())
}
