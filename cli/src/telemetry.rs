//! Logs and metrics of a process.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use taskflow_api::Metrics;
use taskflow_core::metric::{self, Kind};
use taskflow_core::{Outcome, command, system_event};
use taskflow_stores::{observe, supervise};
use tokio_util::sync::CancellationToken;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Exit;
use crate::settings::{LogFormat, Settings};

/// Starts logging to standard error.
pub(crate) fn start_logs(settings: &Settings) -> Result<(), Exit> {
    let filter = EnvFilter::try_new(&settings.log.0).map_err(|error| {
        Exit::usage(format!(
            "log: {:?}: {error}; it looks like info or taskflow_workers=debug,info",
            settings.log.0
        ))
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match settings.log_format {
        LogFormat::Json => registry.with(format.json().flatten_event(true)).try_init(),
        LogFormat::Pretty => registry
            .with(format.compact().with_target(false).with_ansi(std::io::stderr().is_terminal()))
            .try_init(),
    };
    started.map_err(|error| Exit::failed(format!("logging can't start: {error}")))?;
    let plain = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        if tracing::enabled!(Level::ERROR) {
            log_panic(panic);
        } else {
            plain(panic);
        }
    }));
    Ok(())
}

/// A panic is one event of the log, as everything else: who collects the log reads an event a line.
fn log_panic(panic: &panic::PanicHookInfo<'_>) {
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    let (cause, at) = (supervise::words(panic.payload()), panic.location().map(ToString::to_string));
    tracing::error!(
        panic = cause,
        at,
        backtrace,
        thread = std::thread::current().name(),
        "The program has panicked."
    );
}

/// Starts recording metrics; the result renders them.
pub(crate) fn start_metrics() -> Result<Metrics, Exit> {
    let broken = |error: &dyn std::fmt::Display| Exit::failed(format!("metrics can't start: {error}"));
    let mut builder = PrometheusBuilder::new();
    for metric in metric::ALL {
        if let Kind::Histogram(bounds) = metric.kind {
            // Without bounds a histogram would come out as a summary, which can't be added up.
            let matcher = Matcher::Full(metric.name.to_owned());
            builder = builder.set_buckets_for_metric(matcher, bounds).map_err(|error| broken(&error))?;
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| broken(&error))?;
    describe();
    let upkeep = handle.clone();
    tokio::spawn(async move {
        let keep = || async {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                upkeep.run_upkeep();
            }
        };
        supervise::forever("metrics", &CancellationToken::new(), keep).await;
    });
    let runtime = tokio::runtime::Handle::current();
    Ok(Arc::new(move || {
        observe::gauge(&metric::TASKS, &[]).set(runtime.metrics().num_alive_tasks() as f64);
        handle.render()
    }))
}

fn describe() {
    for metric in metric::ALL {
        match metric.kind {
            Kind::Counter => {
                metrics::describe_counter!(metric.name, metric.help);
                if metric.labels.is_empty() {
                    observe::counter(metric, &[]).absolute(0);
                }
            }
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram(_) => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    // Series that are there from the start, at 0: a rate needs a first value.
    for kind in command::TYPES {
        observe::counter(&metric::COMMANDS_ACCEPTED, &[("type", kind)]).absolute(0);
        for outcome in Outcome::ALL {
            let labels = [("type", kind), ("outcome", outcome.as_str())];
            observe::counter(&metric::COMMANDS_FINISHED, &labels).absolute(0);
        }
    }
    for result in ["same", "mismatch"] {
        observe::counter(&metric::COMMAND_DUPLICATES, &[("result", result)]).absolute(0);
    }
    for reason in ["invalid", "forbidden", "mismatch", "unavailable", "backlog"] {
        observe::counter(&metric::COMMANDS_REFUSED, &[("reason", reason)]).absolute(0);
    }
    let sensitive = system_event::SENSITIVE.map(|(_, operation)| operation);
    for operation in sensitive.into_iter().chain([system_event::ADMIN_REGISTRATION]) {
        observe::counter(&metric::SENSITIVE_OPERATIONS, &[("operation", operation)]).absolute(0);
    }
    let commit = option_env!("TASKFLOW_COMMIT").unwrap_or("unknown");
    let labels = [("version", env!("CARGO_PKG_VERSION")), ("commit", commit)];
    observe::gauge(&metric::BUILD_INFO, &labels).set(1.0);
}
