//! RabbitMQ: a node of its own with its own name server, users and virtual hosts from a definitions file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::process::{self, Process, Spec};
use crate::{Options, amqp, find_program, on_path, secret, user};

const NAME: &str = "rabbitmq";
const USER: &str = "rabbitmq";

pub(crate) fn url(options: &Options) -> Result<String> {
    let password = options.password(NAME)?;
    Ok(format!("amqp://taskflow:{password}@127.0.0.1:{}/taskflow", options.ports.rabbitmq))
}

pub(crate) async fn start(options: &Options) -> Result<Vec<Process>> {
    let dir = options.dir(NAME);
    for folder in [dir.clone(), dir.join("mnesia"), dir.join("home")] {
        user::own_dir(&folder, USER)?;
    }
    let config = configure(options)?;
    let epmd_port = options.ports.epmd.to_string();
    let epmd = Spec {
        program: on_path("epmd")
            .context("there is no epmd on this machine; install the package rabbitmq-server")?,
        args: ["-address", "127.0.0.1", "-port", &epmd_port].map(str::to_owned).to_vec(),
        env: Vec::new(),
        dir: dir.clone(),
        names: &["epmd"],
        log: options.log("epmd"),
        pid_file: options.pid_file("epmd"),
        user: USER,
        ports: vec![(options.ports.epmd, "Erlang's name server")],
        stop: Signal::SIGTERM,
    };
    let node = Spec {
        // Debian's wrapper on the PATH insists on its own user and folders.
        program: find_program(
            &[PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmq-server")],
            "rabbitmq-server",
            "install the package rabbitmq-server",
        )?,
        args: Vec::new(),
        env: environment(options, &config),
        names: &["beam.smp"],
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user: USER,
        ports: vec![(options.ports.rabbitmq, "RabbitMQ"), (options.ports.erlang, "Erlang's distribution")],
        dir,
        stop: Signal::SIGTERM,
    };
    // A node of a former run goes before the name server that it is known at.
    process::clear_leftover(&node).await?;
    let epmd = Process::start(epmd).await?;
    // Without it Erlang would start a name server that nobody stops.
    listening(options.ports.epmd, &epmd, &options.log("epmd")).await?;
    Ok(vec![epmd, Process::start(node).await?])
}

async fn listening(port: u16, process: &Process, log: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if !process.is_running() || Instant::now() > deadline {
            bail!(
                "Erlang's name server does not listen on port {port}; {} says:\n{}",
                log.display(),
                process::tail(log)
            );
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A node's data lie under its name. The name has the port for whoever looks at a list of processes, and stays when
/// the port changes: otherwise the queues would seem empty.
fn node_name(options: &Options) -> String {
    let mnesia = std::fs::read_dir(options.dir(NAME).join("mnesia")).into_iter().flatten().flatten();
    let mut known: Vec<String> = mnesia
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with("taskflow-") && name.ends_with("@localhost"))
        .collect();
    known.sort();
    known.into_iter().next().unwrap_or_else(|| format!("taskflow-{}@localhost", options.ports.rabbitmq))
}

fn environment(options: &Options, config: &str) -> Vec<(&'static str, String)> {
    let dir = options.dir(NAME);
    let at = |name: &str| dir.join(name).display().to_string();
    // The cookie, by which Erlang's nodes know each other, lies in its home.
    let mut environment = options.environment(&dir.join("home"));
    environment.extend([
        ("RABBITMQ_NODENAME", node_name(options)),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", options.ports.rabbitmq.to_string()),
        ("RABBITMQ_DIST_PORT", options.ports.erlang.to_string()),
        ("ERL_EPMD_PORT", options.ports.epmd.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_MNESIA_BASE", at("mnesia")),
        ("RABBITMQ_LOG_BASE", at("log")),
        ("RABBITMQ_PID_FILE", at("pid")),
        ("RABBITMQ_CONFIG_FILE", config.to_owned()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
        ("RABBITMQ_CONF_ENV_FILE", at("no-such-file")),
        // Then the script becomes Erlang, instead of standing between it and our signals.
        ("RUNNING_UNDER_SYSTEMD", "true".into()),
        // On few cores Erlang's busy waiting takes what the other servers need.
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+B i +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}".into(),
        ),
    ]);
    environment
}

fn vhosts(options: &Options) -> impl Iterator<Item = &str> {
    std::iter::once("taskflow").chain(options.vhosts.iter().map(String::as_str))
}

fn configure(options: &Options) -> Result<String> {
    let dir = options.dir(NAME);
    let definitions = json!({
        "users": [{
            "name": "taskflow",
            "password_hash": secret::rabbitmq_hash(&options.password(NAME)?)?,
            "hashing_algorithm": "rabbit_password_hashing_sha256",
            "tags": "administrator",
        }],
        "vhosts": hosts(vhosts(options)),
        "permissions": permissions(vhosts(options)),
    });
    let definitions_file = dir.join("definitions.json");
    let config_file = dir.join("rabbitmq.conf");
    let config = format!(
        "load_definitions = {}\n\
         listeners.tcp.default = 127.0.0.1:{}\n\
         log.console = true\nlog.console.level = warning\nlog.file = false\n\
         disk_free_limit.absolute = 1GB\n\
         vm_memory_high_watermark.relative = 0.4\n",
        definitions_file.display(),
        options.ports.rabbitmq
    );
    user::own_file(&definitions_file, USER, &definitions.to_string())?;
    user::own_file(&config_file, USER, &config)?;
    user::own_file(&dir.join("enabled_plugins"), USER, "[].")?;
    Ok(config_file.display().to_string())
}

fn hosts<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Value> {
    names.map(|name| json!({ "name": name })).collect()
}

/// All of our user's.
fn permissions<'a>(vhosts: impl Iterator<Item = &'a str>) -> Vec<Value> {
    vhosts
        .map(|vhost| json!({ "user": "taskflow", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*" }))
        .collect()
}

/// Makes virtual hosts on a node that runs, all with one call: each call costs a start of Erlang.
pub(crate) async fn add_vhosts(options: &Options, names: &[String]) -> Result<()> {
    let names = || names.iter().map(String::as_str);
    let definitions = json!({ "vhosts": hosts(names()), "permissions": permissions(names()) });
    let file = options.dir(NAME).join("more_vhosts.json");
    user::own_file(&file, USER, &definitions.to_string())?;
    control(options, &["import_definitions", &file.display().to_string()]).await.map(drop)
}

/// Runs RabbitMQ's own control program against this node.
pub(crate) async fn control(options: &Options, args: &[&str]) -> Result<String> {
    let config = options.dir(NAME).join("rabbitmq.conf").display().to_string();
    let mut command = user::command(Path::new("/usr/lib/rabbitmq/bin/rabbitmqctl"), USER)?;
    command.args(args).current_dir(options.dir(NAME)).envs(environment(options, &config));
    user::run(&mut command, "rabbitmqctl").await
}

/// It lets our user into the virtual host that was declared last: users, permissions and hosts are all there.
pub(crate) async fn is_ready(options: &Options) -> bool {
    let (Ok(password), Some(vhost)) = (options.password(NAME), vhosts(options).last()) else { return false };
    let login = amqp::log_in(options.ports.rabbitmq, "taskflow", &password, vhost);
    matches!(tokio::time::timeout(Duration::from_secs(5), login).await, Ok(Ok(())))
}
