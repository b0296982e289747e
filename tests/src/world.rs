//! The servers that the tests share, and the corners that each test gets of them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use sqlx::Connection;
use taskflow_servers::{Kind, Options, Ports, Servers};
use taskflow_stores::postgres;
use tokio::sync::Mutex;

/// Tests that can have a corner.
const CORNERS: usize = 128;
const TEMPLATE: &str = "taskflow_template";

/// One set of servers.
pub struct World {
    pub servers: Mutex<Servers>,
    urls: Urls,
    next: AtomicUsize,
    copying: Mutex<()>,
    /// Removed at the end.
    folder: PathBuf,
}

#[derive(Clone)]
pub(crate) struct Urls {
    pub postgres: String,
    pub amqp: String,
    pub mongodb: String,
    pub redis: String,
}

impl World {
    /// Starts a set of servers of its own.
    pub async fn start(corners: usize) -> Result<Self> {
        Self::start_on(corners, &[]).await
    }

    /// Starts a set of servers of its own, some of them on small disks ([`crate::disk`]).
    pub async fn start_on(corners: usize, small_disks: &[Kind]) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("taskflow-test-").tempdir_in("/tmp")?.keep();
        // The servers run as users of their own.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, open)?;
        for kind in small_disks {
            crate::disk::mount(&folder.join(kind.as_str()))?;
        }
        let options = Options {
            data_dir: folder.clone(),
            ports: Ports::free()?,
            vhosts: (0..corners.min(CORNERS)).map(|number| format!("t{number}")).collect(),
        };
        let servers = Servers::start(&options).await.context("start the servers for the tests")?;
        let urls = Urls {
            postgres: servers.postgres.url().to_owned(),
            amqp: servers.rabbitmq.url().to_owned(),
            mongodb: servers.mongodb.url().to_owned(),
            redis: servers.redis.url().to_owned(),
        };
        let world = Self {
            servers: Mutex::new(servers),
            urls,
            next: AtomicUsize::new(0),
            copying: Mutex::new(()),
            folder,
        };
        world.make_template().await?;
        Ok(world)
    }

    /// The number of a corner that nobody has had.
    pub(crate) fn next_corner(&self) -> Result<usize> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        ensure!(number < CORNERS, "more tests than virtual hosts; raise CORNERS");
        Ok(number)
    }

    /// The address of a virtual host that nobody has had.
    pub fn vhost(&self) -> Result<String> {
        Ok(with_name(&self.urls.amqp, &format!("t{}", self.next_corner()?)))
    }

    /// Where a server keeps its data.
    pub fn folder_of(&self, kind: Kind) -> PathBuf {
        self.folder.join(kind.as_str())
    }

    pub(crate) fn urls(&self) -> &Urls {
        &self.urls
    }

    /// Migrated and seeded once; each test's database is a copy.
    async fn make_template(&self) -> Result<()> {
        self.sql(&format!("CREATE DATABASE {TEMPLATE}")).await?;
        let settings =
            postgres::Settings { url: with_name(&self.urls.postgres, TEMPLATE), ..Default::default() };
        let pool = postgres::connect(&settings, "taskflow tests")?;
        postgres::migrate::up(&pool, None).await?;
        crate::commands::seed(&pool).await?;
        pool.close().await;
        Ok(())
    }

    pub(crate) async fn copy_template(&self, name: &str) -> Result<()> {
        // A template can be copied only while nobody uses it.
        let _one_at_a_time = self.copying.lock().await;
        self.sql(&format!("CREATE DATABASE {name} TEMPLATE {TEMPLATE}")).await
    }

    async fn sql(&self, statement: &str) -> Result<()> {
        let mut connection = sqlx::PgConnection::connect(&self.urls.postgres).await?;
        sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut connection).await?;
        Ok(connection.close().await?)
    }

    pub async fn stop(self) {
        self.discard().await;
    }

    /// Kills the servers and removes their data.
    pub async fn discard(&self) {
        for server in self.servers.lock().await.all() {
            server.kill().await;
        }
        for kind in Kind::ALL {
            crate::disk::unmount(&self.folder.join(kind.as_str()));
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn with_name(url: &str, name: &str) -> String {
    url.rsplit_once('/').map_or_else(|| url.to_owned(), |(head, _)| format!("{head}/{name}"))
}
