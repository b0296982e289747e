//! A Redis Cluster as processes: three masters with a replica each.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue};
use taskflow_servers::Ports;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::wait;

const MASTERS: usize = 3;
const NODES: usize = MASTERS * 2;
const PASSWORD: &str = "of-the-cluster";
/// After so long without a sign a node is taken for dead, in milliseconds.
const NODE_TIMEOUT_MS: u32 = 2_000;
/// Slots of any cluster.
const SLOTS: usize = 16_384;

/// One node, running or not.
struct Node {
    port: u16,
    bus: u16,
    id: String,
    process: Option<Child>,
}

/// A cluster. It ends when it is dropped.
pub struct RedisCluster {
    nodes: Vec<Node>,
    folder: TempDir,
}

impl RedisCluster {
    /// Starts a cluster and waits until it serves every slot and every master has its replica.
    pub async fn start() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("taskflow-cluster-").tempdir_in("/tmp")?;
        let all = |ports: Ports| {
            [ports.postgres, ports.rabbitmq, ports.erlang, ports.epmd, ports.mongodb, ports.redis]
        };
        let ports = all(Ports::free()?).into_iter().zip(all(Ports::free()?));
        let node = |(port, bus)| Node { port, bus, id: String::new(), process: None };
        let mut cluster = Self { nodes: ports.map(node).collect(), folder };
        for number in 0..NODES {
            cluster.start_node(number).await?;
        }
        cluster.join().await?;
        Ok(cluster)
    }

    /// Its address for the program: that of every node.
    pub fn url(&self) -> String {
        self.nodes.iter().map(Node::url).collect::<Vec<_>>().join(",")
    }

    async fn start_node(&mut self, number: usize) -> Result<()> {
        let folder = self.folder.path().join(number.to_string());
        std::fs::create_dir_all(&folder)?;
        let log = std::fs::File::create(folder.join("log"))?;
        let node = &mut self.nodes[number];
        let mut command = Command::new("redis-server");
        let (port, bus, timeout) = (node.port.to_string(), node.bus.to_string(), NODE_TIMEOUT_MS.to_string());
        let settings = [
            ("port", port.as_str()),
            ("cluster-port", &bus),
            ("bind", "127.0.0.1"),
            ("requirepass", PASSWORD),
            ("masterauth", PASSWORD),
            ("appendonly", "yes"),
            ("save", ""),
            ("cluster-enabled", "yes"),
            ("cluster-node-timeout", &timeout),
            // A replica that was cut off for long is better than none.
            ("cluster-replica-validity-factor", "0"),
        ];
        for (name, value) in settings {
            command.arg(format!("--{name}")).arg(value);
        }
        command.current_dir(&folder).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        node.process = Some(command.kill_on_drop(true).spawn().context("start redis-server")?);
        let node = &self.nodes[number];
        wait::until("the node answers", async || Ok(node.ask::<String>(&["PING"]).await? == "PONG")).await
    }

    async fn join(&mut self) -> Result<()> {
        for (number, node) in self.nodes.iter_mut().enumerate() {
            node.id = node.ask(&["CLUSTER", "MYID"]).await?;
            node.ask::<()>(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await?;
        }
        let (first, others) = self.nodes.split_first().context("no nodes")?;
        for other in others {
            let (port, bus) = (other.port.to_string(), other.bus.to_string());
            first.ask::<()>(&["CLUSTER", "MEET", &Ipv4Addr::LOCALHOST.to_string(), &port, &bus]).await?;
        }
        for (number, master) in self.nodes[..MASTERS].iter().enumerate() {
            let (from, to) = (SLOTS * number / MASTERS, SLOTS * (number + 1) / MASTERS - 1);
            master.ask::<()>(&["CLUSTER", "ADDSLOTSRANGE", &from.to_string(), &to.to_string()]).await?;
        }
        wait::until("all nodes know each other", async || {
            for node in &self.nodes {
                let info: String = node.ask(&["CLUSTER", "INFO"]).await?;
                if !info.contains(&format!("cluster_known_nodes:{NODES}")) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .await?;
        for number in 0..MASTERS {
            self.nodes[number + MASTERS].ask::<()>(&["CLUSTER", "REPLICATE", &self.nodes[number].id]).await?;
        }
        self.wait_whole().await
    }

    /// Waits until every node runs, serves what it should, and every replica follows.
    pub async fn wait_whole(&self) -> Result<()> {
        wait::until("the cluster is whole", async || {
            let mut masters = 0;
            for node in &self.nodes {
                let info: String = node.ask(&["CLUSTER", "INFO"]).await?;
                let replication: String = node.ask(&["INFO", "replication"]).await?;
                let follows = replication.contains("master_link_status:up");
                masters += usize::from(replication.contains("role:master"));
                if !info.contains("cluster_state:ok") || !follows && !replication.contains("role:master") {
                    return Ok(false);
                }
            }
            Ok(masters == MASTERS)
        })
        .await
    }

    /// A master, by any number.
    pub async fn master(&self, any: u64) -> Result<usize> {
        let mut masters = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            if node.is_master().await? {
                masters.push(number);
            }
        }
        ensure!(masters.len() == MASTERS, "{} masters", masters.len());
        Ok(masters[any as usize % MASTERS])
    }

    /// The replica of a master.
    pub async fn replica_of(&self, master: usize) -> Result<usize> {
        let port = format!("master_port:{}", self.nodes[master].port);
        for (number, node) in self.nodes.iter().enumerate() {
            if number != master && node.ask::<String>(&["INFO", "replication"]).await?.contains(&port) {
                return Ok(number);
            }
        }
        bail!("the master has no replica")
    }

    /// Waits until a node is master.
    pub async fn wait_master(&self, number: usize) -> Result<()> {
        wait::until("the replica takes over", async || self.nodes[number].is_master().await).await
    }

    pub async fn kill(&mut self, number: usize) -> Result<()> {
        let mut process = self.nodes[number].process.take().context("the node does not run")?;
        Ok(process.kill().await?)
    }

    pub async fn kill_all(&mut self) -> Result<()> {
        for number in 0..NODES {
            self.kill(number).await?;
        }
        Ok(())
    }

    /// SIGSTOP or SIGCONT.
    pub fn signal(&self, number: usize, signal: Signal) -> Result<()> {
        let pid = self.nodes[number].process.as_ref().and_then(Child::id);
        Ok(kill(Pid::from_raw(pid.context("the node does not run")?.cast_signed()), signal)?)
    }

    /// Starts nodes that were killed, with the data they had.
    pub async fn start_killed(&mut self) -> Result<()> {
        for number in 0..NODES {
            if self.nodes[number].process.is_none() {
                self.start_node(number).await?;
            }
        }
        Ok(())
    }
}

impl Node {
    fn url(&self) -> String {
        format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)
    }

    async fn connect(&self) -> Result<MultiplexedConnection> {
        let client = redis::Client::open(self.url())?;
        let patience = Some(Duration::from_secs(2));
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
        Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    async fn ask<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let mut command = redis::cmd(words.first().context("no command")?);
        for word in &words[1..] {
            command.arg(*word);
        }
        Ok(command.query_async(&mut self.connect().await?).await?)
    }

    async fn is_master(&self) -> Result<bool> {
        Ok(self.ask::<String>(&["INFO", "replication"]).await?.contains("role:master"))
    }
}
