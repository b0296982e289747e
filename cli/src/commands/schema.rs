//! `taskflow schema`: what commands look like, for machines, and whether that still takes what it took.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Map, Value};
use taskflow_core::schema;
use taskflow_core::schema::compare::{Difference, compare};

use crate::exit::{Exit, FAILED};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Print the JSON Schema of every command type and version
    Export,
    /// Compare an earlier export with this program's schemas; ends with 1 if a command that was taken is refused now
    Check {
        /// What an earlier `taskflow schema export` has printed
        #[arg(long, value_name = "FILE")]
        against: PathBuf,
    },
}

pub(crate) fn run(command: Command, json: bool) -> Result<ExitCode, Exit> {
    match command {
        Command::Export => {
            let text = serde_json::to_string_pretty(&schema::all());
            println!("{}", text.map_err(|error| Exit::failed(error.to_string()))?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { against } => {
            let differences = compare(&read(&against)?, &schema::all());
            tell(&differences, json)?;
            let breaks = differences.iter().any(|difference| difference.breaking);
            Ok(if breaks { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
        }
    }
}

fn read(file: &PathBuf) -> Result<Map<String, Value>, Exit> {
    let name = file.display();
    let text = std::fs::read_to_string(file).map_err(|error| Exit::usage(format!("read {name}: {error}")))?;
    let wrong = |error| Exit::usage(format!("{name} is not what `taskflow schema export` prints: {error}"));
    serde_json::from_str(&text).map_err(wrong)
}

fn tell(differences: &[Difference], json: bool) -> Result<(), Exit> {
    if json {
        let text = serde_json::to_string_pretty(differences);
        println!("{}", text.map_err(|error| Exit::failed(error.to_string()))?);
        return Ok(());
    }
    for Difference { pointer, detail, breaking } in differences {
        println!("{} {pointer}: {detail}", if *breaking { "breaking  " } else { "compatible" });
    }
    if differences.is_empty() {
        println!("nothing has changed");
    }
    Ok(())
}
