//! `taskflow demo`: the promise, to be watched. [`crate::demo`] has the play and its stage.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::demo::{self, Plan, Played, View};
use crate::exit::{Exit, FAILED};
use crate::lifecycle::Signals;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Commands a second
    #[arg(long, default_value_t = 400.0)]
    rate: f64,
    /// Tasks that the commands are spread over
    #[arg(long, default_value_t = 96)]
    subjects: usize,
    /// Seconds of rest before each thing that is broken, and after the last
    #[arg(long, default_value_t = 6.0)]
    rest: f64,
    /// Folder for the stores' data and the workers' logs; it is removed afterwards, unless something was wrong
    #[arg(long, default_value = ".taskflow/demo", value_name = "FOLDER")]
    data: PathBuf,
}

pub(crate) async fn run(options: Options, json: bool) -> Result<ExitCode, Exit> {
    let Signals { mut terminate, mut interrupt } = Signals::listen()?;
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| Exit::failed(format!("signals can't be heard: {error}")))?;
    let plan = Plan {
        rate: options.rate.clamp(1.0, 100_000.0),
        subjects: options.subjects.clamp(1, 100_000),
        rest: Duration::from_secs_f64(options.rest.clamp(0.5, 600.0)),
        data: options.data,
    };
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    let view = View::open(json);
    let played = Box::pin(demo::run(&plan, &view, stopped)).await;
    view.close();
    let Some(played) = played? else {
        return Err(Exit::failed("stopped before the end; everything that it had started is gone"));
    };
    // What the last picture shows is not said twice.
    print(&played, json, view.is_drawn() && std::io::stdout().is_terminal());
    Ok(if played.count.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn print(played: &Played, json: bool, seen: bool) {
    if json {
        println!(
            "{}",
            json!({
                "seconds": played.seconds, "acts": played.acts, "twice": played.twice, "refused": played.refused,
                "count": played.count, "kept": played.kept,
            })
        );
        return;
    }
    println!();
    if !seen {
        for act in &played.acts {
            println!("{:<22} {}", act.what, act.outcome());
        }
        println!();
    }
    print!("{}", played.count.table());
    if played.count.is_clean() {
        println!("\nEvery command that was accepted took effect once, and in its order.");
    }
    if let Some(folder) = &played.kept {
        println!(
            "\nSomething is wrong. What the stores and the workers have to say is in {}.",
            folder.display()
        );
    }
}
