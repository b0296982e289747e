//! Opens what a role or a subcommand needs of the stores. Servers may be away: connections are made when needed.

use std::time::Duration;

use taskflow_core::partition::Course;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::Publisher;
use taskflow_stores::redis::Redis;
use taskflow_stores::{Kind, StoreError, declare, mongo, postgres, rabbit, redis};
use tokio_util::sync::CancellationToken;

use crate::settings::Settings;

/// Every store, for a process that is called `name`.
pub(crate) struct Stores {
    pub postgres: PgPool,
    pub mongo: mongo::Database,
    pub redis: Redis,
    pub consume: Link,
    pub publisher: Publisher,
    pub events: Publisher,
    /// The connection of the publisher.
    pub publish: Link,
    pub rabbit: rabbit::Settings,
}

pub(crate) async fn stores(
    settings: &Settings,
    name: &str,
    stop: &CancellationToken,
) -> Result<Stores, StoreError> {
    let publish = Link::start_publishing(&settings.amqp, &format!("{name} publish"), stop.clone())?;
    Ok(Stores {
        postgres: postgres::connect(&settings.postgres, name)?,
        mongo: mongo::connect(&settings.mongodb, name).await?,
        redis: redis::connect(&settings.redis)?,
        consume: Link::start(&settings.amqp, &format!("{name} consume"), stop.clone())?,
        publisher: Publisher::new(publish.clone(), &settings.amqp),
        events: Publisher::new(publish.clone(), &settings.amqp),
        publish,
        rabbit: settings.amqp.clone(),
    })
}

/// Declares the broker's objects, as soon as it and Postgres are there; `None` if `stop` came first.
///
/// # Errors
/// Only when the broker has them in another form: waiting would not help.
pub(crate) async fn declare(
    postgres: &PgPool,
    link: &Link,
    settings: &rabbit::Settings,
    stop: &CancellationToken,
) -> Result<Option<Course>, StoreError> {
    let mut told = false;
    loop {
        match declare::declare(postgres, link, settings).await {
            Ok(course) => {
                declare::compare(settings, &course);
                return Ok(Some(course));
            }
            Err(error) if error.kind == Kind::Bug && error.store == "rabbitmq" => return Err(error),
            Err(error) if !told => {
                tracing::warn!(%error, "A store is away; waiting for it.");
                told = true;
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
        }
    }
}
