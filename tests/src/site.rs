//! A test's own corner of the servers: database, virtual host, collection set, key prefix.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::cluster::ClusterClient;
use ::redis::cluster_async::ClusterConnection;
use anyhow::{Context, Result};
use lapin::options::QueueDeleteOptions;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_core::partition::{Course, Partition};
use taskflow_stores::postgres::{PgPool, layout};
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::Publisher;
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use taskflow_stores::redis::Redis;
use taskflow_stores::{declare, mongo, postgres, rabbit, redis};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::world::with_name;
use crate::{World, wait};

pub struct Site {
    pub postgres: PgPool,
    pub mongo: mongo::Database,
    pub redis: Redis,
    pub link: Link,
    pub publisher: Publisher,
    pub rabbit: rabbit::Settings,
    /// For the program under test.
    pub env: Vec<(String, String)>,
    pub redis_prefix: String,
    pub redis_url: String,
    name: String,
    stop: CancellationToken,
}

/// The longest that it may take to remove what a test has left.
const CLEAR: Duration = Duration::from_secs(20);

impl Site {
    /// A fresh corner: migrated, seeded with two users, the broker's objects declared.
    pub async fn new(world: &World) -> Result<Self> {
        Self::with_redis(world, &world.urls().redis).await
    }

    /// The same with another Redis than the world's.
    pub async fn with_redis(world: &World, redis_url: &str) -> Result<Self> {
        let number = world.next_corner().await?;
        let urls = world.urls();
        let name = format!("t{number}");
        world.copy_template(&name).await?;
        let prefix = format!("{name}:");
        let postgres_settings = postgres::Settings {
            url: with_name(&urls.postgres, &name),
            connections_max: 6,
            ..postgres::Settings::default()
        };
        let rabbit_settings = rabbit::Settings {
            url: with_name(&urls.amqp, &name),
            partitions: 4,
            low_partitions: 1,
            ..rabbit::Settings::default()
        };
        let mongo_settings = mongo::Settings { url: with_name(&urls.mongodb, &name), ..Default::default() };
        let redis_settings =
            redis::Settings { url: redis_url.to_owned(), key_prefix: prefix.clone(), ..Default::default() };
        let stop = CancellationToken::new();
        let link = Link::start(&rabbit_settings, "taskflow test", stop.clone())?;
        let publish = Link::start_publishing(&rabbit_settings, "taskflow test publish", stop.clone())?;
        let mongo = mongo::connect(&mongo_settings, "taskflow test").await?;
        mongo::migrate::up(&mongo, None).await?;
        let postgres = postgres::connect(&postgres_settings, "taskflow test")?;
        // A busy machine's broker may be slow to let anybody in.
        wait::until("the site's queues are declared", async || {
            declare::declare(&postgres, &link, &rabbit_settings).await?;
            Ok(true)
        })
        .await?;
        let env = [
            ("POSTGRES__URL", postgres_settings.url.as_str()),
            ("POSTGRES__CONNECTIONS_MAX", "12"),
            ("AMQP__URL", &rabbit_settings.url),
            ("AMQP__PARTITIONS", "4"),
            ("AMQP__LOW_PARTITIONS", "1"),
            ("MONGODB__URL", &mongo_settings.url),
            ("REDIS__URL", redis_url),
            ("REDIS__KEY_PREFIX", &prefix),
            ("METRICS__LISTEN", "127.0.0.1:0"),
            // Tests look at the metrics of an API where they meet it; "access:" has who may do so else.
            ("HTTP__OPEN_METRICS", "true"),
            // A killed worker's partitions should not keep a test waiting.
            ("WORKER__LEASE_MS", "2000"),
            // Long enough to be seen waiting, too short to be waited for.
            ("WORKER__PATIENCE__UNKNOWN_USER_MS", "1500"),
            ("WORKER__PATIENCE__UNKNOWN_TYPE_MS", "1500"),
            // On a busy machine a cache may be slow; a test of what it holds must not depend on that.
            ("HTTP__CACHE_PATIENCE_MS", "5000"),
            ("ENVIRONMENT", "development"),
        ];
        Ok(Self {
            postgres,
            redis: redis::connect(&redis_settings)?,
            publisher: Publisher::new(publish, &rabbit_settings),
            env: env
                .into_iter()
                .map(|(name, value)| (format!("TASKFLOW_{name}"), value.to_owned()))
                .collect(),
            redis_prefix: prefix,
            redis_url: redis_url.to_owned(),
            rabbit: rabbit_settings,
            mongo,
            link,
            name,
            stop,
        })
    }

    /// Removes what it has at the broker, in Postgres and in MongoDB: what lies idle there costs all tests that follow
    /// time. What can't be removed stays.
    pub async fn clear(&self, world: &World) {
        let _ = tokio::time::timeout(CLEAR, async {
            if let (Ok(partitions), Ok(channel)) = (self.partitions().await, self.link.channel().await) {
                let queues = partitions.iter().map(|partition| partition.queue());
                for queue in queues.chain([DEAD_LETTERS.to_owned()]) {
                    let _ = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await;
                }
            }
            self.stop.cancel();
            let _ = self.mongo.drop().await;
            self.postgres.close().await;
            let _ = world.drop_database(&self.name).await;
        })
        .await;
    }

    /// All events, in the order of their partitions' runs.
    pub async fn events(&self) -> Result<Vec<Document>> {
        use futures_util::TryStreamExt;
        let collection = self.mongo.collection::<Document>(mongo::events::COLLECTION);
        let sort = doc! { "run.p": 1, "run.n": 1, "run.i": 1 };
        Ok(collection.find(doc! {}).sort(sort).await?.try_collect().await?)
    }

    /// Waits until each of these commands has come to its end, and whatever happened is told everywhere: nothing that the
    /// next holder of a partition would have to do is left. A login is a command too, so that a count would not do.
    pub async fn until_told(&self, commands: &[Value]) -> Result<()> {
        let ids = commands.iter().map(|command| Ok(command["id"].as_str().context("id")?.parse()?));
        let ids: Vec<Uuid> = ids.collect::<Result<_>>()?;
        wait::until("the commands have come to their end", async || {
            let there = "SELECT count(*) FROM receipts WHERE id = ANY($1)";
            let ended: i64 = sqlx::query_scalar(there).bind(&ids).fetch_one(&self.postgres).await?;
            Ok(ended == ids.len() as i64)
        })
        .await?;
        self.until_nothing_is_on_its_way().await
    }

    /// Waits until all that was applied is told everywhere.
    pub async fn until_nothing_is_on_its_way(&self) -> Result<()> {
        let waits = "SELECT (SELECT count(*) FROM outbox) + (SELECT count(*) FROM system_events)";
        wait::until("nothing is on its way", async || Ok(self.count(waits).await? == 0)).await
    }

    /// Which partitions there are.
    pub async fn course(&self) -> Result<Course> {
        Ok(layout::course(&self.postgres, self.rabbit.layout()).await?)
    }

    /// The partitions of now.
    pub async fn partitions(&self) -> Result<Vec<Partition>> {
        Ok(self.course().await?.to.all())
    }

    /// One value of Redis, under this corner's prefix.
    pub async fn cached(&self, key: &str) -> Result<Option<String>> {
        self.caches().await?.get(key).await
    }

    /// For many reads of Redis.
    pub async fn caches(&self) -> Result<Caches> {
        let prefix = self.redis_prefix.clone();
        let urls: Vec<&str> = self.redis_url.split(',').collect();
        if let [url] = urls[..] {
            let server = ::redis::Client::open(url)?.get_multiplexed_async_connection().await?;
            return Ok(Caches::Server { server, prefix });
        }
        let cluster = ClusterClient::new(urls)?.get_async_connection().await?;
        Ok(Caches::Cluster { cluster, prefix })
    }

    /// Sets a value of Redis, under this corner's prefix.
    pub async fn set_cached(&self, key: &str, value: &str) -> Result<()> {
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let key = format!("{}{key}", self.redis_prefix);
        Ok(::redis::cmd("SET").arg(key).arg(value).query_async(&mut connection).await?)
    }

    /// Sets a field of a hash of Redis, under this corner's prefix.
    pub async fn set_hash(&self, key: &str, field: &str, value: &str) -> Result<()> {
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let key = format!("{}{key}", self.redis_prefix);
        Ok(::redis::cmd("HSET").arg(key).arg(field).arg(value).query_async(&mut connection).await?)
    }

    /// Every key of this corner with what is under it, as text.
    pub async fn dump_redis(&self) -> Result<String> {
        use std::fmt::Write;
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut all = String::new();
        for prefix in [self.redis_prefix.clone(), format!("{{{}", self.redis_prefix)] {
            let keys: Vec<String> =
                ::redis::cmd("KEYS").arg(format!("{prefix}*")).query_async(&mut connection).await?;
            for key in keys {
                let kind: String = ::redis::cmd("TYPE").arg(&key).query_async(&mut connection).await?;
                let read: &[&str] = match kind.as_str() {
                    "hash" => &["HGETALL"],
                    "zset" => &["ZRANGE", "0", "-1"],
                    "set" => &["SMEMBERS"],
                    "list" => &["LRANGE", "0", "-1"],
                    _ => &["GET"],
                };
                let mut command = ::redis::cmd(read[0]);
                command.arg(&key).arg(&read[1..]);
                let value: ::redis::Value = command.query_async(&mut connection).await?;
                let _ = writeln!(all, "{key} {value:?}");
            }
        }
        Ok(all)
    }

    /// Calls Redis with one key under this corner's prefix: `TTL` and the like.
    pub async fn redis_command(&self, words: &[&str], key: &str) -> Result<i64> {
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let mut call = ::redis::cmd(words.first().copied().unwrap_or("TTL"));
        call.arg(format!("{}{key}", self.redis_prefix)).arg(&words[1.min(words.len())..]);
        Ok(call.query_async(&mut connection).await?)
    }

    /// Puts a value into Redis, whatever is there.
    pub async fn redis_set(&self, key: &str, value: &str) -> Result<()> {
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let key = format!("{}{key}", self.redis_prefix);
        Ok(::redis::cmd("SET").arg(key).arg(value).query_async(&mut connection).await?)
    }

    /// The keys of a pattern, without the prefix, with their values as far as they are texts.
    pub async fn redis_all(&self, pattern: &str) -> Result<Vec<(String, String)>> {
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let pattern = format!("{}{pattern}", self.redis_prefix);
        let keys: Vec<String> = ::redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await?;
        let mut found = Vec::new();
        for key in keys {
            if let Ok(Some(value)) = ::redis::cmd("GET").arg(&key).query_async(&mut connection).await {
                found.push((key[self.redis_prefix.len()..].to_owned(), value));
            }
        }
        Ok(found)
    }

    /// Removes the keys of a pattern.
    pub async fn redis_forget(&self, pattern: &str) -> Result<()> {
        let client = ::redis::Client::open(self.redis_url.as_str())?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        let pattern = format!("{}{pattern}", self.redis_prefix);
        let keys: Vec<String> = ::redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await?;
        if !keys.is_empty() {
            ::redis::cmd("UNLINK").arg(keys).query_async::<()>(&mut connection).await?;
        }
        Ok(())
    }

    /// One number of Postgres. Connections that a killed server has left dead are used up here, one by one.
    pub async fn count(&self, sql: &str) -> Result<i64> {
        let mut tries = 0;
        loop {
            let asked =
                sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&self.postgres).await;
            tries += 1;
            match asked {
                Ok(count) => return Ok(count),
                Err(_) if tries <= self.postgres.connections_max() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs a statement.
    pub async fn sql(&self, sql: &str) -> Result<()> {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&self.postgres).await?;
        Ok(())
    }
}

/// Reads values under a corner's prefix, wherever they lie.
pub enum Caches {
    Server { server: MultiplexedConnection, prefix: String },
    Cluster { cluster: ClusterConnection, prefix: String },
}

impl Caches {
    pub async fn get(&mut self, key: &str) -> Result<Option<String>> {
        let mut get = ::redis::cmd("GET");
        Ok(match self {
            Self::Server { server, prefix } => get.arg(format!("{prefix}{key}")).query_async(server).await?,
            Self::Cluster { cluster, prefix } => {
                get.arg(format!("{prefix}{key}")).query_async(cluster).await?
            }
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
