//! Redis: with a password and an append-only file, so that sessions survive a restart.

use std::path::PathBuf;

use anyhow::Result;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{Process, Spec};
use crate::{Options, find_program, on_path, user};

const NAME: &str = "redis";
const USER: &str = "redis";

pub(crate) fn url(options: &Options) -> Result<String> {
    Ok(format!("redis://:{}@127.0.0.1:{}/0", options.password(NAME)?, options.ports.redis))
}

pub(crate) async fn start(options: &Options) -> Result<Vec<Process>> {
    let dir = options.dir(NAME);
    user::own_dir(&dir, USER)?;
    let config = dir.join("redis.conf");
    // Redis takes no comment behind a setting.
    let text = format!(
        "bind 127.0.0.1\n\
         port {}\n\
         requirepass {}\n\
         dir \"{}\"\n\
         # Every command goes to the append-only file; snapshots beside it would say nothing more.\n\
         appendonly yes\n\
         appendfsync everysec\n\
         save \"\"\n",
        options.ports.redis,
        options.password(NAME)?,
        dir.display()
    );
    user::own_file(&config, USER, &text)?;
    let candidates: Vec<PathBuf> = on_path("redis-server").into_iter().collect();
    let spec = Spec {
        program: find_program(&candidates, "redis-server", "install the package redis-server")?,
        args: vec![config.display().to_string()],
        env: options.environment(&dir),
        dir,
        names: &["redis-server", "redis-aof-rewrite", "redis-rdb-bgsave"],
        log: options.log(NAME),
        pid_file: options.pid_file(NAME),
        user: USER,
        ports: vec![(options.ports.redis, "Redis")],
        stop: Signal::SIGTERM,
    };
    Ok(vec![Process::start(spec).await?])
}

pub(crate) async fn is_ready(options: &Options) -> bool {
    let Ok(password) = options.password(NAME) else { return false };
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", options.ports.redis)).await?;
        stream.write_all(format!("AUTH {password}\r\nPING\r\n").as_bytes()).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        // `+OK` and `+PONG`; while it loads its file it says `-LOADING`.
        std::io::Result::Ok(&answer == b"+OK\r\n+PONG\r\n")
    };
    matches!(tokio::time::timeout(std::time::Duration::from_secs(2), ask).await, Ok(Ok(true)))
}
