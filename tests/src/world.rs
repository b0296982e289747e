//! The servers that the tests share, and the corners that each test gets of them.

use std::path::PathBuf;

use anyhow::{Context, Result};
use sqlx::Connection;
use taskflow_servers::{Kind, Options, Ports, Servers};
use taskflow_stores::postgres;
use tokio::sync::Mutex;

/// Virtual hosts made at a time: one at a time would cost each test a start of Erlang, all at once the first test.
const LOT: usize = 24;
const TEMPLATE: &str = "taskflow_template";

/// Whether the servers wait until the disk has what they write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// As in production.
    Real,
    /// They go on at once, where the machine has libeatmydata: tests kill processes, never the machine, and what a
    /// process has written outlives it. Several sets of servers on one slow disk hold each other up for seconds.
    Skipped,
}

impl Sync {
    fn library(self) -> Option<PathBuf> {
        if self == Self::Real {
            return None;
        }
        let mut folders = vec![PathBuf::from("/usr/lib")];
        folders.extend(std::fs::read_dir("/usr/lib").ok()?.filter_map(|entry| Some(entry.ok()?.path())));
        folders.into_iter().map(|folder| folder.join("libeatmydata.so")).find(|library| library.is_file())
    }
}

/// One set of servers.
pub struct World {
    pub servers: Mutex<Servers>,
    urls: Urls,
    corners: Mutex<Corners>,
    copying: Mutex<()>,
    /// Removed at the end.
    folder: PathBuf,
}

/// How many corners were given away, and for how many there is a virtual host.
struct Corners {
    given: usize,
    made: usize,
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
    pub async fn start(sync: Sync) -> Result<Self> {
        Self::start_on(&[], sync).await
    }

    /// Starts a set of servers of its own, some of them on small disks ([`crate::disk`]).
    pub async fn start_on(small_disks: &[Kind], sync: Sync) -> Result<Self> {
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
            vhosts: vhosts(0, LOT),
            preload: sync.library(),
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
            corners: Mutex::new(Corners { given: 0, made: LOT }),
            copying: Mutex::new(()),
            folder,
        };
        world.make_template().await?;
        Ok(world)
    }

    /// The number of a corner that nobody has had.
    pub(crate) async fn next_corner(&self) -> Result<usize> {
        let mut corners = self.corners.lock().await;
        if corners.given == corners.made {
            let more = vhosts(corners.made, LOT);
            self.servers.lock().await.rabbitmq.add_vhosts(&more).await.context("make more virtual hosts")?;
            corners.made += LOT;
        }
        corners.given += 1;
        Ok(corners.given - 1)
    }

    /// The address of a virtual host that nobody has had.
    pub async fn vhost(&self) -> Result<String> {
        Ok(with_name(&self.urls.amqp, &format!("t{}", self.next_corner().await?)))
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

    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        self.sql(&format!("DROP DATABASE {name} WITH (FORCE)")).await
    }

    async fn sql(&self, statement: &str) -> Result<()> {
        let mut connection = postgres::connect_alone(&self.urls.postgres.parse()?).await?;
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

fn vhosts(first: usize, count: usize) -> Vec<String> {
    (first..first + count).map(|number| format!("t{number}")).collect()
}

pub(crate) fn with_name(url: &str, name: &str) -> String {
    url.rsplit_once('/').map_or_else(|| url.to_owned(), |(head, _)| format!("{head}/{name}"))
}
