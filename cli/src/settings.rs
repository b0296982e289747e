//! Settings: defaults, then a file, then the environment. The only place that reads the environment.
//!
//! What is unknown or of the wrong type stops the start, with its name, where the value came from, and what was
//! expected.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::Figment;
use figment::error::{Actual, Kind};
use figment::providers::{Env, Format, Serialized, Toml};
use serde::{Deserialize, Serialize};
use taskflow_core::event::Retention;
use taskflow_stores::{mongo, postgres, rabbit, redis};

use crate::commands::role::Role;
use crate::exit::Exit;

const PREFIX: &str = "TASKFLOW_";
/// The file that is read if it is there.
const FILE: &str = "taskflow.toml";
/// Variables under our prefix that are no settings: a test's switches, and what the examples of `docs/clients` take.
const NOT_SETTINGS: [&str; 6] = ["crash_at", "crash_on", "deaf_at", "api", "email", "password"];

/// Everything that can be set. Each part belongs to the crate that it is for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    pub postgres: postgres::Settings,
    pub amqp: rabbit::Settings,
    pub mongodb: mongo::Settings,
    pub redis: redis::Settings,
    pub http: taskflow_api::Settings,
    pub worker: taskflow_workers::Settings,
    pub scheduler: taskflow_scheduler::Settings,
    pub audit: taskflow_scheduler::audit::Settings,
    pub canary: taskflow_scheduler::canary::Settings,
    pub backup: taskflow_backup::Settings,
    pub metrics: Metrics,
    pub retention: Retention,
    pub verify: crate::verify::Settings,
    pub environment: Environment,
    /// Threads that the process's tasks share. 0: half of the cores, at least one; all of them for an API, whose part of a
    /// request is the largest; at least two where a scheduler is in it, which must renew its lead whatever its jobs do. A
    /// worker's part of a command is small: one thread does more than Postgres can, and each hand-over between threads
    /// costs a lone command a wake-up.
    pub threads: usize,
    /// Which log lines are shown, such as `info` or `taskflow_workers=debug,info`.
    pub log: LogFilter,
    pub log_format: LogFormat,
}

impl Settings {
    /// How many threads the runtime has that a command runs in.
    pub(crate) fn threads(&self, command: &crate::Command) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        match (self.threads, command) {
            (0, crate::Command::Api) => cores(),
            (0, crate::Command::Scheduler | crate::Command::All | crate::Command::Dev(_)) => {
                cores().div_ceil(2).max(2)
            }
            (0, _) => cores().div_ceil(2),
            (threads, _) => threads,
        }
    }
}

/// Where a process shows its metrics and its health to operators, without authentication.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Metrics {
    /// Default: port 9101 for a worker, 9102 for a scheduler, 9103 for an API or all in one, on the loopback interface.
    pub listen: Option<SocketAddr>,
}

impl Metrics {
    pub(crate) fn address(&self, roles: &[Role]) -> SocketAddr {
        let port = match roles {
            roles if roles.contains(&Role::Api) => 9103,
            roles if roles.contains(&Role::Worker) => 9101,
            _ => 9102,
        };
        self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

/// Sample data and other conveniences are for development only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Environment {
    #[default]
    Production,
    Development,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LogFilter(pub String);

impl Default for LogFilter {
    fn default() -> Self {
        // lapin logs every broken connection at length, sqlx every notice of the server and every statement that a
        // store which is away has kept waiting; our own code says it once.
        Self("info,lapin=off,sqlx=error".into())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    #[default]
    Pretty,
    Json,
}

/// Reads the settings.
pub(crate) fn load(file: Option<&Path>) -> Result<Settings, Exit> {
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    figment = match file {
        Some(file) if !file.is_file() => {
            return Err(Exit::usage(format!("--config {}: there is no such file", file.display())));
        }
        Some(file) => figment.merge(Toml::file_exact(file)),
        None if Path::new(FILE).is_file() => figment.merge(Toml::file_exact(FILE)),
        None => figment,
    };
    // Values stay texts where a text is wanted: a password of digits is no number.
    let variables = Env::prefixed(PREFIX)
        .ignore(&NOT_SETTINGS)
        .filter(|key| !key.as_str().to_ascii_lowercase().ends_with("_file"))
        .split("__");
    figment = figment.merge(variables);
    for (key, value) in secrets_in_files()? {
        figment = figment.merge(Serialized::default(&key, value));
    }
    let settings: Settings = figment.extract().map_err(|error| Exit::usage(explain(&error)))?;
    settings.retention.check().map_err(Exit::usage)?;
    taskflow_scheduler::Schedules::read(&settings.scheduler).map_err(Exit::usage)?;
    Ok(settings)
}

/// `TASKFLOW_POSTGRES__URL_FILE=/run/secrets/url` is `TASKFLOW_POSTGRES__URL` with what is in the file.
fn secrets_in_files() -> Result<Vec<(String, String)>, Exit> {
    let variables = std::env::vars();
    let mut secrets = Vec::new();
    for (name, path) in variables {
        let Some(key) = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix("_FILE")) else {
            continue;
        };
        let text = std::fs::read_to_string(PathBuf::from(&path))
            .map_err(|error| Exit::usage(format!("{name}={path}: {error}")))?;
        secrets.push((key.to_ascii_lowercase().replace("__", "."), text.trim_end().to_owned()));
    }
    Ok(secrets)
}

/// All problems, one a line: what, from where, what was expected.
fn explain(error: &figment::Error) -> String {
    error.clone().into_iter().map(|error| explain_one(&error)).collect::<Vec<_>>().join("\n")
}

fn explain_one(error: &figment::Error) -> String {
    let key = error.path.join(".");
    let from = match error.metadata.as_ref() {
        Some(metadata) if metadata.name.contains("environment") => {
            format!("the environment, {PREFIX}{}", error.path.join("__").to_uppercase())
        }
        Some(metadata) => match &metadata.source {
            Some(source) => source.to_string(),
            None => metadata.name.to_string(),
        },
        None => "the settings".to_owned(),
    };
    match &error.kind {
        Kind::UnknownField(name, known) => {
            let path = error.path.iter().map(String::as_str).chain([name.as_str()]);
            let key = dedup(path).join(".");
            let closest = known
                .iter()
                .map(|known| (strsim::jaro_winkler(known, name), *known))
                .max_by(|a, b| a.0.total_cmp(&b.0))
                .filter(|(likeness, _)| *likeness > 0.75);
            let hint = closest.map_or_else(
                || format!("known here: {}", known.join(", ")),
                |(_, known)| format!("did you mean `{known}`?"),
            );
            format!("{key}: unknown setting (from {from}); {hint}")
        }
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            format!("{key}: {} is not {expected} (from {from})", show(actual))
        }
        Kind::UnknownVariant(variant, known) => {
            format!("{key}: {variant:?} is not one of {} (from {from})", known.join(", "))
        }
        other if key.is_empty() => format!("{from}: {other}"),
        other => format!("{key}: {other} (from {from})"),
    }
}

/// The path may end with the unknown name already.
fn dedup<'p>(path: impl Iterator<Item = &'p str>) -> Vec<&'p str> {
    let mut path: Vec<&str> = path.collect();
    path.dedup();
    path
}

fn show(actual: &Actual) -> String {
    match actual {
        Actual::Str(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}
/// An address of a store as it may be shown: screens are shared.
pub(crate) fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}
