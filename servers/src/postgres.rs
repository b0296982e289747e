//! Postgres: a cluster of its own, made at the first start, with passwords over TCP and no socket.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::process::{Process, Spec};
use crate::{Options, find_program, on_path, proc, user};

const NAME: &str = "postgres";
const USER: &str = "postgres";

pub(crate) fn url(options: &Options) -> Result<String> {
    let password = options.password(NAME)?;
    Ok(format!("postgres://taskflow:{password}@127.0.0.1:{}/taskflow", options.ports.postgres))
}

/// A program of the newest version that is installed.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
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
    user::own_dir(&dir, USER)?;
    if !data.join("PG_VERSION").exists() {
        init(options, &data).await?;
    }
    forget_stranger(&data);
    let mut settings = vec![
        format!("port={}", options.ports.postgres),
        "listen_addresses=127.0.0.1".into(),
        // A path below a deep folder would be too long for a socket.
        "unix_socket_directories=".into(),
        // The promise is tested here by killing: nothing that a commit waits for is left out.
        "fsync=on".into(),
        "synchronous_commit=on".into(),
        "max_connections=300".into(),
        "shared_buffers=256MB".into(),
        "wal_compression=on".into(),
        "max_wal_size=2GB".into(),
        "checkpoint_timeout=15min".into(),
    ];
    if has_statement_statistics() {
        settings.push("shared_preload_libraries=pg_stat_statements".into());
    }
    let mut args = vec!["-D".to_owned(), data.display().to_string()];
    args.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
    let spec = Spec {
        program: program("postgres")?,
        args,
        env: options.environment(&dir),
        dir,
        names: &["postgres"],
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user: USER,
        ports: vec![(options.ports.postgres, "Postgres")],
        // Fast shutdown: ends the sessions, then stops in order.
        stop: Signal::SIGINT,
    };
    Ok(vec![Process::start(spec).await?])
}

/// Postgres will not start while its old process number is somebody's, and after a crash that may be anybody's. It is
/// right to wait only if that process is a server in this very folder, and such a one is stopped a step later.
fn forget_stranger(data: &Path) {
    let file = data.join("postmaster.pid");
    let pid =
        std::fs::read_to_string(&file).ok().and_then(|text| text.lines().next()?.trim().parse::<u32>().ok());
    if let Some(pid) = pid
        && proc::Identity::of(pid).is_some()
        && !proc::working_in(data, &["postgres"]).iter().any(|server| server.pid == pid)
    {
        tracing::info!(pid, "The process number of the former Postgres belongs to another program now.");
        // If it can't be removed, Postgres says so itself.
        let _ = std::fs::remove_file(file);
    }
}

/// The library comes with Debian's server package, elsewhere with one of its own.
fn has_statement_statistics() -> bool {
    let library = |folder: PathBuf| folder.join("pg_stat_statements.so").is_file();
    program("postgres").ok().and_then(|program| program.canonicalize().ok()).is_some_and(|program| {
        program
            .ancestors()
            .nth(2)
            .is_some_and(|home| library(home.join("lib")) || library(home.join("lib/postgresql")))
    })
}

async fn init(options: &Options, data: &Path) -> Result<()> {
    // Made aside and moved: a start that dies half-way leaves nothing that looks like a cluster.
    let fresh = data.with_extension("fresh");
    let _ = std::fs::remove_dir_all(&fresh);
    let password_file = options.dir(NAME).join("password");
    user::own_file(&password_file, USER, &options.password(NAME)?)?;
    let mut command = user::command(&program("initdb")?, USER)?;
    command
        .current_dir(options.dir(NAME))
        .arg("--pgdata")
        .arg(&fresh)
        .args(["--username=taskflow", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8"])
        .arg(format!("--pwfile={}", password_file.display()));
    let made = user::run(&mut command, "initdb").await;
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
    let mut command = user::command(&program("psql")?, USER)?;
    command
        .current_dir("/")
        .args(["-X", "-A", "-t", "-h", "127.0.0.1", "-U", "taskflow", "-d", database, "-c", sql])
        .args(["-p", &options.ports.postgres.to_string()])
        .env("PGPASSWORD", options.password(NAME)?)
        .env("PGCONNECT_TIMEOUT", "2");
    user::run(&mut command, "psql").await
}
