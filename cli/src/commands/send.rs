//! `taskflow send`: publishes commands from JSON lines, as an AMQP publisher would, with confirms.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use taskflow_core::envelope;
use taskflow_stores::postgres::receipts;
use taskflow_stores::rabbit::publish::{Message, Pending, PublishError};
use taskflow_stores::{StoreError, clock};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::connect::{self, Stores};
use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// Messages that are on their way at once.
const WINDOW: usize = 1_000;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// File with one command (CloudEvents JSON) a line; - reads standard input
    file: PathBuf,
    /// Wait until every command has its receipt
    #[arg(long)]
    wait: bool,
    /// How long to wait for receipts, in seconds
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

/// What was sent.
#[derive(Default)]
struct Sent {
    ids: Vec<Uuid>,
    /// Line number from 1, and why.
    refused: Vec<(u64, String)>,
}

pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let stop = CancellationToken::new();
    let stores = connect::stores(settings, "taskflow send", &stop).await?;
    // Waits for the connection, and says clearly if there is none.
    drop(stores.publish.channel().await?);
    let lines: Box<dyn AsyncBufRead + Unpin + Send> = if options.file.as_os_str() == "-" {
        Box::new(BufReader::new(tokio::io::stdin()))
    } else {
        let file = tokio::fs::File::open(&options.file).await;
        Box::new(BufReader::new(file.with_context(|| format!("open {}", options.file.display()))?))
    };
    let bar = progress(json, "published");
    let sent = publish(&stores, lines, &bar).await?;
    bar.finish_and_clear();
    let unanswered = if options.wait {
        let patience = Duration::from_secs(options.timeout);
        wait_for_receipts(&stores, &sent.ids, patience, &progress(json, "receipts")).await?
    } else {
        0
    };
    if json {
        let refused: Vec<_> =
            sent.refused.iter().map(|(line, why)| json!({ "line": line, "detail": why })).collect();
        println!(
            "{}",
            json!({ "accepted": sent.ids.len(), "refused": refused, "withoutreceipt": unanswered })
        );
    } else {
        for (line, why) in &sent.refused {
            eprintln!("line {line}: {why}");
        }
        println!("{} accepted, {} refused", sent.ids.len(), sent.refused.len());
        if unanswered > 0 {
            println!("{unanswered} have no receipt after {} s", options.timeout);
        }
    }
    let failed = !sent.refused.is_empty() || unanswered > 0;
    Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

async fn publish(
    stores: &Stores,
    mut lines: Box<dyn AsyncBufRead + Unpin + Send>,
    bar: &ProgressBar,
) -> Result<Sent, Exit> {
    let mut sent = Sent::default();
    let mut window: Vec<(u64, Uuid, Pending)> = Vec::with_capacity(WINDOW);
    let mut number = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line).await.context("read the commands")?;
        number += 1;
        if read == 0 || window.len() >= WINDOW {
            confirm(&mut window, &mut sent, bar).await?;
        }
        if read == 0 {
            return Ok(sent);
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match envelope::parse(&line) {
            Ok(mut command) => {
                let now = clock::now();
                command.issued_at.get_or_insert(now);
                let message = Message::command(&command, now, None);
                let pending = stores.publisher.send(message).await.map_err(StoreError::from)?;
                window.push((number, command.id, pending));
            }
            Err(malformed) => sent.refused.push((number, malformed.summary())),
        }
    }
}

async fn confirm(
    window: &mut Vec<(u64, Uuid, Pending)>,
    sent: &mut Sent,
    bar: &ProgressBar,
) -> Result<(), Exit> {
    for (line, id, pending) in window.drain(..) {
        match pending.confirmed().await {
            Ok(()) => {
                sent.ids.push(id);
                bar.inc(1);
            }
            Err(error @ (PublishError::Unavailable(_) | PublishError::NoExchange)) => {
                return Err(StoreError::from(error).into());
            }
            Err(error) => sent.refused.push((line, error.to_string())),
        }
    }
    Ok(())
}

/// Returns how many have none in time.
async fn wait_for_receipts(
    stores: &Stores,
    ids: &[Uuid],
    patience: Duration,
    bar: &ProgressBar,
) -> Result<usize, Exit> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut missing: HashSet<Uuid> = ids.iter().copied().collect();
    bar.set_length(missing.len() as u64);
    while !missing.is_empty() && tokio::time::Instant::now() < deadline {
        let some: Vec<Uuid> = missing.iter().copied().take(5_000).collect();
        let found = receipts::read_many(&stores.postgres, &some).await?;
        if found.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for receipt in found {
            missing.remove(&receipt.id);
        }
        bar.set_position((ids.len() - missing.len()) as u64);
    }
    bar.finish_and_clear();
    Ok(missing.len())
}

fn progress(json: bool, what: &'static str) -> ProgressBar {
    if json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {human_pos} {msg}  {per_sec}  {elapsed}") {
        bar.set_style(style);
    }
    bar.with_message(what)
}
