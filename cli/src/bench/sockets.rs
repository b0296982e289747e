//! What an idle reader of the live stream costs.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use taskflow_servers::free_address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::intake::log_in;
use super::report::Figure;
use crate::place::{self, Place};

const SOCKETS: usize = 2_000;
/// Connections that are made at the same time.
const ABREAST: usize = 50;
/// Before memory is looked at: what was used to connect is given back by then.
const SETTLE: Duration = Duration::from_secs(5);

pub(super) async fn run(place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    raise_open_files()?;
    let site = place.site().await?;
    let address = free_address()?;
    let mut command = site.command(&["api"]);
    command.env("TASKFLOW_HTTP__LISTEN", &address).env("TASKFLOW_HTTP__STREAM__USER_SOCKETS_MAX", "100000");
    let child = command.spawn().context("start the API")?;
    let pid = child.id().context("the API ended at once")?;
    let headers = log_in(&address).await?;
    // The first ones bring up what all share: the feed, its connection.
    let mut sockets = open(&address, &headers, 20).await?;
    tokio::time::sleep(SETTLE).await;
    let before = place::memory_kib(pid);
    let first = sockets.len();
    tell("idle sockets");
    sockets.extend(open(&address, &headers, SOCKETS).await?);
    tokio::time::sleep(SETTLE).await;
    let each = (place::memory_kib(pid) - before) / (sockets.len() - first) as f64;
    drop(sockets);
    place::stop(child).await?;
    site.close().await;
    Ok(vec![Figure::at_most(&format!("memory of an idle socket, {SOCKETS} of them"), each, "KiB", 20.0)])
}

async fn open(address: &str, headers: &str, count: usize) -> Result<Vec<TcpStream>> {
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let mut some = JoinSet::new();
        for _ in 0..ABREAST.min(count - open.len()) {
            let (address, headers) = (address.to_owned(), headers.to_owned());
            some.spawn(async move { connect(&address, &headers).await });
        }
        while let Some(socket) = some.join_next().await {
            open.push(socket??);
        }
    }
    Ok(open)
}

/// Asks for a stream, and waits for the first message behind the answer.
async fn connect(address: &str, headers: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET /v1/stream HTTP/1.1\r\nhost: {address}\r\n{headers}connection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        ensure!(stream.read_buf(&mut buffer).await? > 0, "the server closed the connection");
        let text = String::from_utf8_lossy(&buffer);
        ensure!(text.starts_with("HTTP/1.1 101"), "{text}");
        if text.contains("\"cursor\"") {
            return Ok(stream);
        }
    }
}

/// Each socket is a file, here and in the API, which inherits the limit.
fn raise_open_files() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = (SOCKETS as u64 + 1_000).min(hard);
    ensure!(wanted > SOCKETS as u64 + 200, "a process may have only {hard} files (ulimit -Hn)");
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard)?;
    }
    Ok(())
}
