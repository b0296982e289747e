//! `taskflow verify`: sends known streams to this deployment, while it or its operator breaks things, and counts.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::connect;
use crate::exit::{Exit, FAILED};
use crate::settings::{Environment, Settings};
use crate::verify::{self, Count, Plan, Run, Stream};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long commands are sent, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Commands a second
    #[arg(long, default_value_t = 200.0)]
    rate: f64,
    /// Tasks that the commands are spread over
    #[arg(long, default_value_t = 64)]
    subjects: usize,
    /// How long nothing may happen before what is missing is given up, in seconds
    #[arg(long, default_value_t = 60)]
    patience: u64,
    /// Leave the run's tasks as they are, instead of deleting them
    #[arg(long)]
    keep: bool,
}

pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    consent(settings)?;
    let plan = Plan {
        subjects: options.subjects.max(1),
        rate: options.rate.max(0.1),
        seconds: options.seconds.max(1),
        patience: Duration::from_secs(options.patience.max(1)),
    };
    let stop = CancellationToken::new();
    let stores = connect::stores(settings, "taskflow verify", &stop).await?;
    // Waits for the connection, and says clearly if there is none.
    drop(stores.publish.channel().await?);
    let run = Run::begin(&stores, plan.patience).await?;
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    if !json {
        println!("Sending {} commands a second for {} s. Break what you like.", plan.rate, plan.seconds);
    }
    let stream = Stream::start(&stores.publisher, run, plan);
    let end = Instant::now() + Duration::from_secs(plan.seconds);
    while Instant::now() < end {
        let accepted = stream.progress.accepted.load(Ordering::Relaxed);
        let refused = stream.progress.refused.load(Ordering::Relaxed);
        bar.set_message(format!("{accepted} accepted, {refused} tries refused and made again"));
        bar.tick();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let sent = stream.end().await;
    let accepted: usize = sent.values().map(|one| one.accepted.len()).sum();
    let tell = |found: usize| {
        bar.set_message(format!("{found} receipts of {accepted}"));
        bar.tick();
    };
    let count = verify::count(&stores, run, &sent, plan.patience, tell).await?;
    bar.finish_and_clear();
    if !options.keep {
        run.clean_up(&stores, sent.keys().copied()).await?;
    }
    stop.cancel();
    print(&count, run, json);
    Ok(if count.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// It sends real commands: whoever owns the deployment says so in its settings.
fn consent(settings: &Settings) -> Result<(), Exit> {
    let production = settings.environment == Environment::Production;
    if !settings.verify.allowed {
        return Err(Exit::usage(
            "verify sends real commands; allow it in the settings: verify.allowed = true (TASKFLOW_VERIFY__ALLOWED)",
        ));
    }
    if production && !settings.verify.allowed_in_production {
        return Err(Exit::usage(
            "this is production (environment); allow it there with verify.allowed_in_production = true",
        ));
    }
    Ok(())
}

fn print(count: &Count, run: Run, json: bool) {
    if json {
        println!("{}", json!({ "run": run.id, "user": run.user, "count": count }));
        return;
    }
    for (name, value) in [
        ("accepted", count.accepted),
        ("applied", count.applied),
        ("lost", count.lost),
        ("doubled", count.doubled),
        ("reordered", count.reordered),
        ("stuck", count.stuck),
    ] {
        println!("{name:<10} {value:>9}");
    }
    for example in &count.examples {
        println!("  {example}");
    }
}
