//! `taskflow demo`, in short form: what it shows must be true, and whatever ends it, nothing of it stays.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use taskflow_tests::{Result, wait};
use tokio::process::Command;

use crate::{PROGRAM, with_own_servers};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_own_servers("demo: a worker killed, broker and Postgres restarted, nothing lost", whole),
        with_own_servers("demo: Ctrl-C half-way leaves nothing behind", interrupted),
    ]
}

fn folder() -> Result<tempfile::TempDir> {
    let folder = tempfile::Builder::new().prefix("taskflow-demo-").tempdir_in("/tmp")?;
    // The servers run as users of their own.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(folder)
}

fn demo(folder: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["demo", "--json", "--rate", "150", "--subjects", "48", "--rest", "1", "--data", "demo"])
        .current_dir(folder)
        // Settings of another deployment are none of its business.
        .env("TASKFLOW_POSTGRES__URL", "postgres://127.0.0.1:1/somebody_elses")
        .env("TASKFLOW_WORKER__MAX_BATCH", "not a number")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn whole() -> Result {
    let folder = folder()?;
    let output = demo(folder.path()).output().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "it ended with {}:\n{said}", output.status);
    let report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.clone())?;
    let count = &report["count"];
    ensure!(count["accepted"].as_i64() > Some(500) && count["accepted"] == count["applied"], "{report}");
    for wrong in ["lost", "doubled", "reordered", "stuck"] {
        ensure!(count[wrong] == 0, "{report}");
    }
    let acts = report["acts"].as_array().context("no acts")?;
    ensure!(acts.len() == 3, "{report}");
    for act in acts {
        ensure!(act["againseconds"].as_f64().is_some(), "not all partitions went on: {report}");
    }
    ensure!(acts[1]["awayseconds"].as_f64() > Some(0.1), "the broker was not away: {report}");
    // Lines for people, since there is no terminal.
    ensure!(said.contains("kill -9 of worker 1") && said.contains("stopping postgres"), "{said}");
    ensure!(!folder.path().join("demo").exists(), "its folder stays");
    Ok(())
}

async fn interrupted() -> Result {
    let folder = folder()?;
    let log = folder.path().join("said");
    let mut demo = demo(folder.path()).stderr(std::fs::File::create(&log)?).stdout(Stdio::null()).spawn()?;
    wait::until("it sends commands", async || Ok(std::fs::read_to_string(&log)?.contains("sending"))).await?;
    let pid = Pid::from_raw(demo.id().context("it has ended")?.cast_signed());
    kill(pid, Signal::SIGINT)?;
    let status = demo.wait().await?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    ensure!(!folder.path().join("demo").exists(), "its folder stays");
    let left = at_work_in(folder.path());
    ensure!(left.is_empty(), "these still run: {left:?}");
    Ok(())
}

/// Processes that work in a folder.
fn at_work_in(folder: &Path) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let works_there = |process: &std::fs::DirEntry| {
        std::fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder))
    };
    processes.filter(works_there).map(|process| process.path().display().to_string()).collect()
}
