//! `taskflow dev`: everything on this machine, from nothing.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use taskflow_servers::{Ports, Servers};
use taskflow_stores::{mongo, postgres};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::role::{self, Role};
use super::seed;
use crate::exit::Exit;
use crate::lifecycle::Signals;
use crate::settings::{Environment, Settings, without_password};
use crate::{lifecycle, telemetry};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Folder for data, logs, passwords and dev.env
    #[arg(long, default_value = ".taskflow", value_name = "FOLDER")]
    data: PathBuf,
    /// First of the six ports of the stores
    #[arg(long, default_value_t = 17_400, value_name = "PORT")]
    first_port: u16,
    /// Start the stores alone, for roles that you start yourself
    #[arg(long)]
    only_stores: bool,
}

pub(crate) async fn run(options: Options, mut settings: Settings) -> Result<ExitCode, Exit> {
    telemetry::start_logs(&settings)?;
    let metrics = telemetry::start_metrics()?;
    // Before anything slow: a port in use should be told at once.
    let start = Instant::now();
    let mut signals = Signals::listen()?;
    println!("Starting Postgres, RabbitMQ, MongoDB and Redis under {} …", options.data.display());
    let servers = taskflow_servers::Options {
        data_dir: options.data.clone(),
        ports: Ports::from(options.first_port),
        vhosts: Vec::new(),
        preload: None,
    };
    // Dropped half-way, what has started is stopped.
    let mut servers = tokio::select! {
        servers = Servers::start(&servers) => servers?,
        _ = signals.interrupt.recv() => return Ok(ExitCode::FAILURE),
        _ = signals.terminate.recv() => return Ok(ExitCode::FAILURE),
    };
    let result = work(&options, &mut settings, &servers, metrics, signals, start).await;
    println!("Stopping the stores …");
    servers.stop().await;
    result
}

async fn work(
    options: &Options,
    settings: &mut Settings,
    servers: &Servers,
    metrics: taskflow_api::Metrics,
    signals: Signals,
    start: Instant,
) -> Result<ExitCode, Exit> {
    servers.postgres.url().clone_into(&mut settings.postgres.url);
    servers.rabbitmq.url().clone_into(&mut settings.amqp.url);
    servers.mongodb.url().clone_into(&mut settings.mongodb.url);
    servers.redis.url().clone_into(&mut settings.redis.url);
    settings.environment = Environment::Development;
    seal_under(&options.data, settings)?;

    let pool = postgres::connect(&settings.postgres, "taskflow dev")?;
    let database = mongo::connect(&settings.mongodb, "taskflow dev").await?;
    let applied = postgres::migrate::up(&pool, None).await?.versions.len()
        + mongo::migrate::up(&database, None).await?.len();
    let (users, tasks) = seed::insert(&pool).await?;
    println!("Schemas: {applied} versions applied; sample data: {users} users and {tasks} tasks are new.");
    pool.close().await;

    let env_file = options.data.join("dev.env");
    write_env(&env_file, settings)?;
    let stop = CancellationToken::new();
    if options.only_stores {
        println!("{}", welcome(settings, &env_file, true, start));
        let mut parts = JoinSet::new();
        let stopped = stop.clone();
        parts.spawn(async move {
            stopped.cancelled().await;
            "stores"
        });
        return Ok(lifecycle::run(parts, signals, stop).await);
    }
    let running = role::start(settings, &Role::ALL, metrics, &stop).await?;
    running.ready().await?;
    println!("{}", welcome(settings, &env_file, false, start));
    Ok(running.until_stopped(signals, stop).await)
}

/// The seals' keys and their third copy lie beside the stores' data. The first start makes the keys.
fn seal_under(data: &Path, settings: &mut Settings) -> Result<(), Exit> {
    let folder = std::path::absolute(data.join("audit")).context("find the folder of the seals")?;
    settings.audit.key_path = folder.join("seal.key");
    settings.audit.public_keys_path = folder.join("seal.pub");
    settings.audit.seals_folder = folder.join("seals");
    if !settings.audit.key_path.exists() {
        super::audit::make_keys(settings)?;
    }
    Ok(())
}

/// Addresses with passwords: readable by their owner alone.
fn write_env(file: &Path, settings: &Settings) -> anyhow::Result<()> {
    let mut text = String::new();
    let path = |path: &Path| path.display().to_string();
    for (name, value) in [
        ("POSTGRES__URL", settings.postgres.url.as_str()),
        ("AMQP__URL", &settings.amqp.url),
        ("MONGODB__URL", &settings.mongodb.url),
        ("REDIS__URL", &settings.redis.url),
        ("HTTP__LISTEN", &settings.http.listen.to_string()),
        ("AUDIT__KEY_PATH", &path(&settings.audit.key_path)),
        ("AUDIT__PUBLIC_KEYS_PATH", &path(&settings.audit.public_keys_path)),
        ("AUDIT__SEALS_FOLDER", &path(&settings.audit.seals_folder)),
        ("ENVIRONMENT", "development"),
    ] {
        // As a shell reads it: a path may hold anything.
        let _ = writeln!(text, "TASKFLOW_{name}='{}'", value.replace('\'', "'\\''"));
    }
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create(true).truncate(true).mode(0o600);
    open.open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", file.display()))
}

fn welcome(settings: &Settings, env_file: &Path, only_stores: bool, start: Instant) -> String {
    let mut text = format!("\nTaskFlow is up after {:.1} s.\n\n", start.elapsed().as_secs_f64());
    if !only_stores {
        let _ = writeln!(
            text,
            "  HTTP       http://{0}   every call, to try: http://{0}/docs",
            settings.http.listen
        );
        let _ = writeln!(text, "  Metrics    http://{}/metrics", settings.metrics.address(&Role::ALL));
        let logins = seed::LOGINS.map(|(email, password)| format!("{email} / {password}")).join("   ");
        let _ = writeln!(text, "  Log in as  {logins}");
    }
    for (name, url) in [
        ("Postgres", &settings.postgres.url),
        ("RabbitMQ", &settings.amqp.url),
        ("MongoDB", &settings.mongodb.url),
        ("Redis", &settings.redis.url),
    ] {
        let _ = writeln!(text, "  {name:<9}  {}", without_password(url));
    }
    let env = env_file.display();
    let _ = write!(
        text,
        "\n  For other programs: set -a; . {env}; set +a   (it holds the passwords)\n  Ctrl-C stops all of it and keeps the data.\n"
    );
    text
}
