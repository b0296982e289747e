//! The program's subcommands, as an operator runs them.

use std::process::Output;
use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{command, id, ndjson};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("send, receipt and doctor", send_and_look),
        with_site("the schemas go down and up again", migrations),
        with_site("wrong settings stop the start and say why", settings),
        with_site("what an alert is about is counted from the start", from_the_start),
        with_site("an unreachable store ends with 69", unavailable),
        with_site("a small benchmark runs", bench),
    ]
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

async fn send_and_look(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("commands.ndjson");
    let commands: Vec<Value> =
        (0..20).map(|_| command("task.create", id(), json!({ "title": "sent" }))).collect();
    std::fs::write(&file, ndjson(&commands))?;
    let path = file.display().to_string();
    let sent = cluster.run(&["send", &path, "--wait", "--json"], &[]).await?;
    ensure!(sent.status.success(), "{}", text(&sent));
    let answer: Value = serde_json::from_slice(&sent.stdout)?;
    ensure!(answer == json!({ "accepted": 20, "refused": [], "withoutreceipt": 0 }), "{answer}");
    std::fs::write(&file, "{\"specversion\":\"1.0\"}\n")?;
    let sent = cluster.run(&["send", &path], &[]).await?;
    ensure!(
        sent.status.code() == Some(1) && text(&sent).contains("line 1: /id: is required"),
        "{}",
        text(&sent)
    );

    let first = commands[0]["id"].as_str().unwrap_or_default();
    let receipt = cluster.run(&["receipt", first, "--watch", "--json"], &[]).await?;
    let receipt: Value = serde_json::from_slice(&receipt.stdout)?;
    ensure!(receipt["status"] == "applied" && receipt["auditedat"].is_string(), "{receipt}");
    let none = cluster.run(&["receipt", &id().to_string()], &[]).await?;
    ensure!(none.status.code() == Some(1), "{}", text(&none));

    let doctor = cluster.run(&["doctor"], &[]).await?;
    ensure!(doctor.status.success() && text(&doctor).contains("schema is current"), "{}", text(&doctor));
    // What is paused is not blamed on the workers.
    cluster.run(&["pause", "--all", "--reason", "a look at the disks"], &[]).await?;
    wait::until("the partitions are let go", async || {
        let queues = site.partitions().await?;
        for queue in queues {
            if site.link.depth(&queue.queue()).await?.consumers > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    let one = [command("task.create", id(), json!({ "title": "waits" }))];
    std::fs::write(&file, ndjson(&one))?;
    let sent = cluster.run(&["send", &path], &[]).await?;
    ensure!(sent.status.success(), "{}", text(&sent));
    let doctor = text(&cluster.run(&["doctor"], &[]).await?);
    ensure!(
        doctor.contains("paused: all, by") && doctor.contains("a look at the disks"),
        "the pause is not told: {doctor}"
    );
    ensure!(
        doctor.contains("a pause holds it back") && !doctor.contains("no worker consumes it"),
        "{doctor}"
    );
    cluster.run(&["resume", "--all"], &[]).await?;
    for shell in ["bash", "zsh", "fish"] {
        let script = cluster.run(&["completions", shell], &[]).await?;
        ensure!(script.status.success() && text(&script).contains("taskflow"), "{shell}");
    }
    worker.stop().await
}

async fn migrations(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let run = async |args: &[&str]| -> Result<String> {
        let output = cluster.run(args, &[]).await?;
        ensure!(output.status.success(), "{args:?}: {}", text(&output));
        Ok(text(&output))
    };
    let refused = cluster.run(&["migrate", "down"], &[]).await?;
    ensure!(refused.status.code() == Some(2) && text(&refused).contains("--yes"), "{}", text(&refused));
    let indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'";
    let before = site.count(indexes).await?;
    run(&["migrate", "down", "--yes", "--to", "0", "--mongo-to", "0"]).await?;
    ensure!(
        site.count("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await? == 1,
        "tables are left"
    );
    let status = run(&["migrate", "status"]).await?;
    ensure!(status.contains("  pending  ") && !status.contains("  applied  "), "{status}");
    run(&["migrate", "up"]).await?;
    ensure!(site.count(indexes).await? == before, "other indexes than before");
    ensure!(run(&["migrate", "up"]).await?.contains("nothing to do"), "not repeatable");
    // An index that was not built to its end is built anew.
    site.sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'idx_tasks_overdue'::regclass")
        .await?;
    site.sql("DELETE FROM _sqlx_migrations WHERE version IN (9, 13)").await?;
    site.sql("CREATE INDEX idx_tasks_status_priority ON tasks (status); CREATE INDEX idx_tasks_assignee ON tasks (assignee_id);
              CREATE INDEX idx_tasks_creator ON tasks (creator_id); CREATE INDEX idx_tasks_active ON tasks (id);
              CREATE INDEX idx_tasks_deleted_at ON tasks (deleted_at)").await?;
    run(&["migrate", "up"]).await?;
    ensure!(
        site.count("SELECT count(*) FROM pg_index WHERE NOT indisvalid").await? == 0,
        "an invalid index is left"
    );
    Ok(())
}

/// A rate of a series that begins at its first event does not see that event.
async fn from_the_start(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let of_worker: &[&str] = &[
        "taskflow_task_restarts_total{task=\"partition\"}",
        "taskflow_task_restarts_total{task=\"gauges\"}",
        "taskflow_command_duplicates_total{result=\"mismatch\"}",
        "taskflow_sensitive_operations_total{operation=\"admin_registration\"}",
        "taskflow_fenced_batches_total",
        "taskflow_declared_again_total",
        "taskflow_journal_dropped_total",
        "taskflow_events_refused_total",
        "taskflow_commands_refused_total{reason=\"unavailable\"}",
    ];
    let of_scheduler: &[&str] = &[
        "taskflow_job_runs_total{job=\"backup.drill\",outcome=\"failed\"}",
        "taskflow_job_runs_total{job=\"retention.events\",outcome=\"timed_out\"}",
    ];
    for (role, wanted) in [("worker", of_worker), ("scheduler", of_scheduler)] {
        let listen = taskflow_tests::free_address()?;
        let process = cluster.spawn(role, &[("TASKFLOW_METRICS__LISTEN", &listen)])?;
        wait::until("each of them is there, at 0", async || {
            let text = reqwest::get(format!("http://{listen}/metrics")).await?.text().await?;
            Ok(wanted.iter().all(|series| text.lines().any(|line| line == format!("{series} 0"))))
        })
        .await?;
        process.stop().await?;
    }
    Ok(())
}

async fn settings(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let cases = [
        ("TASKFLOW_WORKER__LINGER", "3", "worker.linger: unknown setting", "did you mean `linger_ms`?"),
        (
            "TASKFLOW_WORKER__MAX_BATCH",
            "many",
            "worker.max_batch",
            "the environment, TASKFLOW_WORKER__MAX_BATCH",
        ),
        ("TASKFLOW_ENVIRONMENT", "testing", "environment", "production"),
        ("TASKFLOW_LOG", "no=such=filter", "log", "no=such=filter"),
        (
            "TASKFLOW_POSTGRES__URL_FILE",
            "/no/such/file",
            "TASKFLOW_POSTGRES__URL_FILE=/no/such/file",
            "No such file",
        ),
    ];
    for (name, value, one, two) in cases {
        let output = cluster.run(&["worker"], &[(name, value)]).await?;
        let text = text(&output);
        ensure!(
            output.status.code() == Some(2) && text.contains(one) && text.contains(two),
            "{name}={value}: {:?} {text}",
            output.status
        );
    }
    let seed = cluster.run(&["seed"], &[("TASKFLOW_ENVIRONMENT", "production")]).await?;
    ensure!(seed.status.code() == Some(2) && text(&seed).contains("--force"), "{}", text(&seed));
    // What the examples of docs/clients take is no setting of ours, and no mistake.
    let seed = cluster.run(&["seed", "--json"], &[("TASKFLOW_EMAIL", "a@example.org")]).await?;
    ensure!(seed.status.success(), "{}", text(&seed));
    // A file is read before the environment, and named when it is wrong.
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("taskflow.toml");
    std::fs::write(&file, "[worker]\nmax_bach = 3\n")?;
    let output = cluster.run(&["--config", &file.display().to_string(), "worker"], &[]).await?;
    ensure!(
        text(&output).contains("taskflow.toml") && text(&output).contains("did you mean `max_batch`?"),
        "{}",
        text(&output)
    );
    Ok(())
}

async fn unavailable(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let nowhere = [
        ("TASKFLOW_POSTGRES__URL", "postgres://x:y@127.0.0.1:1/none"),
        ("TASKFLOW_POSTGRES__ACQUIRE_TIMEOUT_MS", "500"),
    ];
    let receipt = cluster.run(&["receipt", &id().to_string()], &nowhere).await?;
    ensure!(
        receipt.status.code() == Some(69) && text(&receipt).contains("postgres"),
        "{:?} {}",
        receipt.status,
        text(&receipt)
    );
    // Of all stores, the one that is not there is named with where it was looked for, and without its password.
    let doctor = cluster.run(&["doctor"], &nowhere).await?;
    let said = text(&doctor);
    ensure!(
        doctor.status.code() == Some(1)
            && said.contains("(postgres.url is postgres://127.0.0.1:1/none)")
            && said.contains("ok       rabbitmq  reachable"),
        "{:?} {said}",
        doctor.status
    );
    let nowhere =
        [("TASKFLOW_AMQP__URL", "amqp://127.0.0.1:1/none"), ("TASKFLOW_AMQP__CONNECT_TIMEOUT_MS", "500")];
    let send = cluster.run(&["send", "/dev/null"], &nowhere).await?;
    ensure!(
        send.status.code() == Some(69) && text(&send).contains("rabbitmq"),
        "{:?} {}",
        send.status,
        text(&send)
    );
    Ok(())
}

async fn bench(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let folder = tempfile::Builder::new().prefix("taskflow-bench-").tempdir_in("/tmp")?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let data = folder.path().join("data").display().to_string();
    let args = [
        "bench",
        "--commands",
        "600",
        "--rounds",
        "1",
        "--seconds",
        "1",
        "--lone",
        "20",
        // Two thousand sockets and millions of events are for a machine that has nothing else to do.
        "--phases",
        "drain,mixed,intake,latency,low",
        "--data",
        &data,
        "--json",
    ];
    let output = cluster.run(&args, &[]).await?;
    ensure!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let names: Vec<&str> =
        report["figures"].as_array().into_iter().flatten().filter_map(|f| f["name"].as_str()).collect();
    ensure!(names.contains(&"TaskFlow / floor") && names.contains(&"publish to commit, p99"), "{names:?}");
    Ok(())
}
