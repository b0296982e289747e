//! RabbitMQ as three nodes: the world's own and two that join it, every queue on all three. The program's way in is
//! the first node; leaders are anywhere.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use taskflow_core::partition::Phase;
use taskflow_servers::Kind::RabbitMq;
use taskflow_servers::Ports;
use tokio::process::{Child, Command};

use super::failover::as_owner;
use super::{Fault, act, nothing};
use crate::harness::Harness;
use crate::wait;

pub static FAULTS: &[Fault] = &[
    Fault::new("broker: three nodes, one with leaders dies", act!(lose_one), act!(nothing))
        .prepared(act!(join))
        .spoils()
        .soak_only()
        .leader_death(),
    Fault::new("broker: three nodes, two die (no majority)", act!(lose_two), act!(start_lost))
        .prepared(act!(join))
        .spoils()
        .soak_only()
        .hold(15.0, 20.0)
        .stands()
        .refuses(),
    // Of a queue without a majority the broker says that it is empty.
    Fault::new(
        "broker: three nodes, two die while the number of partitions changes",
        act!(change_and_lose_two),
        act!(as_before),
    )
    .prepared(act!(join))
    .spoils()
    .soak_only()
    .hold(20.0, 20.0)
    .stands()
    .refuses(),
    Fault::new("broker: three nodes, ports between them blocked", act!(block), act!(unblock))
        .prepared(act!(join))
        .spoils()
        .soak_only()
        .hold(15.0, 30.0)
        .stands()
        .refuses(),
];

/// A node that joins the world's own.
struct Node {
    name: String,
    folder: PathBuf,
    env: HashMap<String, String>,
    process: Option<Child>,
}

impl Node {
    fn command(&self, program: &str) -> Result<Command> {
        let mut command = as_owner(&Path::new("/usr/lib/rabbitmq/bin").join(program), &self.folder)?;
        command.env_clear().envs(&self.env).current_dir(&self.folder).stdin(Stdio::null());
        Ok(command)
    }

    async fn ctl(&self, args: &[&str]) -> Result<()> {
        let output = self.command("rabbitmqctl")?.args(["-n", &self.name]).args(args).output().await?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "rabbitmqctl {args:?}: {text}");
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        let log = std::fs::File::create(self.folder.join(format!("{}.log", self.name)))?;
        let mut command = self.command("rabbitmq-server")?;
        self.process = Some(command.process_group(0).stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    async fn wait_up(&self) -> Result<()> {
        wait::until("the node is up", async || {
            Ok(self.ctl(&["await_startup", "--timeout", "60"]).await.is_ok())
        })
        .await
        .with_context(|| {
            let log = std::fs::read_to_string(self.folder.join(format!("{}.log", self.name)));
            let log = log.unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            format!("{} says:\n{}", self.name, lines[lines.len().saturating_sub(20)..].join("\n"))
        })
    }

    fn kill(&mut self) {
        if let Some(pid) = self.process.take().and_then(|process| process.id()) {
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The two that joined.
struct Nodes(Vec<Node>);

/// Ports that are blocked for as long as this lives.
struct Blocked(String);

impl Drop for Blocked {
    fn drop(&mut self) {
        let _ = rule("-D", &self.0);
    }
}

fn rule(action: &str, ports: &str) -> Result<()> {
    let rule = ["INPUT", "-i", "lo", "-p", "tcp", "-m", "multiport", "--ports", ports, "-j", "DROP"];
    let output = std::process::Command::new("iptables").arg(action).args(rule).output()?;
    ensure!(output.status.success(), "iptables: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn join(h: &mut Harness<'_>) -> Result<()> {
    let pid = h.server(RabbitMq, async |server| server.pid()).await.context("the broker does not run")?;
    let environ = std::fs::read(format!("/proc/{pid}/environ"))?;
    let environ = String::from_utf8(environ)?;
    let first: HashMap<String, String> = environ
        .split('\0')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let main = first.get("RABBITMQ_NODENAME").context("the node has no name")?.clone();
    let folder = h.world.folder_of(RabbitMq);
    let mut nodes = Vec::new();
    for number in 2..=3 {
        let (port, distribution) = (Ports::one()?, Ports::one()?);
        let name = format!("taskflow-{number}-{port}@localhost");
        let config = folder.join(format!("node{number}.conf"));
        let text = format!(
            "listeners.tcp.default = 127.0.0.1:{port}\nlog.console = true\nlog.console.level = warning\n\
             log.file = false\ndisk_free_limit.absolute = 1GB\n"
        );
        std::fs::write(&config, text)?;
        std::fs::set_permissions(&config, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        let at = |what: &str| folder.join("home").join(format!("node{number}-{what}")).display().to_string();
        let mut env = first.clone();
        env.extend([
            ("RABBITMQ_NODENAME".to_owned(), name.clone()),
            ("RABBITMQ_NODE_PORT".to_owned(), port.to_string()),
            ("RABBITMQ_DIST_PORT".to_owned(), distribution.to_string()),
            ("RABBITMQ_MNESIA_BASE".to_owned(), at("mnesia")),
            ("RABBITMQ_LOG_BASE".to_owned(), at("log")),
            ("RABBITMQ_PID_FILE".to_owned(), at("pid")),
            ("RABBITMQ_CONFIG_FILE".to_owned(), config.display().to_string()),
        ]);
        // What the first node's scripts have worked out is not true of this one.
        env.retain(|name, _| {
            !["RABBITMQ_MNESIA_DIR", "RABBITMQ_LOGS", "RABBITMQ_FEATURE_FLAGS_FILE"].contains(&name.as_str())
        });
        let mut node = Node { name, folder: folder.clone(), env, process: None };
        node.start()?;
        node.wait_up().await?;
        node.ctl(&["stop_app"]).await?;
        node.ctl(&["join_cluster", &main]).await?;
        node.ctl(&["start_app"]).await?;
        let grow =
            format!("rabbit_quorum_queue:grow('{}', <<\"^{}$\">>, <<\".*\">>, all).", node.name, h.vhost());
        h.rabbitmqctl(&["eval", &grow]).await?;
        nodes.push(node);
    }
    let rebalance = format!("rabbit_amqqueue:rebalance(quorum, <<\"^{}$\">>, <<\".*\">>).", h.vhost());
    h.rabbitmqctl(&["eval", &rebalance]).await?;
    h.kept.push(Box::new(Nodes(nodes)));
    Ok(())
}

fn nodes<'h>(h: &'h mut Harness<'_>) -> Result<&'h mut Vec<Node>> {
    let nodes = h.kept.iter_mut().find_map(|kept| kept.downcast_mut::<Nodes>());
    Ok(&mut nodes.context("no nodes have joined")?.0)
}

async fn lose_one(h: &mut Harness<'_>) -> Result<()> {
    let vhost = h.vhost().to_owned();
    let queues = h.rabbitmqctl(&["list_queues", "-p", &vhost, "--silent", "name", "leader"]).await?;
    let led = |node: &Node| queues.lines().any(|line| line.contains("commands") && line.contains(&node.name));
    let node = nodes(h)?
        .iter_mut()
        .find(|node| led(node))
        .with_context(|| format!("no leaders elsewhere:\n{queues}"))?;
    node.kill();
    Ok(())
}

async fn lose_two(h: &mut Harness<'_>) -> Result<()> {
    nodes(h)?.iter_mut().for_each(Node::kill);
    Ok(())
}

async fn start_lost(h: &mut Harness<'_>) -> Result<()> {
    let nodes = nodes(h)?;
    // All at once: one may wait for the other's tables.
    for node in nodes.iter_mut().filter(|node| node.process.is_none()) {
        node.start()?;
    }
    for node in nodes.iter() {
        node.wait_up().await?;
    }
    Ok(())
}

/// Messages wait in queues that are to go, since they are held back; then nobody can say so any more.
async fn change_and_lose_two(h: &mut Harness<'_>) -> Result<()> {
    told(h, &["pause", "--all", "--reason", "a backlog"]).await?;
    let site = h.site;
    let queues: Vec<String> = site.partitions().await?.iter().map(|partition| partition.queue()).collect();
    wait::until("messages wait", async || {
        Ok(site.link.depths(&queues).await?.values().filter(|depth| depth.ready > 0).count() > 1)
    })
    .await?;
    // It says that it is not done yet, with an error's code.
    h.cluster.run(&["partitions", "set", "7", "--wait", "0"], &[]).await?;
    wait::until("the old queues are to be emptied", async || {
        Ok(site.course().await?.phase == Phase::Draining)
    })
    .await?;
    lead_elsewhere(h).await?;
    lose_two(h).await
}

/// Of a queue whose leader it has itself the first node still knows what is in it.
async fn lead_elsewhere(h: &mut Harness<'_>) -> Result<()> {
    let vhost = h.vhost().to_owned();
    let names: Vec<String> = nodes(h)?.iter().map(|node| node.name.clone()).collect();
    let to = names.first().context("no nodes have joined")?;
    let order = format!(
        "[rabbit_quorum_queue:transfer_leadership(Q, '{to}') || Q <- rabbit_amqqueue:list(<<\"{vhost}\">>), \
         amqqueue:get_type(Q) =:= rabbit_quorum_queue], ok."
    );
    wait::until("the nodes that go have all the leaders", async || {
        h.rabbitmqctl(&["eval", &order]).await?;
        let queues = h.rabbitmqctl(&["list_queues", "-p", &vhost, "--silent", "name", "leader"]).await?;
        let mut partitions = queues.lines().filter(|line| line.starts_with("taskflow.commands."));
        Ok(partitions.all(|line| names.iter().any(|name| line.contains(name.as_str()))))
    })
    .await
}

async fn as_before(h: &mut Harness<'_>) -> Result<()> {
    let phase = h.site.course().await?.phase;
    ensure!(
        matches!(phase, Phase::Draining | Phase::Stopping),
        "{phase:?}: queues were left though nobody knew what is in them"
    );
    start_lost(h).await?;
    told(h, &["resume", "--all"]).await?;
    super::process::as_before(h).await
}

async fn told(h: &Harness<'_>, args: &[&str]) -> Result<()> {
    let output = h.cluster.run(args, &[]).await?;
    ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Each node is alone; the clients still reach the first one.
async fn block(h: &mut Harness<'_>) -> Result<()> {
    let mut ports: Vec<String> =
        nodes(h)?.iter().filter_map(|node| node.env.get("RABBITMQ_DIST_PORT").cloned()).collect();
    let pid = h.server(RabbitMq, async |server| server.pid()).await.context("the broker does not run")?;
    let environ = String::from_utf8(std::fs::read(format!("/proc/{pid}/environ"))?)?;
    let own = environ.split('\0').find_map(|pair| pair.strip_prefix("RABBITMQ_DIST_PORT="));
    ports.push(own.context("the node's port is not known")?.to_owned());
    let ports = ports.join(",");
    rule("-I", &ports)?;
    h.kept.push(Box::new(Blocked(ports)));
    Ok(())
}

/// The broker is back when each queue has its majority again: what the kernel has not delivered meanwhile it sends again
/// in pauses of up to half a minute, and a node that was silent for a minute is given up first.
async fn unblock(h: &mut Harness<'_>) -> Result<()> {
    h.kept.retain(|kept| !kept.is::<Blocked>());
    let order = format!(
        "[ok || Q <- rabbit_amqqueue:list(<<\"{}\">>), element(1, \
         ra:consistent_query(amqqueue:get_pid(Q), fun(_) -> ok end, 2000)) =/= ok].",
        h.vhost()
    );
    wait::until("every queue has its majority", async || {
        Ok(h.rabbitmqctl(&["eval", &order]).await?.trim() == "[]")
    })
    .await
}
