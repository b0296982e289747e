//! The examples in docs/clients, run as they stand.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_tests::commands::{USER_EMAIL, USER_PASSWORD};
use taskflow_tests::{Result, Site, wait};
use tokio::process::Command;

use crate::{cluster, with_site};

/// An example.
struct Example {
    file: &'static str,
    runner: &'static str,
    /// Ends well where the example can run.
    probe: &'static [&'static str],
    /// Of the task that it makes.
    title: &'static str,
}

// The system's own Python has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";
const EXAMPLES: [Example; 4] = [
    Example { file: "curl.sh", runner: "bash", probe: &[], title: "From curl" },
    Example { file: "http_client.py", runner: PYTHON, probe: &["-c", "import httpx"], title: "From httpx" },
    Example { file: "amqp_client.py", runner: PYTHON, probe: &["-c", "import pika"], title: "From pika" },
    Example { file: "http_client.mjs", runner: "node", probe: &["--version"], title: "From fetch" },
];
const LONGEST: Duration = Duration::from_secs(60);

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site("the examples in docs/clients work", clients)]
}

async fn clients(site: Arc<Site>) -> Result {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?.join("docs/clients");
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        let known = name == "README.md" || EXAMPLES.iter().any(|example| example.file == name);
        ensure!(known, "docs/clients/{name} is not run by this test");
    }
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    for Example { file, runner, probe, title } in EXAMPLES {
        let probed = Command::new(runner).args(probe).stdin(Stdio::null()).output().await;
        if !probe.is_empty() && !probed.is_ok_and(|probed| probed.status.success()) {
            eprintln!(
                "skipped: docs/clients/{file}, since {runner} {} fails; see ops/setup",
                probe.join(" ")
            );
            continue;
        }
        let run = Command::new(runner)
            .arg(folder.join(file))
            .env("TASKFLOW_API", client.base())
            .env("TASKFLOW_AMQP__URL", &site.rabbit.url)
            .env("TASKFLOW_EMAIL", USER_EMAIL)
            .env("TASKFLOW_PASSWORD", USER_PASSWORD)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let run = tokio::time::timeout(LONGEST, run).await.with_context(|| format!("{file} hangs"))??;
        let said =
            format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        ensure!(run.status.success(), "{file} ended with {}:\n{said}", run.status);
        let both = format!(
            "SELECT count(*) FROM tasks WHERE title = '{title}' AND status = 'in_progress' AND priority = 'high'"
        );
        wait::until("both commands are applied", async || Ok(site.count(&both).await? == 1))
            .await
            .with_context(|| format!("{file} said:\n{said}"))?;
    }
    worker.stop().await
}
