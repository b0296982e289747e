//! What `taskflow verify` breaks by itself, with the rights that it has anyway; and an operator's own command, for what
//! it has no right to: killing a worker, restarting a store.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use taskflow_stores::postgres::{health, leases};
use tokio::process::Command;

use crate::connect::Stores;

/// What is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Break {
    /// End the lease of one partition, as if its worker had stood still: the partition changes hands
    Lease,
    /// End all sessions that the roles have in Postgres, as a failover would
    Sessions,
}

/// How often, and with what.
#[derive(Debug, Clone)]
pub(crate) struct Breaking {
    pub breaks: Vec<Break>,
    /// A command of the operator's, for the shell.
    pub command: Option<String>,
    pub every: Duration,
}

/// One thing that was broken.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Broken {
    pub what: String,
    /// Why it could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Breaking {
    pub(crate) fn is_nothing(&self) -> bool {
        self.breaks.is_empty() && self.command.is_none()
    }

    /// Breaks one thing after the other, in turn, until it is dropped.
    pub(crate) async fn run(&self, stores: &Stores, broken: &mut Vec<Broken>) {
        for turn in 0.. {
            tokio::time::sleep(self.every.mul_f64(rand::random_range(0.75..=1.25))).await;
            let ways = self.breaks.len() + usize::from(self.command.is_some());
            if ways == 0 {
                continue;
            }
            let (what, result) = match (self.breaks.get(turn % ways), &self.command) {
                (Some(one), _) => cause(*one, stores).await,
                (None, Some(command)) => (command.clone(), shell(command).await),
                (None, None) => continue,
            };
            broken.push(Broken { what, error: result.err() });
        }
    }
}

async fn cause(one: Break, stores: &Stores) -> (String, Result<(), String>) {
    let postgres = &stores.postgres;
    match one {
        Break::Lease => match leases::expire_one(postgres).await {
            Ok(Some(partition)) => (format!("ended the lease of partition {partition}"), Ok(())),
            Ok(None) => ("end a lease".into(), Err("nobody holds one".into())),
            Err(error) => ("end a lease".into(), Err(error.to_string())),
        },
        Break::Sessions => match health::end_sessions(postgres, crate::commands::role::NAME).await {
            Ok(count) => (format!("ended {count} sessions of Postgres"), Ok(())),
            Err(error) => ("end the sessions of Postgres".into(), Err(error.to_string())),
        },
    }
}

/// Its output goes to standard error: standard output is for the report.
async fn shell(command: &str) -> Result<(), String> {
    let output = Command::new("/bin/sh").args(["-c", command]).kill_on_drop(true).output().await;
    let output = output.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{}: {words}", output.status))
}
