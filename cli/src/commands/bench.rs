#[derive(clap::Args)]
pub(crate) struct Options {}
pub(crate) async fn run(_: Options, _: crate::settings::Settings, _: bool) -> Result<std::process::ExitCode, crate::exit::Exit> { Ok(std::process::ExitCode::SUCCESS) }
