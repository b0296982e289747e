//! Completion scripts.

use clap_complete::Shell;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(options: Options, command: &mut clap::Command) {
    clap_complete::generate(options.shell, command, "taskflow", &mut std::io::stdout());
}
