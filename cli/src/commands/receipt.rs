//! `taskflow receipt`: how a command ended.

use std::process::ExitCode;
use std::time::Duration;

use taskflow_stores::postgres::{self, receipts, waiting};
use uuid::Uuid;

use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The command's id
    id: Uuid,
    /// Wait until the command has its receipt and all stores have followed
    #[arg(long)]
    watch: bool,
}

pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let pool = postgres::connect(&settings.postgres, "taskflow receipt")?;
    let mut told = false;
    loop {
        let receipt = waiting::find(&pool, options.id).await?;
        let ended =
            |r: &receipts::View| r.finishedat.is_some() && (r.events.is_empty() || r.auditedat.is_some());
        let complete = receipt.as_ref().is_some_and(ended);
        if !options.watch || complete {
            return match receipt {
                Some(receipt) => {
                    print(&receipt, json)?;
                    Ok(ExitCode::SUCCESS)
                }
                None => {
                    eprintln!(
                        "taskflow: no receipt for {}: it was never accepted, or is still on its way (--watch waits)",
                        options.id
                    );
                    Ok(ExitCode::from(FAILED))
                }
            };
        }
        if !told {
            eprintln!("waiting for {} …", options.id);
            told = true;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn print(receipt: &receipts::View, json: bool) -> Result<(), Exit> {
    let value = serde_json::to_value(receipt).map_err(|error| Exit::failed(error.to_string()))?;
    if json {
        println!("{value}");
        return Ok(());
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => continue,
            other => other.to_string(),
        };
        println!("{name:<12} {text}");
    }
    Ok(())
}
