//! The journal once more through the normal intake exchange: what has a receipt meets it, what was undone is applied again.

use std::collections::VecDeque;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde_json::json;
use taskflow_backup::Vault;
use taskflow_backup::journal::{Reader, lacks_what_ended_workers_left};
use taskflow_backup::keys::Identities;
use taskflow_core::{Command, canary, envelope};
use taskflow_stores::rabbit::publish::{Message, Pending, PublishError};
use taskflow_stores::{StoreError, clock};
use tokio_util::sync::CancellationToken;

use crate::commands::backup::bar::Bar;
use crate::connect;
use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// Messages that are on their way at once.
const WINDOW: usize = 1_000;

#[derive(Default)]
struct Sent {
    published: u64,
    /// What is no command any more than it was then, or was refused by the broker.
    refused: u64,
    /// The canaries' own: theirs are sent anew, and old ones would be told of as doubled or out of order.
    left_out: u64,
}

pub(super) async fn run(
    vault: &Vault,
    identities: &Identities,
    from: DateTime<Utc>,
    settings: &Settings,
    json: bool,
) -> Result<ExitCode, Exit> {
    if lacks_what_ended_workers_left(&vault.settings)? {
        return Err(Exit::failed(
            "a worker of this machine that has ended left commands which are not in the journal yet; the next one brings \
             them there: start it with the same backup.work_dir, and try again in some seconds",
        ));
    }
    let stop = CancellationToken::new();
    let stores = connect::stores(settings, "taskflow restore", &stop).await?;
    // Waits for the connection, and says clearly if there is none.
    drop(stores.publish.channel().await?);
    let bar = Bar::start(json);
    taskflow_backup::journal::verify(vault, identities, from, bar.progress()).await?;
    bar.progress().begin("replay the journal", 0);
    let mut reader = Reader::begin(vault, identities, from).await?;
    let mut sent = Sent::default();
    let mut window: VecDeque<Pending> = VecDeque::with_capacity(WINDOW);
    while let Some(record) = reader.next(bar.progress()).await? {
        let Ok(command) = envelope::parse(&record.body) else {
            sent.refused += 1;
            continue;
        };
        if is_canary(&command) {
            sent.left_out += 1;
            continue;
        }
        if window.len() >= WINDOW
            && let Some(pending) = window.pop_front()
        {
            confirm(pending, &mut sent).await?;
        }
        // As it was accepted then: its events have the same ids.
        let accepted_at = record.accepted_at.unwrap_or_else(clock::now);
        let message = Message::again(&command, accepted_at, record.at);
        window.push_back(stores.publisher.send(message).await.map_err(StoreError::from)?);
    }
    for pending in window {
        confirm(pending, &mut sent).await?;
    }
    bar.end();
    if json {
        let mut told = json!({ "published": sent.published, "refused": sent.refused });
        if sent.left_out > 0 {
            told["canaries"] = json!(sent.left_out);
        }
        println!("{told}");
    } else {
        println!(
            "{} commands of the journal are published again, {} were refused",
            sent.published, sent.refused
        );
        if sent.left_out > 0 {
            println!("{} commands of the canaries are left out", sent.left_out);
        }
        println!(
            "What has its receipt already changes nothing; `taskflow doctor` shows how the queues empty."
        );
    }
    Ok(if sent.refused == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Whether it is a canary. Their source alone any publisher may name; and the command that made their user must come back.
fn is_canary(command: &Command) -> bool {
    command.source == canary::SOURCE && command.actor == canary::USER && command.subject != canary::USER
}

async fn confirm(pending: Pending, sent: &mut Sent) -> Result<(), Exit> {
    match pending.confirmed().await {
        Ok(()) => sent.published += 1,
        Err(error @ (PublishError::Unavailable(_) | PublishError::NoExchange)) => {
            return Err(StoreError::from(error).into());
        }
        Err(error) => {
            tracing::warn!(%error, "A command of the journal was refused.");
            sent.refused += 1;
        }
    }
    Ok(())
}
