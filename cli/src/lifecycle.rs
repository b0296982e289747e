//! The life of a process: until a signal, then a soft stop (finish what is held), then, if that takes too long or a
//! second signal comes, a hard one. A part that ends by itself takes the process down: nothing may go on half.

use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::exit::{Exit, FAILED};

/// How long a soft stop may take.
const GRACE: Duration = Duration::from_secs(30);

/// The signals that ask a process to stop. Listen first of all: one that comes before would kill the process.
pub(crate) struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Exit> {
        let unheard = |error: std::io::Error| Exit::failed(format!("signals can't be heard: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(unheard)?,
            interrupt: signal(SignalKind::interrupt()).map_err(unheard)?,
        })
    }
}

/// Runs the parts until they have all ended. Each must end soon after `stop`.
pub(crate) async fn run(
    mut parts: JoinSet<&'static str>,
    Signals { mut terminate, mut interrupt }: Signals,
    stop: CancellationToken,
) -> ExitCode {
    let mut failed = false;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: finishing what is held."),
        _ = interrupt.recv() => tracing::info!("Interrupted: finishing what is held. A second time stops at once."),
        ended = parts.join_next() => {
            failed = true;
            report(ended);
        }
    }
    stop.cancel();
    let all = async {
        while let Some(ended) = parts.join_next().await {
            if ended.is_err() {
                failed = true;
                report(Some(ended));
            }
        }
    };
    tokio::select! {
        () = all => {}
        _ = terminate.recv() => failed = true,
        _ = interrupt.recv() => failed = true,
        () = tokio::time::sleep(GRACE) => {
            failed = true;
            tracing::error!("Not finished within {} s; stopping at once.", GRACE.as_secs());
        }
    }
    if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

fn report(ended: Option<Result<&'static str, tokio::task::JoinError>>) {
    match ended {
        Some(Ok(part)) => tracing::error!(part, "A part of the process ended by itself; the process stops."),
        Some(Err(error)) => tracing::error!(%error, "A part of the process crashed; the process stops."),
        None => tracing::error!("There is nothing to run."),
    }
}
