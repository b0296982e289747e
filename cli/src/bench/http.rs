//! The smallest HTTP client that keeps a connection: a load generator that shares two cores with what it measures must
//! cost next to nothing.

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(super) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    host: String,
}

pub(super) struct Answer {
    pub status: u16,
    /// It came from a cache.
    pub hit: bool,
    pub body: Vec<u8>,
}

impl Connection {
    pub(super) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(8192), host: address.to_owned() })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn post(&mut self, path: &str, headers: &str, body: &[u8]) -> Result<Answer> {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n{headers}\r\n",
            self.host,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.write_all(&request).await?;
        self.answer().await
    }

    /// Asks and reads the whole answer.
    pub(super) async fn get(&mut self, path: &str, headers: &str) -> Result<Answer> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", self.host);
        self.stream.write_all(request.as_bytes()).await?;
        self.answer().await
    }

    /// Begins a request whose body comes in chunks.
    pub(super) async fn begin(&mut self, path: &str, headers: &str) -> Result<()> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n{headers}\r\n",
            self.host
        );
        Ok(self.stream.write_all(head.as_bytes()).await?)
    }

    pub(super) async fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        Ok(self.stream.write_all(&chunk).await?)
    }

    pub(super) async fn end(&mut self) -> Result<Answer> {
        self.stream.write_all(b"0\r\n\r\n").await?;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<Answer> {
        self.buffer.clear();
        let head_end = loop {
            if let Some(end) = self.buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
        };
        let head = std::str::from_utf8(&self.buffer[..head_end])?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(Ok(0), |value| value.trim().parse())?;
        while self.buffer.len() < head_end + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
        }
        let hit = head.contains("\r\nx-cache: hit\r\n");
        Ok(Answer { status, hit, body: self.buffer[head_end..head_end + length].to_vec() })
    }
}
