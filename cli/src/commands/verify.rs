//! `taskflow verify`: sends known streams to this deployment, while it or its operator breaks things, and counts.
//! [`crate::verify`] has the streams and the count.

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::connect;
use crate::exit::{Exit, FAILED};
use crate::settings::{Environment, Settings};
use crate::verify::breaks::{Break, Breaking, Broken};
use crate::verify::{self, Plan, Run, Stream};

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
    let mut broken = Vec::new();
    let show = async {
        loop {
            let accepted = stream.progress.accepted.load(Ordering::Relaxed);
            let refused = stream.progress.refused.load(Ordering::Relaxed);
            bar.set_message(format!("{accepted} accepted, {refused} tries refused and made again"));
            bar.tick();
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(plan.seconds)) => {}
        () = breaking.run(&stores, &mut broken) => {}
        () = show => {}
    }
    let twice = stream.progress.twice.load(Ordering::Relaxed);
    let sent = stream.end().await;
    let accepted: usize = sent.values().map(|one| one.accepted.len()).sum();
    let tell = |found: usize| {
        bar.set_message(format!("{found} receipts of {accepted}"));
        bar.tick();
    };
    let count = verify::count(&stores, run, &sent, plan.patience, tell).await?;
    bar.finish_and_clear();
    if !options.keep {
        run.clean_up(&stores, &sent).await?;
    }
    stop.cancel();
    if json {
        println!(
            "{}",
            json!({
                "run": run.id, "user": run.user, "source": run.source(), "broken": broken, "twice": twice,
                "count": count,
            })
        );
    } else {
        for Broken { what, error } in &broken {
            let outcome =
                error.as_ref().map_or_else(String::new, |error| format!(": could not be done: {error}"));
            println!("broke      {what}{outcome}");
        }
        println!("sent twice {twice:>9}");
        print!("{}", count.table());
    }
    Ok(if count.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
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
