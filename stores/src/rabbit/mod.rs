//! RabbitMQ: the commands' queues, the events' exchange, the dead letters.
//!
//! Every connection has one supervisor that makes it anew as a whole ([`link`]); the client library's own recovery is
//! off, since it would replay acknowledgements and promises of the old one.

pub mod consume;
mod consumer_channel;
pub mod dead_letters;
pub mod drain;
pub mod feed;
mod lane;
pub mod link;
pub mod publish;
mod times;
pub mod topology;

use lapin::ErrorKind;
use serde::{Deserialize, Serialize};
use taskflow_core::partition::{Layout, PARTITIONS_MAX};

use crate::{Kind, StoreError};

pub(crate) const STORE: &str = "rabbitmq";

/// How to reach RabbitMQ, and how the queues are declared.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `amqp://user:password@host:port/vhost`
    pub url: String,
    /// Partition queues for commands of normal priority, in a fresh deployment. Later only `taskflow partitions set`
    /// changes their number.
    pub partitions: u16,
    /// The same for commands of low priority.
    pub low_partitions: u16,
    /// Messages in one partition queue before the broker refuses more.
    pub queue_length_max: i64,
    /// How long a publisher waits for a confirm, in milliseconds.
    pub confirm_timeout_ms: u64,
    /// How long one try to connect may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Seconds between two signs of life; a connection is dead after two without.
    pub heartbeat_s: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            url: "amqp://127.0.0.1:5672/taskflow".into(),
            partitions: 8,
            low_partitions: 2,
            queue_length_max: 10_000_000,
            confirm_timeout_ms: 10_000,
            connect_timeout_ms: 5_000,
            heartbeat_s: 5,
        }
    }
}

impl Settings {
    /// The partitions of a fresh deployment.
    pub fn layout(&self) -> Layout {
        Layout::new(self.partitions.clamp(1, PARTITIONS_MAX), self.low_partitions.clamp(1, PARTITIONS_MAX))
    }
}

pub(crate) fn failed(call: &'static str) -> impl Fn(lapin::Error) -> StoreError {
    move |error| StoreError::new(STORE, call, kind(&error), explain(&error))
}

fn kind(error: &lapin::Error) -> Kind {
    match error.kind() {
        // Precondition failed, access refused, not allowed, not implemented: this program and the broker do not fit.
        ErrorKind::ProtocolError(error) if [406, 403, 530, 540].contains(&error.get_id()) => Kind::Bug,
        ErrorKind::SerialisationError(_) | ErrorKind::InvalidProtocolVersion(_) => Kind::Bug,
        _ => Kind::Unavailable,
    }
}

fn explain(error: &lapin::Error) -> String {
    let hint = match error.kind() {
        ErrorKind::ProtocolError(error) => match error.get_id() {
            406 => {
                "; it was declared otherwise before: if it is empty, delete it and start again, else keep the settings it was made with"
            }
            403 => "; check the user, the password and the permissions in amqp.url",
            530 => "; does the virtual host in amqp.url exist?",
            _ => "",
        },
        _ => "",
    };
    format!("{error}{hint}")
}
