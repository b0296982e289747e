//! As much of AMQP 0-9-1 as it takes to be let in: a greeting alone says little of users and virtual hosts.

use std::io::{Error, Result};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

// Methods of the class `connection`.
const START: u16 = 10;
const START_OK: u16 = 11;
const TUNE: u16 = 30;
const TUNE_OK: u16 = 31;
const OPEN: u16 = 40;
const OPEN_OK: u16 = 41;
const CLOSE: u16 = 50;
const CLOSE_OK: u16 = 51;

/// Opens a connection to a virtual host of this machine's broker and closes it.
pub(crate) async fn log_in(port: u16, user: &str, password: &str, vhost: &str) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    receive(&mut stream, START).await?;
    let response = format!("\0{user}\0{password}");
    let length = u32::try_from(response.len()).map_err(Error::other)?;
    let no_properties = [0; 4].as_slice();
    let (mechanism, locale) = (short("PLAIN")?, short("en_US")?);
    let start_ok = [no_properties, &mechanism, &length.to_be_bytes(), response.as_bytes(), &locale].concat();
    send(&mut stream, START_OK, &start_ok).await?;
    let limits = receive(&mut stream, TUNE).await?;
    // Channels and frame size as proposed, no heartbeat.
    let limits = limits.get(..6).ok_or_else(|| Error::other("a short frame"))?;
    send(&mut stream, TUNE_OK, &[limits, &[0; 2]].concat()).await?;
    send(&mut stream, OPEN, &[short(vhost)?, vec![0; 2]].concat()).await?;
    receive(&mut stream, OPEN_OK).await?;
    // Code 200, no text, no method to blame.
    send(&mut stream, CLOSE, &[0, 200, 0, 0, 0, 0, 0]).await?;
    receive(&mut stream, CLOSE_OK).await?;
    Ok(())
}

fn short(text: &str) -> Result<Vec<u8>> {
    let length = u8::try_from(text.len()).map_err(Error::other)?;
    Ok([&[length], text.as_bytes()].concat())
}

/// A method frame on channel 0, in a single write.
async fn send(stream: &mut TcpStream, method: u16, arguments: &[u8]) -> Result<()> {
    let length = u32::try_from(arguments.len() + 4).map_err(Error::other)?;
    let head = [&[1, 0, 0], length.to_be_bytes().as_slice(), &[0, 10], &method.to_be_bytes()].concat();
    stream.write_all(&[head.as_slice(), arguments, &[0xCE]].concat()).await
}

/// The arguments of the method that must come next.
async fn receive(stream: &mut TcpStream, method: u16) -> Result<Vec<u8>> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    // Not a broker, if it has more to say than that.
    if head[0] != 1 || !(4..65_536).contains(&length) {
        return Err(Error::other("not a method frame"));
    }
    let mut frame = vec![0; length as usize + 1];
    stream.read_exact(&mut frame).await?;
    frame.pop();
    let arguments = frame.split_off(4);
    if frame != [[0, 10], method.to_be_bytes()].concat() {
        return Err(Error::other(format!("another method than {method}: {frame:?}")));
    }
    Ok(arguments)
}
