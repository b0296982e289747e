//! MongoDB: `mongod` where it is installed, else `secantusd-rs`, which speaks its protocol over the same storage engine.

use std::path::PathBuf;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

use crate::postgres::start_when_free;
use crate::process::{self, Process, Spec};
use crate::{Options, find_program, on_path};

const NAME: &str = "mongodb";

pub(crate) fn url(options: &Options) -> String {
    format!("mongodb://127.0.0.1:{}/taskflow", options.ports.mongodb)
}

pub(crate) async fn start(options: &Options) -> Result<Vec<Process>> {
    let has_user = process::user("mongodb").is_ok_and(|user| user.is_some());
    let user = if has_user { "mongodb" } else { "nobody" };
    let dir = options.dir(NAME);
    let data = dir.join("data");
    process::own_dir(&dir, user)?;
    process::own_dir(&data, user)?;
    let (port, data) = (options.ports.mongodb.to_string(), data.display().to_string());
    let (program, args) = match on_path("mongod") {
        Some(mongod) => (mongod, vec!["--port", &port, "--bind_ip", "127.0.0.1", "--dbpath", &data]),
        None => (
            surrogate(options)?,
            vec![
                "--port",
                &port,
                "--storage-path",
                &data,
                "--cache-size",
                "1G",
                "--log-level",
                "WARNING",
                "--standalone",
            ],
        ),
    };
    let args = args.into_iter().map(str::to_owned).collect();
    let spec = Spec {
        program,
        args,
        env: vec![("HOME", dir.display().to_string())],
        dir,
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user,
        stop: Signal::SIGTERM,
    };
    start_when_free(spec, options.ports.mongodb).await
}

/// `secantusd-rs`, in a place from which the server's user may run it.
fn surrogate(options: &Options) -> Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = on_path("secantusd-rs").into_iter().collect();
    candidates.extend(cache_dir().map(|cache| cache.join("taskflow/secantus/bin/secantusd-rs")));
    let program = find_program(&candidates, "mongod or secantusd-rs", "ops/setup builds the latter once")?;
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(program);
    }
    // The builder's home is closed to other users.
    let copy = options.data_dir.join("bin").join("secantusd-rs");
    let (from, to) = (std::fs::metadata(&program)?, std::fs::metadata(&copy));
    if to.map_or(true, |to| to.len() != from.len()) {
        std::fs::create_dir_all(options.data_dir.join("bin"))?;
        let fresh = copy.with_extension("fresh");
        std::fs::copy(&program, &fresh).with_context(|| format!("copy {}", program.display()))?;
        std::fs::rename(&fresh, &copy)?;
    }
    Ok(copy)
}

fn cache_dir() -> Option<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "where programs lie is no setting of ours")]
    let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    of("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(of("HOME")?).join(".cache")))
}

pub(crate) async fn is_ready(options: &Options) -> bool {
    TcpStream::connect(("127.0.0.1", options.ports.mongodb)).await.is_ok()
}
