//! `taskflow bench`: what this machine does, measured in one run on real servers of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;

use crate::bench::{self, Plan};
use crate::exit::Exit;
use crate::settings::Settings;
use crate::telemetry;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Commands to drain in each throughput phase
    #[arg(long, default_value_t = 100_000)]
    commands: usize,
    /// Lone commands to time in each latency phase, at 50 a second
    #[arg(long, default_value_t = 500)]
    lone: usize,
    /// Seconds of each HTTP phase
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// How often the floor and TaskFlow are measured, in turn; the medians are compared
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Events that the audit trail has in the phase trail
    #[arg(long, default_value_t = 1_000_000)]
    events: usize,
    /// Only these phases
    #[arg(long, value_enum, value_delimiter = ',')]
    phases: Vec<Phase>,
    /// Write the figures as JSON to this file
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Folder for the stores' data; it is removed afterwards
    #[arg(long, default_value = ".taskflow/bench", value_name = "FOLDER")]
    data: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Phase {
    /// The barest loop that does the stores' work, and TaskFlow, on the same backlog of task.create
    Drain,
    /// TaskFlow on create, update, assign, change of status and delete of shared subjects
    Mixed,
    /// HTTP intake: one by one, arrays, ndjson
    Intake,
    /// A lone command: publish to commit, to its event, and POST to receipt
    Latency,
    /// Lone commands of normal priority, without and with a backlog of low ones
    Low,
    /// The pause of each partition when workers join, leave and are killed, and when the number of partitions changes;
    /// only when it is named: a round takes more than a minute
    Sharing,
    /// Memory of an idle reader of the live stream, two thousand of them
    Sockets,
    /// Cached reads and single commands at 64 connections: requests a second, p50, p99
    Reads,
    /// Hits of the first minute after a flush of Redis, without and with cache.warm; only if named: it takes three minutes
    Warming,
    /// What the audit trail's chain costs, and the journal: drains without them and with them; only if named
    Costs,
    /// Each shape of a query of the audit trail on many events (--events); only if named
    Trail,
}

pub(crate) async fn run(options: Options, settings: Settings, json: bool) -> Result<ExitCode, Exit> {
    telemetry::start_logs(&settings)?;
    let phases = match options.phases.as_slice() {
        [] => vec![
            Phase::Drain,
            Phase::Mixed,
            Phase::Intake,
            Phase::Latency,
            Phase::Low,
            Phase::Reads,
            Phase::Sockets,
        ],
        some => some.to_vec(),
    };
    let plan = Plan {
        commands: options.commands.max(100),
        lone: options.lone.max(10),
        seconds: options.seconds.max(1),
        rounds: options.rounds.max(1),
        events: options.events.max(1_000),
        phases,
        data: options.data,
        settings,
    };
    let report = bench::run(&plan).await?;
    let text = serde_json::to_string_pretty(&report).map_err(|error| Exit::failed(error.to_string()))?;
    if let Some(file) = &options.output {
        std::fs::write(file, &text)
            .map_err(|error| Exit::failed(format!("write {}: {error}", file.display())))?;
    }
    if json {
        println!("{text}");
    } else {
        print!("{}", bench::report::table(&report));
    }
    Ok(ExitCode::SUCCESS)
}
