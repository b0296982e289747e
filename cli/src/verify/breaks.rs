//! What `taskflow verify` breaks by itself, with the rights that it has anyway; and an operator's own command, for what
//! it has no right to: killing a worker, restarting a store.

use std::process::Stdio;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use taskflow_stores::postgres::{health, leases};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

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

    /// Breaks one thing after the other, in turn, until it is enough. A command that runs then may come to its end: it
    /// may have stopped what it still has to start. For that it has the patience.
    pub(crate) async fn run(
        &self,
        stores: &Stores,
        enough: &CancellationToken,
        patience: Duration,
    ) -> Vec<Broken> {
        let mut broken = Vec::new();
        let ways = self.breaks.len() + usize::from(self.command.is_some());
        for turn in 0.. {
            tokio::select! {
                biased;
                () = enough.cancelled() => break,
                () = tokio::time::sleep(self.every.mul_f64(rand::random_range(0.75..=1.25))) => {}
            }
            if ways == 0 {
                continue;
            }
            let (what, result) = match (self.breaks.get(turn % ways), &self.command) {
                (Some(one), _) => cause(*one, stores).await,
                (None, Some(command)) => (command.clone(), shell(command, enough, patience).await),
                (None, None) => continue,
            };
            broken.push(Broken { what, error: result.err() });
        }
        broken
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

/// Standard output is for the report: what it says is told if it fails.
async fn shell(command: &str, enough: &CancellationToken, patience: Duration) -> Result<(), String> {
    let mut shell = Command::new("/bin/sh");
    // In a group of its own: Ctrl-C asks us to end, not what is half done.
    shell.args(["-c", command]).stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let too_late = async {
        enough.cancelled().await;
        tokio::time::sleep(patience).await;
    };
    let output = tokio::select! {
        output = shell.output() => output.map_err(|error| error.to_string())?,
        () = too_late => {
            let waited = patience.as_secs();
            return Err(format!("it still ran {waited} s after the time was up, and was killed"));
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{}: {words}", output.status))
}
