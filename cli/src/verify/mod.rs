//! The promise, checked from outside on any deployment: a known stream of dependent commands under a user of its own,
//! and a count of what was lost, doubled, reordered or got stuck, from receipts, rows and events.

pub(crate) mod breaks;
mod count;
mod settle;
mod stream;
mod waits;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use taskflow_core::command::{Body, Command, DeleteTask, RegisterUser};
use taskflow_core::state::Role;
use taskflow_stores::postgres::receipts;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use taskflow_stores::{StoreError, clock};
use uuid::Uuid;

pub(crate) use self::count::{Count, count};
use self::settle::persist;
use self::stream::Sent;
pub(crate) use self::stream::{Progress, Stream, Streamed};
use crate::connect::Stores;

/// The consent of whoever owns the deployment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Whether `taskflow verify` may send commands here. They are real ones, under a user of their own.
    pub allowed: bool,
    /// The same for `environment = "production"`.
    pub allowed_in_production: bool,
    /// Whether `taskflow verify --break` may also disturb this deployment: whoever else uses it sees that as well.
    pub may_break: bool,
}

/// How much is sent, and how long is waited.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub subjects: usize,
    /// Commands a second.
    pub rate: f64,
    pub seconds: u64,
    /// How long nothing may happen before what is missing is given up.
    pub patience: Duration,
}

/// Who the commands are from, so that they can be told apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// The correlation id of everything that is sent.
    pub id: Uuid,
    /// A user of the run's own.
    pub user: Uuid,
}

impl Run {
    /// Registers the run's user, and waits until it is there.
    pub(crate) async fn begin(stores: &Stores, patience: Duration) -> Result<Self> {
        let run = Self { id: clock::new_id(), user: clock::new_id() };
        let body = Body::RegisterUser(RegisterUser {
            email: format!("verify-{}@taskflow.invalid", run.id.simple()),
            // Nobody knows it: the run's user can't log in.
            passwordhash: crate::hash_password(&clock::new_id().to_string(), 10)?,
            role: Role::User,
            profile: None,
        });
        let command = run.command(run.user, body);
        let id = command.id;
        let message = Message::command(&command, clock::now(), None);
        stores.publisher.publish(message).await.map_err(StoreError::from).context("register a user")?;
        let deadline = Instant::now() + patience;
        loop {
            let found = receipts::read_many(&stores.postgres, &[id]).await.map(|mut found| found.pop());
            match found {
                Ok(Some(receipt)) if receipt.status == "applied" => return Ok(run),
                Ok(Some(receipt)) => bail!("the run's user was {}: {:?}", receipt.status, receipt.detail),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("wait for the run's user");
                }
                Ok(None) if Instant::now() > deadline => {
                    bail!(
                        "no worker has applied the first command within {} s; does one run?",
                        patience.as_secs()
                    )
                }
                Ok(None) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// The prefix that the run's commands bear as their source.
    pub(crate) fn source(self) -> String {
        format!("/taskflow/verify/{}", self.id)
    }

    fn command(self, subject: Uuid, body: Body) -> Command {
        let command = Command::new(clock::new_id(), &self.source(), subject, self.user, body);
        Command { correlation: self.id, issued_at: Some(clock::now()), ..command }
    }

    /// Deletes the run's tasks, as any user would; the broker has `patience` to take it. Its user stays, with its
    /// history. Returns each subject with the id of its deletion.
    pub(crate) async fn clean_up(
        self,
        stores: &Stores,
        sent: &Streamed,
        patience: Duration,
    ) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
        let delete = |(subject, one): (&Uuid, &Sent)| {
            let command = self.command(*subject, Body::DeleteTask(DeleteTask { expectedversion: None }));
            Command { priority: one.priority, ..command }
        };
        let commands: Vec<Command> = sent.subjects.iter().map(delete).collect();
        // Again under the same ids: what the broker has taken already does no harm.
        persist(patience, async || publish_all(&stores.publisher, &commands).await).await?;
        Ok(commands.iter().map(|command| (command.subject, command.id)).collect())
    }
}

async fn publish_all(publisher: &Publisher, commands: &[Command]) -> Result<(), StoreError> {
    let mut pending = Vec::with_capacity(commands.len());
    for command in commands {
        pending.push(publisher.send(Message::command(command, clock::now(), None)).await?);
    }
    for confirm in pending {
        confirm.confirmed().await?;
    }
    Ok(())
}
