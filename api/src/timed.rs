//! A connection whose other end must keep going: a request's head that has begun must end in time, and bytes that are
//! written must be taken.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use taskflow_core::metric;
use taskflow_stores::observe;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

/// How far the conversation has come, as its server knows: an even number while a head is awaited or read, an odd one
/// while a request is being answered, the greatest once it is no HTTP any more. It grows with each step.
#[derive(Default)]
pub(crate) struct Phase(AtomicU64);

const NO_HTTP: u64 = u64::MAX;

impl Phase {
    pub(crate) fn head_has_ended(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The connection was handed over, to a WebSocket say, which has rules of its own.
    pub(crate) fn is_no_longer_http(&self) {
        self.0.store(NO_HTTP, Ordering::Relaxed);
    }
}

pub(crate) struct Timed {
    stream: TcpStream,
    phase: Arc<Phase>,
    head: Duration,
    write: Duration,
    /// The head that is being read: its phase, and when it must have ended.
    reading: Option<(u64, Instant, Pin<Box<Sleep>>)>,
    /// Set while bytes wait to be taken.
    writing: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    pub(crate) fn new(stream: TcpStream, phase: Arc<Phase>, head: Duration, write: Duration) -> Self {
        Self { stream, phase, head, write, reading: None, writing: None }
    }

    /// Whether the head that is being read has had its time.
    fn is_late(&mut self, context: &mut Context<'_>) -> bool {
        let phase = self.phase.0.load(Ordering::Relaxed);
        if self.reading.as_ref().is_some_and(|(of, ..)| *of != phase) {
            self.reading = None;
        }
        self.reading.as_mut().is_some_and(|(_, until, sleep)| {
            Instant::now() >= *until || sleep.as_mut().poll(context).is_ready()
        })
    }

    /// Bytes have come: perhaps the first of a head.
    fn came(&mut self) {
        let phase = self.phase.0.load(Ordering::Relaxed);
        if self.reading.is_none() && phase.is_multiple_of(2) {
            let until = Instant::now() + self.head;
            self.reading = Some((phase, until, Box::pin(sleep_until(until))));
        }
    }

    fn written(
        &mut self,
        context: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() {
            self.writing = None;
            return result;
        }
        let until = Instant::now() + self.write;
        let sleep = self.writing.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.as_mut().poll(context).is_ready() {
            Poll::Ready(Err(too_slow("write")))
        } else {
            Poll::Pending
        }
    }
}

fn too_slow(reason: &'static str) -> io::Error {
    observe::counter(&metric::CONNECTIONS_CLOSED, &[("reason", reason)]).increment(1);
    io::Error::new(io::ErrorKind::TimedOut, "the other end is too slow")
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_late(context) {
            return Poll::Ready(Err(too_slow("head")));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() && buffer.filled().len() > before {
            self.came();
        }
        read
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(context, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
