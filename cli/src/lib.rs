//! The program `taskflow`: one enum of subcommands and one match.

mod bench;
mod commands;
mod connect;
mod demo;
mod exit;
mod lifecycle;
mod monitor;
mod place;
mod settings;
mod telemetry;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::exit::Exit;

/// Here and not beside `main`, so that tests and the soak run what is shipped.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Message-driven workers: commands in by HTTP or AMQP, applied once and in order to Postgres, audited in MongoDB.
///
/// Settings come from defaults, then a file (taskflow.toml, or --config), then TASKFLOW_… variables with nested keys
/// joined by two underscores, such as TASKFLOW_POSTGRES__URL. A secret may also lie in a file: TASKFLOW_POSTGRES__URL_FILE.
#[derive(Parser)]
#[command(name = "taskflow", version, propagate_version = true, max_term_width = 110)]
struct Program {
    /// Settings file [default: taskflow.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON for programs instead of text for people
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// See it for yourself: load, a worker killed, broker and Postgres restarted, and a count (starts its own stores)
    Demo(commands::demo::Options),
    /// Start everything on this machine: four stores on ports of their own, schemas, sample data, all roles
    Dev(commands::dev::Options),
    /// Run the HTTP intake until SIGTERM
    Api,
    /// Run a worker until SIGTERM
    Worker,
    /// Run the scheduler until SIGTERM
    Scheduler,
    /// Run all roles in one process until SIGTERM
    All,
    /// Bring the schemas of Postgres and MongoDB up or down, or show their versions
    #[command(subcommand)]
    Migrate(commands::migrate::Command),
    /// Insert the sample users and tasks (development only)
    Seed(commands::seed::Options),
    /// Publish commands from a file of JSON lines, with confirms
    Send(commands::send::Options),
    /// Show how a command ended
    Receipt(commands::receipt::Options),
    /// Hold back a partition, a type of command, or everything, until it is resumed
    Pause(commands::pause::PauseOptions),
    /// Let what was paused go on
    Resume(commands::pause::ResumeOptions),
    /// List what is paused: since when, by whom, why
    Pauses,
    /// Show how many partitions there are, or change their number while everything runs
    #[command(subcommand)]
    Partitions(commands::partitions::Command),
    /// Look at dead letters; replay, edit or discard them
    #[command(subcommand)]
    DeadLetters(commands::dead_letters::Command),
    /// Make, list and revoke API keys
    #[command(subcommand)]
    ApiKeys(commands::api_keys::Command),
    /// Print the schemas of the command types; tell a compatible change of them from a breaking one
    #[command(subcommand)]
    Schema(commands::schema::Command),
    /// Look at scheduled jobs and their runs; run, pause, resume or cancel them
    #[command(subcommand)]
    Jobs(commands::jobs::Command),
    /// Put, release and list legal holds: what must not be removed while a matter lasts
    #[command(subcommand)]
    Holds(commands::holds::Command),
    /// Make keys for the audit trail's seals; verify the trail, prove an event, erase a person's data
    #[command(subcommand)]
    Audit(commands::audit::Command),
    /// Make, list, check and prune backups
    #[command(subcommand)]
    Backup(commands::backup::Command),
    /// Restore backups into new databases
    Restore(commands::restore::Options),
    /// Check each store: reachable, version, schema, settings that endanger data
    Doctor,
    /// Measure this machine: floor, throughput, intake, latency (starts its own stores)
    Bench(commands::bench::Options),
    /// Check the promise on this deployment: send a known stream, break what you like, count what is wrong
    Verify(commands::verify::Options),
    /// Print a completion script for a shell
    Completions(commands::completions::Options),
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let program = Program::parse();
    // Settings that can't be read are told of by the command that wants them.
    let threads = settings::load(program.config.as_deref()).unwrap_or_default().threads(&program.command);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = match builder.worker_threads(threads).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Exit::failed(format!("the runtime can't start: {error}")).report(program.json),
    };
    let json = program.json;
    let exit = runtime.block_on(dispatch(program));
    // Tasks that wait for a store must not hold the end up.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match exit {
        Ok(code) => code,
        Err(exit) => exit.report(json),
    }
}

/// A bcrypt hash in the form that users are stored with, for sample data of tests.
///
/// # Errors
/// The password has more than 71 bytes, or there is no such cost.
pub fn hash_password(password: &str, cost: u32) -> anyhow::Result<String> {
    Ok(bcrypt::non_truncating_hash(password, cost)?)
}

async fn dispatch(program: Program) -> Result<ExitCode, Exit> {
    let Program { config, json, command } = program;
    let load = || settings::load(config.as_deref());
    match command {
        Command::Demo(options) => Box::pin(commands::demo::run(options, json)).await,
        Command::Dev(options) => Box::pin(commands::dev::run(options, load()?)).await,
        Command::Api => Box::pin(commands::role::run(load()?, &[commands::role::Role::Api])).await,
        Command::Worker => Box::pin(commands::role::run(load()?, &[commands::role::Role::Worker])).await,
        Command::Scheduler => {
            Box::pin(commands::role::run(load()?, &[commands::role::Role::Scheduler])).await
        }
        Command::All => Box::pin(commands::role::run(load()?, &commands::role::Role::ALL)).await,
        Command::Migrate(command) => Box::pin(commands::migrate::run(command, &load()?, json)).await,
        Command::Seed(options) => Box::pin(commands::seed::run(options, &load()?, json)).await,
        Command::Send(options) => Box::pin(commands::send::run(options, &load()?, json)).await,
        Command::Receipt(options) => Box::pin(commands::receipt::run(options, &load()?, json)).await,
        Command::Pause(options) => Box::pin(commands::pause::pause(options, &load()?, json)).await,
        Command::Resume(options) => Box::pin(commands::pause::resume(options, &load()?, json)).await,
        Command::Pauses => Box::pin(commands::pause::list(&load()?, json)).await,
        Command::Partitions(command) => Box::pin(commands::partitions::run(command, &load()?, json)).await,
        Command::DeadLetters(command) => Box::pin(commands::dead_letters::run(command, &load()?, json)).await,
        Command::ApiKeys(command) => Box::pin(commands::api_keys::run(command, &load()?, json)).await,
        Command::Schema(command) => commands::schema::run(command, json),
        Command::Jobs(command) => Box::pin(commands::jobs::run(command, &load()?, json)).await,
        Command::Holds(command) => Box::pin(commands::holds::run(command, &load()?, json)).await,
        Command::Audit(command) => Box::pin(commands::audit::run(command, &load()?, json)).await,
        Command::Backup(command) => Box::pin(commands::backup::run(command, &load()?, json)).await,
        Command::Restore(options) => Box::pin(commands::restore::run(options, &load()?, json)).await,
        Command::Doctor => Box::pin(commands::doctor::run(&load()?, json)).await,
        Command::Bench(options) => Box::pin(commands::bench::run(options, load()?, json)).await,
        Command::Verify(options) => Box::pin(commands::verify::run(options, &load()?, json)).await,
        Command::Completions(options) => {
            commands::completions::run(options, &mut <Program as clap::CommandFactory>::command());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        <super::Program as clap::CommandFactory>::command().debug_assert();
    }
}
