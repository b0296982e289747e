//! What a fault has in its hands: the servers, one installation of the program under load, and the wires between.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::future::LocalBoxFuture;
use nix::sys::signal::Signal;
use sqlx::PgConnection;
use taskflow_servers::{Kind, Server};

use crate::dice::Dice;
use crate::load::Control;
use crate::proxy::Wire;
use crate::redis_cluster::RedisCluster;
use crate::{Client, Cluster, Process, Site, World, wait};

/// Something done to the installation.
pub type Act = for<'h, 'w> fn(&'h mut Harness<'w>) -> LocalBoxFuture<'h, Result<()>>;

/// One installation, ready to be broken.
pub struct Harness<'w> {
    pub world: &'w World,
    pub site: &'w Site,
    pub cluster: &'w Cluster<'w>,
    pub workers: Vec<Process>,
    pub api: Option<Process>,
    /// `http://host:port` of the API, the same after it was started again.
    pub base: String,
    /// The load, once it runs.
    pub load: Option<Arc<Control>>,
    /// Wires that the program's connections go through, for the stores that the fault asks for.
    pub wires: Vec<(Kind, Wire)>,
    /// What the program has in Redis's place, if the fault asks for it.
    pub redis_cluster: Option<RedisCluster>,
    /// Settings of the program beside the site's.
    pub env: Vec<(String, String)>,
    /// How long the fault lasts.
    pub hold: Duration,
    /// Whether it is the long form.
    pub long: bool,
    pub dice: Dice,
    /// What a fault keeps open until it is healed: sessions, transactions, files.
    pub kept: Vec<Box<dyn Any + Send>>,
}

impl<'w> Harness<'w> {
    pub fn new(world: &'w World, site: &'w Site, cluster: &'w Cluster<'w>, dice: Dice) -> Result<Self> {
        let base = format!("http://{}", crate::free_address()?);
        Ok(Self {
            world,
            site,
            cluster,
            workers: Vec::new(),
            api: None,
            base,
            load: None,
            wires: Vec::new(),
            redis_cluster: None,
            env: Vec::new(),
            hold: Duration::ZERO,
            long: false,
            dice,
            kept: Vec::new(),
        })
    }

    /// Lays a wire between the program and a store.
    pub async fn lay_wire(&mut self, kind: Kind) -> Result<()> {
        let name = match kind {
            Kind::Postgres => "TASKFLOW_POSTGRES__URL",
            Kind::RabbitMq => "TASKFLOW_AMQP__URL",
            Kind::MongoDb => "TASKFLOW_MONGODB__URL",
            Kind::Redis => "TASKFLOW_REDIS__URL",
        };
        let url = self.site.env.iter().find(|(key, _)| key == name).map(|(_, url)| url.as_str());
        let (wire, url) = Wire::to_url(url.context("the site has no such address")?).await?;
        self.wires.push((kind, wire));
        self.env.push((name.to_owned(), url));
        Ok(())
    }

    pub fn wire(&self, kind: Kind) -> Result<&Wire> {
        let wire = self.wires.iter().find(|(of, _)| *of == kind);
        Ok(&wire.with_context(|| format!("no wire to {} was laid", kind.as_str()))?.1)
    }

    fn spawn(&self, role: &str, more: &[(&str, &str)]) -> Result<Process> {
        let env = self.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let env: Vec<(&str, &str)> = env.chain(more.iter().copied()).collect();
        self.cluster.spawn(role, &env)
    }

    pub fn start_worker(&mut self) -> Result<()> {
        self.start_worker_with(&[])
    }

    pub fn start_worker_with(&mut self, more: &[(&str, &str)]) -> Result<()> {
        let worker = self.spawn("worker", more)?;
        self.workers.push(worker);
        Ok(())
    }

    /// Starts the API where it was, and waits until it answers.
    pub async fn start_api(&mut self) -> Result<()> {
        let listen = self.base.trim_start_matches("http://").to_owned();
        self.api = Some(self.spawn("api", &[("TASKFLOW_HTTP__LISTEN", &listen)])?);
        let client = Client::new(&self.base)?;
        wait::until("the API answers", async || Ok(client.get("/healthz").await?.status() == 200)).await
    }

    /// Takes a worker by chance out of the list.
    pub fn take_worker(&mut self) -> Result<Process> {
        if self.workers.is_empty() {
            bail!("there is no worker any more");
        }
        let which = self.dice.below(self.workers.len() as u64) as usize;
        Ok(self.workers.swap_remove(which))
    }

    pub fn signal_workers(&self, signal: Signal) -> Result<()> {
        self.workers.iter().try_for_each(|worker| worker.signal(signal))
    }

    /// Does something with a server.
    pub async fn server<T>(&self, kind: Kind, act: impl AsyncFnOnce(&mut Server) -> T) -> T {
        let mut servers = self.world.servers.lock().await;
        act(match kind {
            Kind::Postgres => &mut servers.postgres,
            Kind::RabbitMq => &mut servers.rabbitmq,
            Kind::MongoDb => &mut servers.mongodb,
            Kind::Redis => &mut servers.redis,
        })
        .await
    }

    pub async fn rabbitmqctl(&self, args: &[&str]) -> Result<String> {
        self.server(Kind::RabbitMq, async |server| server.rabbitmqctl(args).await).await
    }

    /// The site's own virtual host.
    pub fn vhost(&self) -> &str {
        self.site.rabbit.url.rsplit('/').next().unwrap_or_default()
    }

    /// A session with the site's database beside those of the program.
    pub async fn session(&self) -> Result<PgConnection> {
        let options = self.site.postgres.connect_options().as_ref().clone();
        // A fault's session outlives every time-out that the program sets for itself.
        let options = options.application_name("fault").options([
            ("statement_timeout", "0"),
            ("lock_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
        ]);
        Ok(taskflow_stores::postgres::connect_alone(&options).await?)
    }

    /// One command of Redis.
    pub async fn redis(&self, command: &[&str]) -> Result<()> {
        let client = ::redis::Client::open(self.site.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut order = ::redis::cmd(command.first().context("no command")?);
        for word in &command[1..] {
            order.arg(*word);
        }
        order.query_async::<::redis::Value>(&mut connection).await?;
        Ok(())
    }

    pub fn redis_cluster(&mut self) -> Result<&mut RedisCluster> {
        self.redis_cluster.as_mut().context("the trial has no Redis Cluster")
    }

    pub fn load(&self) -> Result<&Control> {
        self.load.as_deref().context("the load does not run yet")
    }

    /// Commands applied by now, of which the newest batches tell; it costs little.
    pub async fn heads(&self) -> Result<Vec<(String, i64)>> {
        heads(self.site).await
    }
}

/// The number of each partition's newest batch.
pub async fn heads(site: &Site) -> Result<Vec<(String, i64)>> {
    // Heads of partitions that are no more stay.
    Ok(sqlx::query_as(
        "SELECT partition, batch FROM partition_heads WHERE batch > 0 AND partition IN (
             SELECT lpad(number::text, 2, '0') FROM partition_layout, generate_series(0, to_partitions - 1) AS number)
         ORDER BY partition",
    )
    .fetch_all(&site.postgres)
    .await?)
}
