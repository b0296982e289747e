//! `taskflow verify`: sends known streams to this deployment, while it or its operator breaks things, and counts.
//! [`crate::verify`] has the streams and the count.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::connect::{self, Stores};
use crate::exit::{Exit, FAILED};
use crate::lifecycle::Signals;
use crate::settings::{Environment, Settings};
use crate::verify::breaks::{Break, Breaking, Broken};
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
    /// Leave the run's tasks as they are, instead of deleting them: a copy that is applied late may then stay unseen
    #[arg(long)]
    keep: bool,
    /// Break this meanwhile, in turn (wants verify.may_break in the settings)
    #[arg(long = "break", value_enum, value_delimiter = ',', value_name = "WHAT")]
    breaks: Vec<Break>,
    /// Run this command meanwhile, in turn with what --break names: yours to break things, such as
    /// 'systemctl kill -s KILL taskflow-worker'
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
    /// Seconds between two breaks, give or take a quarter
    #[arg(long, default_value_t = 5)]
    every: u64,
}

pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let breaking = Breaking {
        breaks: options.breaks,
        command: options.run,
        every: Duration::from_secs(options.every.max(1)),
    };
    consent(settings, &breaking)?;
    let signals = Signals::listen()?;
    let plan = Plan {
        subjects: options.subjects.max(1),
        rate: options.rate.max(0.1),
        seconds: options.seconds.max(1),
        patience: Duration::from_secs(options.patience.max(1)),
    };
    let halt = CancellationToken::new();
    tokio::select! {
        ended = check(plan, &breaking, options.keep, settings, json, &halt) => ended,
        () = heard(signals, &halt) => Err(Exit::failed("stopped at once; tasks of the run may be left")),
    }
}

/// The first signal asks for an orderly end. Returns at the second.
async fn heard(Signals { mut terminate, mut interrupt }: Signals, halt: &CancellationToken) {
    for _ in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        halt.cancel();
    }
}

async fn check(
    plan: Plan,
    breaking: &Breaking,
    keep: bool,
    settings: &Settings,
    json: bool,
    halt: &CancellationToken,
) -> Result<ExitCode, Exit> {
    let stop = CancellationToken::new();
    let (stores, run) = tokio::select! {
        begun = begin(plan, settings, &stop) => begun?,
        () = halt.cancelled() => return Err(Exit::failed("stopped before anything was sent")),
    };
    let bar = if json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    if !json {
        println!(
            "Sending {} commands a second for {} s as {}. Break what you like.",
            plan.rate,
            plan.seconds,
            run.source()
        );
    }
    let stream = Stream::start(&stores.publisher, run, plan);
    let (progress, enough) = (Arc::clone(&stream.progress), stream.enough.clone());
    let sending = async {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(plan.seconds)) => {}
            () = halt.cancelled() => {}
        }
        stream.end().await
    };
    let breaks = breaking.run(&stores, &enough, plan.patience);
    let mut both = std::pin::pin!(async { tokio::join!(sending, breaks) });
    let (sent, broken) = loop {
        tokio::select! {
            both = &mut both => break both,
            () = tokio::time::sleep(Duration::from_millis(200)) => {}
        }
        let accepted = progress.accepted.load(Ordering::Relaxed);
        let refused = progress.refused.load(Ordering::Relaxed);
        bar.set_message(if halt.is_cancelled() {
            "ending what is under way; the next signal ends it at once".to_owned()
        } else {
            format!("{accepted} accepted, {refused} tries refused and made again")
        });
        bar.tick();
    };
    let accepted = sent.accepted();
    let tell = |found: usize| {
        bar.set_message(format!("{found} receipts of {accepted}"));
        bar.tick();
    };
    let count = tokio::select! {
        biased;
        () = halt.cancelled() => None,
        count = verify::count(&stores, run, &sent, plan.patience, !keep, tell) => Some(count),
    };
    bar.finish_and_clear();
    // Before all that may still fail.
    report(json, run, &broken, progress.twice.load(Ordering::Relaxed), count.as_ref());
    let ended = match count {
        Some(count) if count.is_clean() => Ok(ExitCode::SUCCESS),
        Some(_) => Ok(ExitCode::from(FAILED)),
        None if keep => Err(Exit::failed("stopped before the end of the count")),
        None => Err(match run.clean_up(&stores, &sent, plan.patience).await {
            Ok(_) => Exit::failed("stopped before the end of the count; the run's tasks are being deleted"),
            Err(error) => Exit::failed(format!(
                "stopped before the end of the count, and the run's tasks could not be deleted: {error}"
            )),
        }),
    };
    stop.cancel();
    ended
}

async fn begin(plan: Plan, settings: &Settings, stop: &CancellationToken) -> Result<(Stores, Run), Exit> {
    let stores = connect::stores(settings, "taskflow verify", stop).await?;
    // Waits for the connection, and says clearly if there is none.
    drop(stores.publish.channel().await?);
    let run = Run::begin(&stores, plan.patience).await?;
    Ok((stores, run))
}

/// Prints what was broken, and what came of it, if it was counted.
fn report(json: bool, run: Run, broken: &[Broken], twice: u64, count: Option<&Count>) {
    if json {
        println!(
            "{}",
            json!({
                "run": run.id, "user": run.user, "source": run.source(), "broken": broken, "twice": twice,
                "count": count,
            })
        );
        return;
    }
    for Broken { what, error } in broken {
        let outcome =
            error.as_ref().map_or_else(String::new, |error| format!(": could not be done: {error}"));
        println!("broke      {what}{outcome}");
    }
    println!("sent twice {twice:>9}");
    if let Some(count) = count {
        print!("{}", count.table());
    }
}

/// It sends real commands: whoever owns the deployment says so in its settings.
fn consent(settings: &Settings, breaking: &Breaking) -> Result<(), Exit> {
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
    if !breaking.is_nothing() && !settings.verify.may_break {
        return Err(Exit::usage(
            "--break and --run disturb everybody who uses this deployment; allow it in the settings: \
             verify.may_break = true (TASKFLOW_VERIFY__MAY_BREAK)",
        ));
    }
    Ok(())
}
