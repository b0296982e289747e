//! Whether the stores are too busy for upkeep: Postgres always, and the store that a job itself works on.

use taskflow_stores::mongo::load::{self as mongo, Load};
use taskflow_stores::postgres::load as postgres;
use taskflow_stores::{StoreError, redis};

use crate::{Settings, Stores};

/// The store, beside Postgres, whose load a job yields to: the one that it works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// It works on Postgres alone, or on no store.
    Nothing,
    MongoDb,
    Redis,
}

/// What a look at the stores shows.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// What is too busy, in words; `None`: nothing is.
    pub busy: Option<String>,
    /// A store that does not tell how busy it is, and why.
    pub unknown: Option<String>,
}

/// Looks at the stores that count for a job.
pub(crate) async fn look(stores: &Stores, settings: &Settings, beside: Beside) -> Result<Look, StoreError> {
    let load = postgres::read(&stores.postgres).await?;
    if load.behind_s > settings.yield_behind_s || load.active > settings.yield_sessions {
        let (behind, active) = (load.behind_s, load.active);
        return Ok(Look::busy(format!("a partition is {behind:.0} s behind, {active} sessions work")));
    }
    Ok(match beside {
        Beside::Nothing => Look::default(),
        Beside::MongoDb => match mongo::read(&stores.mongo).await? {
            Load::Clients(clients) if clients > settings.yield_mongodb_clients => {
                Look::busy(format!("{clients} operations work or wait in MongoDB"))
            }
            Load::Clients(_) => Look::default(),
            Load::Unknown(why) => Look::unknown("MongoDB", &why),
        },
        Beside::Redis => match redis::upkeep::calls_per_s(&stores.redis.info_all().await?) {
            Some(calls) if calls > settings.yield_redis_calls => {
                Look::busy(format!("Redis serves {calls:.0} calls a second"))
            }
            Some(_) => Look::default(),
            None => Look::unknown("Redis", "its INFO has no instantaneous_ops_per_sec"),
        },
    })
}

impl Look {
    fn busy(words: String) -> Self {
        Self { busy: Some(words), unknown: None }
    }

    fn unknown(store: &str, why: &str) -> Self {
        let words = format!("{store} does not tell how busy it is ({why}); only Postgres's load counts");
        Self { busy: None, unknown: Some(words) }
    }
}
