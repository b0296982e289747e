//! Every fault, round after round with new seeds, for as long as is wished; then the table.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::faults::{self, Fault};
use crate::trial::{self, Row, Size, Worlds};

const HELP: &str =
    "soak [--minutes N] [--rounds N] [--seed S] [--rate N] [--only TEXT] [--short] [--output FILE]
  --minutes N   no new trial after so long [default: 180]
  --rounds N    so many seeds for each fault, then the end [default: as many as the minutes hold]
  --seed S      the first round's seed; each further round has the next one [default: 1]
  --rate N      commands a second [default: 1000]
  --only TEXT   faults whose names hold this; may be given several times
  --short       faults as short as in the tests
  --output FILE the table goes there too, after every trial";

struct Options {
    minutes: u64,
    rounds: u64,
    seed: u64,
    rate: u64,
    only: Vec<String>,
    short: bool,
    output: Option<PathBuf>,
}

/// Runs with these words of the command line.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let options = match read(words) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{HELP}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        minutes: 180,
        rounds: u64::MAX,
        seed: 1,
        rate: 1_000,
        only: Vec::new(),
        short: false,
        output: None,
    };
    while let Some(word) = words.next() {
        if word == "--short" {
            options.short = true;
            continue;
        }
        let value =
            words.next().with_context(|| format!("{word}: no such option, or its value is missing"))?;
        let number = || value.parse::<u64>().with_context(|| format!("{word} {value}: not a number"));
        match word.as_str() {
            "--minutes" => options.minutes = number()?,
            "--rounds" => options.rounds = number()?,
            "--seed" => options.seed = number()?,
            "--rate" => options.rate = number()?.max(50),
            "--only" => options.only.push(value),
            "--output" => options.output = Some(value.into()),
            _ => bail!("{word}: no such option"),
        }
    }
    Ok(options)
}

async fn run(options: &Options) -> Result<bool> {
    let program = std::env::current_exe()?.display().to_string();
    let chosen: Vec<&Fault> = faults::all()
        .filter(|fault| options.only.is_empty() || options.only.iter().any(|text| fault.name.contains(text)))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut table = Table::default();
    let mut worlds = Worlds::new();
    'rounds: for round in 0..options.rounds {
        for fault in &chosen {
            if Instant::now() > deadline {
                break 'rounds;
            }
            let size = Size {
                seed: options.seed + round,
                per_second: options.rate,
                senders: 64,
                long: !options.short,
            };
            let begin = Instant::now();
            let world = worlds.get(fault).await?;
            let ended = tokio::select! {
                ended = trial::run(world, &program, fault, size) => ended,
                () = stopped() => break 'rounds,
            };
            let seconds = begin.elapsed().as_secs();
            match &ended {
                Ok(row) if row.verdict.is_clean() => {
                    let back = row.recovery.as_secs_f64();
                    println!(
                        "ok    {} (seed {}): {} commands, again after {back:.1} s [{seconds} s]",
                        row.fault, row.seed, row.accepted
                    );
                }
                Ok(row) => {
                    println!("WRONG {} (seed {}) [{seconds} s]:\n{}", row.fault, row.seed, row.verdict);
                }
                Err(error) => println!("FAILS {} [{seconds} s]: {error:#}", fault.name),
            }
            if fault.spoils || !ended.as_ref().is_ok_and(|row| row.verdict.is_clean()) {
                // What it has left would be blamed on the next one.
                worlds.stop().await;
            }
            table.add(fault.name, ended.ok());
            if let Some(file) = &options.output {
                std::fs::write(file, table.markdown(&chosen))?;
            }
        }
    }
    worlds.stop().await;
    println!("\n{}", table.markdown(&chosen));
    Ok(table.all_well())
}

/// Ctrl-C, or a polite stop: the servers are stopped too, and the table is printed.
async fn stopped() {
    let Ok(mut terminate) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = terminate.recv() => {}
        // Where Ctrl-C can't be heard, it ends the process anyway.
        Ok(()) = tokio::signal::ctrl_c() => {}
    }
}

/// What all rounds have shown of each fault.
#[derive(Default)]
struct Table(BTreeMap<&'static str, Line>);

#[derive(Default)]
struct Line {
    seeds: Vec<u64>,
    /// Trials that could not be brought to their end.
    failed: usize,
    accepted: usize,
    slowest: f64,
    lost: usize,
    doubled: usize,
    reordered: usize,
    stuck: usize,
    recoveries: Vec<Duration>,
    late: usize,
    lines: f64,
}

impl Table {
    fn add(&mut self, fault: &'static str, row: Option<Row>) {
        let line = self.0.entry(fault).or_default();
        let Some(row) = row else {
            line.failed += 1;
            return;
        };
        line.slowest = if line.seeds.is_empty() { row.per_second } else { line.slowest.min(row.per_second) };
        line.seeds.push(row.seed);
        line.accepted += row.accepted;
        line.lost += row.verdict.lost.len();
        line.doubled += row.verdict.doubled.len();
        line.reordered += row.verdict.reordered.len();
        line.stuck += row.verdict.stuck.len();
        line.recoveries.push(row.recovery);
        line.late += usize::from(!row.in_time);
        line.lines = line.lines.max(row.lines);
    }

    fn all_well(&self) -> bool {
        self.0.values().all(|line| line.failed + line.lost + line.doubled + line.reordered + line.stuck == 0)
    }

    /// One row a fault, in the catalogue's order.
    fn markdown(&self, faults: &[&Fault]) -> String {
        let mut text = "| fault | seeds | commands | rate | lost | doubled | reordered | stuck | again after (s) | log lines |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for fault in faults {
            let Some(line) = self.0.get(fault.name) else { continue };
            let seeds = line.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            let failed =
                if line.failed > 0 { format!(" ({} not finished)", line.failed) } else { String::new() };
            let slowest = line.recoveries.iter().max().copied().unwrap_or_default().as_secs_f64();
            let late = if line.late > 0 { " (late)" } else { "" };
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "| {} | {seeds}{failed} | {} | {:.0} | {} | {} | {} | {} | {slowest:.1}{late} | {:.2} |",
                fault.name,
                line.accepted,
                line.slowest,
                line.lost,
                line.doubled,
                line.reordered,
                line.stuck,
                line.lines,
            );
        }
        text
    }
}
