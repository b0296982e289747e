//! RabbitMQ: a node of its own with its own name server, users and virtual hosts from a definitions file.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::postgres::start_when_free;
use crate::process::{self, Process, Spec};
use crate::{Options, find_program, on_path};

const NAME: &str = "rabbitmq";
const USER: &str = "rabbitmq";

pub(crate) fn url(options: &Options) -> Result<String> {
    let password = options.password(NAME)?;
    Ok(format!("amqp://taskflow:{password}@127.0.0.1:{}/taskflow", options.ports.rabbitmq))
}

pub(crate) async fn start(options: &Options) -> Result<Vec<Process>> {
    let dir = options.dir(NAME);
    for folder in [dir.clone(), dir.join("mnesia"), dir.join("home")] {
        process::own_dir(&folder, USER)?;
    }
    let config = configure(options)?;
    let epmd_port = options.ports.epmd.to_string();
    let epmd = Spec {
        program: on_path("epmd")
            .context("there is no epmd on this machine; install the package rabbitmq-server")?,
        args: ["-address", "127.0.0.1", "-port", &epmd_port].map(str::to_owned).to_vec(),
        env: Vec::new(),
        dir: dir.clone(),
        log: options.log("epmd"),
        pid_file: options.pid_file("epmd"),
        user: USER,
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
        dir,
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user: USER,
        stop: Signal::SIGTERM,
    };
    process::clear_leftover(&node).await?;
    let mut processes = start_when_free(epmd, options.ports.epmd).await?;
    processes.extend(start_when_free(node, options.ports.rabbitmq).await?);
    Ok(processes)
}

fn environment(options: &Options, config: &str) -> Vec<(&'static str, String)> {
    let dir = options.dir(NAME);
    let at = |name: &str| dir.join(name).display().to_string();
    vec![
        ("HOME", at("home")),
        ("RABBITMQ_NODENAME", format!("taskflow-{}@localhost", options.ports.rabbitmq)),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODE_PORT", options.ports.rabbitmq.to_string()),
        ("RABBITMQ_DIST_PORT", options.ports.erlang.to_string()),
        ("ERL_EPMD_PORT", options.ports.epmd.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_MNESIA_BASE", at("mnesia")),
        ("RABBITMQ_LOG_BASE", at("log")),
        ("RABBITMQ_CONFIG_FILE", config.to_owned()),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins")),
        ("RABBITMQ_CONF_ENV_FILE", at("no-such-file")),
        // On few cores Erlang's busy waiting takes what the other servers need.
        (
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}".into(),
        ),
    ]
}

fn configure(options: &Options) -> Result<String> {
    let dir = options.dir(NAME);
    let vhosts: Vec<&str> =
        std::iter::once("taskflow").chain(options.vhosts.iter().map(String::as_str)).collect();
    let definitions = json!({
        "users": [{ "name": "taskflow", "password": options.password(NAME)?, "tags": "administrator" }],
        "vhosts": vhosts.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
        "permissions": vhosts.iter().map(|vhost| json!({
            "user": "taskflow", "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*",
        })).collect::<Vec<_>>(),
    });
    let definitions_file = dir.join("definitions.json");
    let config_file = dir.join("rabbitmq.conf");
    let plugins_file = dir.join("enabled_plugins");
    let config = format!(
        "load_definitions = {}\n\
         listeners.tcp.default = 127.0.0.1:{}\n\
         log.console = true\nlog.console.level = warning\nlog.file = false\n\
         disk_free_limit.absolute = 500MB\n\
         vm_memory_high_watermark.relative = 0.4\n",
        definitions_file.display(),
        options.ports.rabbitmq
    );
    for (file, text) in [
        (&definitions_file, definitions.to_string()),
        (&config_file, config),
        (&plugins_file, "[].".to_owned()),
    ] {
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        process::own_file(file, USER)?;
    }
    Ok(config_file.display().to_string())
}

/// Runs RabbitMQ's own control program against this node.
pub(crate) async fn control(options: &Options, args: &[&str]) -> Result<String> {
    let program = PathBuf::from("/usr/lib/rabbitmq/bin/rabbitmqctl");
    let config = options.dir(NAME).join("rabbitmq.conf").display().to_string();
    let mut command = process::command(&program, USER)?;
    command.args(args).current_dir(options.dir(NAME)).envs(environment(options, &config));
    process::run(&mut command, "rabbitmqctl").await
}

/// The node listens last of all; whoever gets `Connection.Start` from it can work with it.
pub(crate) async fn is_ready(options: &Options) -> bool {
    let greet = async {
        let mut stream = TcpStream::connect(("127.0.0.1", options.ports.rabbitmq)).await?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
        let mut frame = [0; 11];
        stream.read_exact(&mut frame).await?;
        // A method frame on channel 0: class 10, method 10.
        std::io::Result::Ok(frame[0] == 1 && frame[7..11] == [0, 10, 0, 10])
    };
    matches!(tokio::time::timeout(std::time::Duration::from_secs(2), greet).await, Ok(Ok(true)))
}
