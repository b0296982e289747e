//! MongoDB: `mongod` where it is installed, else `secantusd-rs`, which speaks its protocol over the same storage engine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Process, Spec};
use crate::{Options, find_program, on_path, user};

const NAME: &str = "mongodb";

pub(crate) fn url(options: &Options) -> String {
    format!("mongodb://127.0.0.1:{}/taskflow", options.ports.mongodb)
}

pub(crate) async fn start(options: &Options) -> Result<Vec<Process>> {
    let has_user = user::user("mongodb").is_ok_and(|user| user.is_some());
    let user = if has_user { "mongodb" } else { "nobody" };
    let dir = options.dir(NAME);
    let data = dir.join("data");
    user::own_dir(&dir, user)?;
    user::own_dir(&data, user)?;
    let (port, data) = (options.ports.mongodb.to_string(), data.display().to_string());
    let (program, args) = match on_path("mongod") {
        Some(mongod) => (mongod, vec!["--port", &port, "--bind_ip", "127.0.0.1", "--dbpath", &data]),
        None => (surrogate(options, user)?, surrogate_args(&port, &data)),
    };
    let args = args.into_iter().map(str::to_owned).collect();
    let spec = Spec {
        program,
        args,
        env: options.environment(&dir),
        dir,
        names: &["mongod", "secantusd-rs"],
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user,
        ports: vec![(options.ports.mongodb, "MongoDB")],
        stop: Signal::SIGTERM,
    };
    Ok(vec![Process::start(spec).await?])
}

fn surrogate_args<'a>(port: &'a str, data: &'a str) -> Vec<&'a str> {
    let mut args =
        vec!["--port", port, "--storage-path", data, "--cache-size", "1G", "--log-level", "WARNING"];
    args.push("--standalone");
    // Without it an acknowledged write, `j: true` too, is gone after a kill; with it each costs one sync of the log.
    args.push("--sync-on-commit");
    args
}

/// `secantusd-rs`, in a place from which the server's user may run it.
fn surrogate(options: &Options, user: &str) -> Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = on_path("secantusd-rs").into_iter().collect();
    candidates.extend(cache_dir().map(|cache| cache.join("taskflow/secantus/bin/secantusd-rs")));
    let program = find_program(&candidates, "mongod or secantusd-rs", "ops/setup builds the latter once")?;
    if user::may_run(&program, user)? {
        return Ok(program);
    }
    // The builder's home is closed to other users.
    let copy = options.data_dir.join("bin").join("secantusd-rs");
    let age = |file: &PathBuf| std::fs::metadata(file).and_then(|data| Ok((data.len(), data.modified()?)));
    let (from, to) = (age(&program)?, age(&copy));
    if to.map_or(true, |to| to.0 != from.0 || to.1 < from.1) {
        user::make_open_dir(&options.data_dir.join("bin"))?;
        // Moved when it is whole; a program that runs can't be written to either.
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

/// `{ping: 1, $db: "admin"}` as a message (OP_MSG, 2013) of 51 bytes, our first.
const PING: &[u8] = b"\x33\0\0\0\x01\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\0\x1e\0\0\0\
    \x10ping\0\x01\0\0\0\x02$db\0\x06\0\0\0admin\0\0";

pub(crate) async fn is_ready(options: &Options) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", options.ports.mongodb)).await?;
        stream.write_all(PING).await?;
        let mut header = [0; 16];
        stream.read_exact(&mut header).await?;
        // An answer to our message 1, whatever it says: it serves.
        std::io::Result::Ok(header[8..12] == [1, 0, 0, 0])
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), ask).await, Ok(Ok(true)))
}
