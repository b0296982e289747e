//! A reader of the live stream.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::Client;

const PATIENCE: Duration = Duration::from_secs(60);

/// An open stream.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The newest cursor.
    pub cursor: String,
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    Event(Value),
    /// A cursor alone.
    Mark,
    /// Closed, with code and reason; 1006 without a close frame.
    Closed(u16, String),
}

impl Socket {
    /// Connects with the client's token in the header, and waits for the first cursor.
    pub async fn open(client: &Client, query: &str) -> Result<Self> {
        let token = client.token().context("log in first")?;
        let header = ("authorization", format!("Bearer {token}"));
        let mut socket = Self::connect(client, query, &[header]).await.map_err(|(_, error)| error)?;
        match socket.next().await? {
            Next::Mark => Ok(socket),
            other => bail!("the first message is {other:?}"),
        }
    }

    /// Connects and goes on behind a cursor.
    pub async fn resume(client: &Client, query: &str, cursor: &str) -> Result<Self> {
        let token = client.token().context("log in first")?;
        let header = ("authorization", format!("Bearer {token}"));
        let and = if query.is_empty() { "?" } else { "&" };
        let query = format!("{query}{and}lasteventid={cursor}");
        let mut socket = Self::connect(client, &query, &[header]).await.map_err(|(_, error)| error)?;
        cursor.clone_into(&mut socket.cursor);
        Ok(socket)
    }

    /// Connects with these headers. An error has the status, 0 if there is none.
    pub async fn connect(
        client: &Client,
        query: &str,
        headers: &[(&'static str, String)],
    ) -> Result<Self, (u16, anyhow::Error)> {
        let url = format!("{}/v1/stream{query}", client.base().replacen("http", "ws", 1));
        let mut request = url.into_client_request().map_err(|error| (0, error.into()))?;
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|error| (0, error.into()))?;
            request.headers_mut().insert(*name, value);
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((stream, _)) => Ok(Self { stream, cursor: String::new() }),
            Err(Error::Http(answer)) => {
                let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                Err((answer.status().as_u16(), anyhow::anyhow!("{}: {body}", answer.status())))
            }
            Err(error) => Err((0, error.into())),
        }
    }

    /// The next message. Pings are answered meanwhile.
    pub async fn next(&mut self) -> Result<Next> {
        loop {
            let message =
                tokio::time::timeout(PATIENCE, self.stream.next()).await.context("nothing comes")?;
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Ok(Next::Closed(frame.code.into(), frame.reason.to_string()));
                }
                Some(Ok(Message::Close(None)) | Err(_)) | None => {
                    return Ok(Next::Closed(1006, "no close frame".into()));
                }
                Some(Ok(_)) => continue,
            };
            let mut value: Value = serde_json::from_str(&text)?;
            value["cursor"].as_str().context("no cursor")?.clone_into(&mut self.cursor);
            return Ok(match value["event"].take() {
                Value::Null => Next::Mark,
                event => Next::Event(event),
            });
        }
    }

    /// The next event; marks are passed over.
    pub async fn event(&mut self) -> Result<Value> {
        loop {
            match self.next().await? {
                Next::Event(event) => return Ok(event),
                Next::Mark => {}
                Next::Closed(code, reason) => bail!("closed: {code} {reason}"),
            }
        }
    }

    /// Reads on until the server closes; returns code and reason.
    pub async fn closed(&mut self) -> Result<(u16, String)> {
        loop {
            if let Next::Closed(code, reason) = self.next().await? {
                return Ok((code, reason));
            }
        }
    }

    /// Sends a text, which nobody wants.
    pub async fn say(&mut self, text: &str) -> Result<()> {
        use futures_util::SinkExt;
        Ok(self.stream.send(Message::Text(text.into())).await?)
    }

    /// Leaves politely.
    pub async fn close(mut self) -> Result<()> {
        self.stream.close(None).await?;
        let ended =
            tokio::time::timeout(PATIENCE, async { while let Some(Ok(_)) = self.stream.next().await {} });
        ensure!(ended.await.is_ok(), "the server does not say goodbye");
        Ok(())
    }
}
