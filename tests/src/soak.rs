//! Every fault, round after round with new seeds, for as long as is wished; then the table.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::World;
use crate::faults::{self, Fault};
use crate::growth;
use crate::trial::{self, LINES_MAX, Row, Size, Worlds};
use crate::world::Sync;

const HELP: &str = "soak [--minutes N] [--rounds N] [--seed S] [--rate N] [--only TEXT] [--short] [--output FILE]
soak --growth [--minutes N] [--rounds N]
  --minutes N   no new trial after so long [default: 180]
  --rounds N    so many seeds for each fault, then the end [default: as many as the minutes hold]
  --seed S      the first round's seed; each further round has the next one [default: 1]
  --rate N      commands a second [default: 1000]
  --only TEXT   faults whose names hold this; may be given several times
  --short       faults as short as in the tests
  --output FILE the table goes there too, after every trial; what a run before has left there is added to, and its
                seeds are not run again
  --growth      no faults' table: connections lost and leases renewed again and again, and what grows with it";

struct Options {
    minutes: u64,
    rounds: u64,
    seed: u64,
    rate: u64,
    only: Vec<String>,
    short: bool,
    growth: bool,
    output: Option<PathBuf>,
}

/// Runs with these words of the command line.
pub fn main(words: impl Iterator<Item = String>) -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
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
        growth: false,
        output: None,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--short" => {
                options.short = true;
                continue;
            }
            "--growth" => {
                options.growth = true;
                continue;
            }
            _ => {}
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
    if options.growth {
        return grow(&program, options).await;
    }
    let chosen: Vec<&Fault> = faults::all()
        .filter(|fault| options.only.is_empty() || options.only.iter().any(|text| fault.name.contains(text)))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut table = match &options.output {
        Some(file) if file.exists() => Table::read(&std::fs::read_to_string(file)?, &chosen),
        _ => Table::default(),
    };
    let mut worlds = Worlds::new(Sync::Real);
    'rounds: for round in 0..options.rounds {
        for fault in &chosen {
            if Instant::now() > deadline {
                break 'rounds;
            }
            let seed = options.seed.saturating_add(round);
            if table.has(fault.name, seed) {
                continue;
            }
            let size = Size { seed, per_second: options.rate, senders: 64, long: !options.short };
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
                    if let Some(log) = &row.log {
                        println!("{back:.1} s, {:.1} log lines a second and partition:\n{log}", row.lines);
                    }
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

/// Loses connections again and again, and looks at what that leaves behind.
async fn grow(program: &str, options: &Options) -> Result<bool> {
    let world = World::start(Sync::Real).await?;
    let most = Duration::from_secs(options.minutes * 60);
    let report = tokio::select! {
        report = growth::run(&world, program, options.rounds.min(1_000_000), most) => report,
        () = stopped() => Err(anyhow!("stopped before its end")),
    };
    world.stop().await;
    let report = report?;
    println!("{report}");
    let well = report.must_not_grow();
    if let Err(error) = &well {
        println!("{error}");
    }
    Ok(well.is_ok())
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
    /// Commands a second, of the slowest trial.
    rate: f64,
    lost: usize,
    doubled: usize,
    reordered: usize,
    stuck: usize,
    /// The longest way back, in seconds.
    back_s: f64,
    /// Trials whose way back took longer than it may.
    late: usize,
    lines: f64,
}

impl Table {
    fn has(&self, fault: &str, seed: u64) -> bool {
        self.0.get(fault).is_some_and(|line| line.seeds.contains(&seed))
    }

    fn add(&mut self, fault: &'static str, row: Option<Row>) {
        let line = self.0.entry(fault).or_default();
        let Some(row) = row else {
            line.failed += 1;
            return;
        };
        line.rate = if line.seeds.is_empty() { row.per_second } else { line.rate.min(row.per_second) };
        line.seeds.push(row.seed);
        line.accepted += row.accepted;
        line.lost += row.verdict.lost.len();
        line.doubled += row.verdict.doubled.len();
        line.reordered += row.verdict.reordered.len();
        line.stuck += row.verdict.stuck.len();
        line.back_s = line.back_s.max(row.recovery.as_secs_f64());
        line.late += usize::from(!row.in_time);
        line.lines = line.lines.max(row.lines);
    }

    fn all_well(&self) -> bool {
        self.0.values().all(Line::is_well)
    }

    /// One row a fault, in the catalogue's order.
    fn markdown(&self, faults: &[&Fault]) -> String {
        let mut text = "| fault | seeds | commands | rate | lost | doubled | reordered | stuck | again after (s) | log lines |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for fault in faults {
            let Some(line) = self.0.get(fault.name) else { continue };
            // Writing to a string can't fail.
            let _ = writeln!(text, "| {} | {line}", fault.name);
        }
        text
    }

    /// What [`Table::markdown`] has written.
    fn read(text: &str, faults: &[&Fault]) -> Self {
        let rows = text.lines().filter_map(|row| {
            let (name, line) = row.strip_prefix("| ")?.split_once(" | ")?;
            let fault = faults.iter().find(|fault| fault.name == name)?;
            Some((fault.name, Line::read(line)?))
        });
        Self(rows.collect())
    }
}

impl Line {
    /// Whether it reaches the figures: nothing wrong, in time, and few words.
    fn is_well(&self) -> bool {
        let wrong = self.failed + self.lost + self.doubled + self.reordered + self.stuck;
        wrong + self.late == 0 && self.lines <= LINES_MAX
    }

    fn read(text: &str) -> Option<Self> {
        let cells: Vec<&str> = text.trim_end_matches(" |").split(" | ").collect();
        let [seeds, accepted, rate, lost, doubled, reordered, stuck, back, lines] = cells[..] else {
            return None;
        };
        // `1, 2 (3 not finished)` and `4.5 (1 late)`.
        let beside = |cell: &str| -> usize {
            let inside = cell.split_once('(').and_then(|(_, inside)| inside.split_once(' '));
            inside.and_then(|(count, _)| count.parse().ok()).unwrap_or(0)
        };
        let first = |cell: &str| cell.split('(').next().unwrap_or_default().trim().to_owned();
        Some(Self {
            seeds: first(seeds).split(", ").filter_map(|seed| seed.parse().ok()).collect(),
            failed: beside(seeds),
            accepted: accepted.parse().ok()?,
            rate: rate.parse().ok()?,
            lost: lost.parse().ok()?,
            doubled: doubled.parse().ok()?,
            reordered: reordered.parse().ok()?,
            stuck: stuck.parse().ok()?,
            back_s: first(back).parse().ok()?,
            late: beside(back),
            lines: lines.parse().ok()?,
        })
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = self.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        let failed = if self.failed > 0 { format!(" ({} not finished)", self.failed) } else { String::new() };
        let late = if self.late > 0 { format!(" ({} late)", self.late) } else { String::new() };
        write!(
            f,
            "{seeds}{failed} | {} | {:.0} | {} | {} | {} | {} | {:.1}{late} | {:.2} |",
            self.accepted,
            self.rate,
            self.lost,
            self.doubled,
            self.reordered,
            self.stuck,
            self.back_s,
            self.lines,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_written_can_be_gone_on_with() {
        let chosen: Vec<&Fault> = faults::all().take(3).collect();
        let mut table = Table::default();
        let line =
            Line { seeds: vec![1, 4], accepted: 9, rate: 950.0, late: 1, back_s: 7.5, ..Line::default() };
        table.0.insert(chosen[0].name, line);
        table.0.insert(chosen[2].name, Line { failed: 2, lost: 3, ..Line::default() });
        let text = table.markdown(&chosen);
        let read = Table::read(&text, &chosen);
        assert_eq!(read.markdown(&chosen), text);
        assert!(read.has(chosen[0].name, 4) && !read.has(chosen[0].name, 2) && !read.all_well());
    }

    #[test]
    fn what_is_late_or_says_too_much_is_not_well() {
        let well = || Line { seeds: vec![1], accepted: 9, lines: LINES_MAX, ..Line::default() };
        assert!(well().is_well());
        assert!(!Line { late: 1, ..well() }.is_well());
        assert!(!Line { lines: LINES_MAX + 0.1, ..well() }.is_well());
        assert!(!Line { stuck: 1, ..well() }.is_well());
    }
}
