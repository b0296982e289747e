//! A stream of commands, one a line, of any length in bounded memory: a few groups are on their way to the broker
//! while the next is read.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::HeaderMap;
use futures_util::StreamExt;
use taskflow_core::envelope::COMMAND_MAX;

use super::commands::Batch;
use crate::auth::Caller;
use crate::authority::Need;
use crate::bodies::Room;
use crate::body::is_too_slow;
use crate::intake::{Incoming, NotTaken, Sent};
use crate::problem::Problem;
use crate::{App, gate};

/// Commands that are checked and sent together …
pub(super) const GROUP: usize = 500;
/// … or fewer, when they have so many bytes.
const GROUP_BYTES: usize = 1024 * 1024;
/// How long what is known of the caller holds.
const FRESH: Duration = Duration::from_secs(1);
/// Groups that wait for their confirms while the next is read.
const GROUPS_UNCONFIRMED: usize = 4;

pub(super) async fn stream(
    app: &App,
    caller: &Caller,
    headers: &HeaderMap,
    body: Body,
) -> Result<Batch, Problem> {
    let mut intake = Stream {
        app,
        caller: caller.clone(),
        known: Instant::now(),
        headers,
        batch: Batch::default(),
        lines: Lines::default(),
        room: Room::of_caller(caller),
        sent: VecDeque::new(),
        not_taken: NotTaken::new(),
    };
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                intake.finish().await;
                let mut problem = if is_too_slow(&error) {
                    Problem::stream_too_slow()
                } else {
                    Problem::bad_request(
                        "incomplete",
                        "the body ended before it was complete; what came before was taken as accepted counts it",
                    )
                };
                problem.accepted = Some(intake.batch.accepted);
                return Err(problem);
            }
        };
        if !intake.has_room(chunk.len()).await {
            intake.finish().await;
            let mut problem = Problem::busy();
            problem.accepted = Some(intake.batch.accepted);
            return Err(problem);
        }
        intake.lines.feed(&chunk);
        intake.room.shrink_to(intake.lines.bytes);
        while intake.lines.ready() >= GROUP || intake.lines.ready() > 0 && intake.lines.bytes >= GROUP_BYTES {
            intake.ask_again().await?;
            intake.send().await;
            if intake.batch.is_unavailable() || !intake.not_taken.is_empty() {
                // The rest would fare no better; the caller sends it again.
                intake.finish().await;
                return Ok(intake.batch);
            }
        }
    }
    intake.lines.end();
    while intake.lines.ready() > 0 {
        intake.ask_again().await?;
        intake.send().await;
    }
    intake.finish().await;
    Ok(intake.batch)
}

struct Stream<'a> {
    app: &'a App,
    /// Who sends, as of `known`.
    caller: Caller,
    known: Instant,
    headers: &'a HeaderMap,
    batch: Batch,
    lines: Lines,
    /// For what is in `lines`.
    room: Room,
    sent: VecDeque<(Sent, Room)>,
    not_taken: NotTaken,
}

impl Stream<'_> {
    /// Room for more bytes. Where there is none, what this stream holds itself goes first: it must not wait for others
    /// that wait for it.
    async fn has_room(&mut self, bytes: usize) -> bool {
        let bodies = &self.app.bodies;
        if bodies.try_more(&mut self.room, bytes) {
            return true;
        }
        while self.lines.ready() > 0 {
            self.send().await;
        }
        self.finish().await;
        bodies.more(&mut self.room, bytes).await
    }

    /// Whether the caller may still send: a stream may last for longer than its session, its key or its role.
    ///
    /// # Errors
    /// With the number of commands that were accepted.
    async fn ask_again(&mut self) -> Result<(), Problem> {
        if self.known.elapsed() < FRESH {
            return Ok(());
        }
        match gate::caller_of(self.app, self.headers, self.caller.ip, Need::Write).await {
            Ok(caller) => {
                self.caller = caller;
                self.known = Instant::now();
                Ok(())
            }
            Err(mut problem) => {
                self.finish().await;
                problem.accepted = Some(self.batch.accepted);
                Err(problem)
            }
        }
    }

    /// Sends the next group.
    async fn send(&mut self) {
        let group = self.lines.take(GROUP);
        let room = self.room.split(group.iter().map(|line| line.text.len()).sum());
        let incoming: Vec<Incoming<'_>> =
            group.iter().map(|line| Incoming { index: line.number, text: &line.text }).collect();
        let sent = self.app.send(&self.caller, self.headers, &incoming, false, &mut self.not_taken).await;
        self.sent.push_back((sent, room));
        while self.sent.len() > GROUPS_UNCONFIRMED {
            self.confirm_one().await;
        }
    }

    async fn confirm_one(&mut self) {
        let Some((sent, _room)) = self.sent.pop_front() else { return };
        self.batch.add(sent.confirmed(self.app, &mut self.not_taken).await);
    }

    async fn finish(&mut self) {
        while !self.sent.is_empty() {
            self.confirm_one().await;
        }
    }
}

/// One line with its number, from 0. Lines that are longer than any command are cut: they are refused as such.
struct Line {
    number: u64,
    text: Vec<u8>,
}

/// Cuts a stream of bytes into lines.
#[derive(Default)]
struct Lines {
    complete: VecDeque<Line>,
    current: Vec<u8>,
    next: u64,
    /// Of all of these.
    bytes: usize,
}

impl Lines {
    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            self.end();
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
    }

    fn extend(&mut self, bytes: &[u8]) {
        // One byte too many is enough to know.
        let room = (COMMAND_MAX + 1).saturating_sub(self.current.len());
        let taken = &bytes[..bytes.len().min(room)];
        self.current.extend_from_slice(taken);
        self.bytes += taken.len();
    }

    /// Ends the current line; blank ones are skipped, but counted.
    fn end(&mut self) {
        let text = std::mem::take(&mut self.current);
        if text.iter().any(|byte| !byte.is_ascii_whitespace()) {
            self.complete.push_back(Line { number: self.next, text });
        } else {
            self.bytes -= text.len();
        }
        self.next += 1;
    }

    fn ready(&self) -> usize {
        self.complete.len()
    }

    fn take(&mut self, count: usize) -> Vec<Line> {
        let count = count.min(self.complete.len());
        let lines: Vec<Line> = self.complete.drain(..count).collect();
        self.bytes -= lines.iter().map(|line| line.text.len()).sum::<usize>();
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_the_same_however_the_stream_is_cut() {
        let text = b"one\n\n two \r\nthree";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            lines.feed(&text[..cut]);
            lines.feed(&text[cut..]);
            lines.end();
            let got: Vec<(u64, Vec<u8>)> = lines.take(9).into_iter().map(|l| (l.number, l.text)).collect();
            assert_eq!(got, [(0, b"one".to_vec()), (2, b" two \r".to_vec()), (3, b"three".to_vec())]);
            assert_eq!(lines.bytes, 0);
        }
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut lines = Lines::default();
        for _ in 0..64 {
            lines.feed(&vec![b'x'; 64 * 1024]);
        }
        assert!(lines.current.len() <= COMMAND_MAX + 1);
    }
}
