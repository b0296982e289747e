//! Postgres: a cluster of its own, made at the first start, with passwords over TCP and no socket.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::process::{self, Process, Spec};
use crate::{Options, find_program, on_path, ports};

const NAME: &str = "postgres";
const USER: &str = "postgres";

pub(crate) fn url(options: &Options) -> Result<String> {
    let password = options.password(NAME)?;
    Ok(format!("postgres://taskflow:{password}@127.0.0.1:{}/taskflow", options.ports.postgres))
}

/// A program of the newest version that is installed.
fn program(name: &str) -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    versions.sort();
    let mut candidates: Vec<PathBuf> =
        versions.into_iter().rev().map(|(_, path)| path.join("bin").join(name)).collect();
    candidates.extend(on_path(name));
    find_program(&candidates, name, "install the package postgresql")
}

pub(crate) async fn start(options: &Options) -> Result<Vec<Process>> {
    let dir = options.dir(NAME);
    let data = dir.join("data");
    process::own_dir(&dir, USER)?;
    if !data.join("PG_VERSION").exists() {
        init(options, &data).await?;
    }
    let arg = |setting: &str| ["-c".to_owned(), setting.to_owned()];
    let mut args = vec!["-D".to_owned(), data.display().to_string()];
    for setting in [
        format!("port={}", options.ports.postgres).as_str(),
        "listen_addresses=127.0.0.1",
        // A path below a deep folder would be too long for a socket.
        "unix_socket_directories=",
        "max_connections=300",
        "shared_buffers=256MB",
        "wal_compression=on",
        "max_wal_size=4GB",
        "checkpoint_timeout=15min",
        // Loaded for the statistics of statements; its library comes with the server's package.
        "shared_preload_libraries=pg_stat_statements",
    ] {
        args.extend(arg(setting));
    }
    let spec = Spec {
        program: program("postgres")?,
        args,
        env: vec![("LC_ALL", "C.UTF-8".to_owned())],
        dir,
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user: USER,
        // Fast shutdown: ends the sessions, then stops in order.
        stop: Signal::SIGINT,
    };
    start_when_free(spec, options.ports.postgres).await
}

/// The port is looked at only after the leftover of a former run has gone.
pub(crate) async fn start_when_free(spec: Spec, port: u16) -> Result<Vec<Process>> {
    process::clear_leftover(&spec).await?;
    ports::must_be_free(port, &spec.program.display().to_string())?;
    Ok(vec![Process::start(spec).await?])
}

async fn init(options: &Options, data: &std::path::Path) -> Result<()> {
    // Made aside and moved: a start that dies half-way leaves nothing that looks like a cluster.
    let fresh = data.with_extension("fresh");
    let _ = std::fs::remove_dir_all(&fresh);
    let password_file = options.dir(NAME).join("password");
    std::fs::write(&password_file, options.password(NAME)?)?;
    process::own_file(&password_file, USER)?;
    let mut command = process::command(&program("initdb")?, USER)?;
    command
        .current_dir(options.dir(NAME))
        .arg("--pgdata")
        .arg(&fresh)
        .args(["--username=taskflow", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"])
        .arg(format!("--pwfile={}", password_file.display()));
    let made = process::run(&mut command, "initdb").await;
    std::fs::remove_file(&password_file)?;
    made?;
    std::fs::rename(&fresh, data).context("move the new cluster into its place")
}

pub(crate) async fn is_ready(options: &Options) -> bool {
    psql(options, "postgres", "SELECT 1").await.is_ok()
}

pub(crate) async fn create_database(options: &Options) -> Result<()> {
    let there = psql(options, "postgres", "SELECT 1 FROM pg_database WHERE datname = 'taskflow'").await?;
    if there.trim().is_empty() {
        psql(options, "postgres", "CREATE DATABASE taskflow").await?;
    }
    Ok(())
}

async fn psql(options: &Options, database: &str, sql: &str) -> Result<String> {
    let mut command = process::command(&program("psql")?, USER)?;
    command
        .current_dir("/")
        .args(["-X", "-A", "-t", "-h", "127.0.0.1", "-U", "taskflow", "-d", database, "-c", sql])
        .args(["-p", &options.ports.postgres.to_string()])
        .env("PGPASSWORD", options.password(NAME)?)
        .env("PGCONNECT_TIMEOUT", "2");
    process::run(&mut command, "psql").await
}
