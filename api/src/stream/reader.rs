//! One reader: what it missed, then what happens, until either side has enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::Bytes;
use taskflow_core::stream::{Cursor, Positions};
use tokio::sync::mpsc;

use super::Settings;
use super::gap::{self, Gap, Missed, Reader};
use super::hub::{End, Hub, Live, Seat};
use crate::Stores;

/// How long a close frame may take, behind what is written already.
const GOODBYE: Duration = Duration::from_secs(5);

/// What a reader's task has.
pub(crate) struct Stream {
    pub settings: Settings,
    pub hub: Arc<Hub>,
    pub seat: Arc<Seat>,
    pub events: mpsc::Receiver<Arc<Live>>,
    /// Where it begins: how far each partition had got when the seat had been taken; `None` for who comes back.
    pub newest: Positions,
}

/// Serves a reader to its end. Returns why it ended.
pub(crate) async fn serve(
    mut socket: WebSocket,
    stream: Stream,
    stores: &Stores,
    cursor: Option<Cursor>,
) -> End {
    let seat = Arc::clone(&stream.seat);
    let mut writer = Writer {
        floor: stream.newest,
        timeout: Duration::from_millis(stream.settings.write_timeout_ms),
        hub: Arc::clone(&stream.hub),
    };
    let mut events = stream.events;
    let end = {
        let read = async {
            if let Some(cursor) = cursor {
                let (most, most_bytes) = (stream.settings.gap_max, stream.settings.gap_bytes);
                let oldest = Duration::from_secs(stream.settings.gap_age_max_s);
                let user = (!seat.all).then_some(seat.user);
                let told = stream.hub.told.until();
                let reader = Reader { user, filter: &seat.filter, most, most_bytes, told, oldest };
                // Boxed: what only the beginning needs is not kept for as long as the reader stays.
                let gap = match Box::pin(gap::read(stores, &cursor, &reader)).await {
                    Ok(gap) => gap,
                    Err(end) => return end,
                };
                if let Err(end) = Box::pin(writer.fill(&mut socket, cursor, gap)).await {
                    return end;
                }
            } else if let Err(end) = writer.mark(&mut socket, &Positions::default()).await {
                return end;
            }
            live(&mut socket, &mut writer, &mut events, &stream.settings, &seat).await
        };
        tokio::select! {
            // First: after its end nothing more is told.
            biased;
            end = seat.ended() => end,
            end = read => end,
        }
    };
    if let Some((code, reason)) = end.frame() {
        let frame = CloseFrame { code, reason: reason.into() };
        let goodbye = async {
            let _ = socket.send(Message::Close(Some(frame))).await;
            // Until the other side has said goodbye as well, or is gone: a socket that is closed before what was written
            // is read takes the reason with it.
            while let Some(Ok(_)) = socket.recv().await {}
        };
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
    }
    end
}

async fn live(
    socket: &mut WebSocket,
    writer: &mut Writer,
    events: &mut mpsc::Receiver<Arc<Live>>,
    settings: &Settings,
    seat: &Seat,
) -> End {
    let mut ping = tokio::time::interval(Duration::from_millis(settings.ping_ms.max(100)));
    ping.reset();
    let idle = Duration::from_millis(settings.idle_timeout_ms);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            event = events.recv() => {
                let Some(event) = event else { return End::Reset };
                seat.took(&event);
                if let Err(end) = writer.event(socket, &event).await {
                    return end;
                }
            }
            message = socket.recv() => match message {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => heard = Instant::now(),
                Some(Ok(Message::Text(_) | Message::Binary(_))) => return End::Talks,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Left,
            },
            _ = ping.tick() => {
                if heard.elapsed() > idle {
                    return End::Idle;
                }
                // Read before: whatever it says was handed over by now.
                let told = writer.hub.positions();
                let sent = if events.is_empty() { writer.mark(socket, &told).await } else { Ok(()) };
                let sent = match sent {
                    Ok(()) => writer.write(socket, Message::Ping(Bytes::new())).await,
                    end => end,
                };
                if let Err(end) = sent {
                    return end;
                }
            }
        }
    }
}

struct Writer {
    /// What was filled in or not wanted: it does not come again when it comes live.
    floor: Positions,
    timeout: Duration,
    hub: Arc<Hub>,
}

impl Writer {
    async fn fill(&mut self, socket: &mut WebSocket, mut cursor: Cursor, gap: Gap) -> Result<(), End> {
        for Missed { place, json, .. } in gap.missed {
            if let Some((partition, number, index)) = &place {
                cursor.positions.advance(partition, *number, *index);
            }
            // Its time stays: who leaves in the middle has not had everything up to now.
            self.write(socket, framed(&cursor, &json)).await?;
        }
        let mut had = cursor.positions;
        had.merge(&gap.until);
        self.floor = had;
        self.mark(socket, &Positions::default()).await
    }

    async fn event(&mut self, socket: &mut WebSocket, live: &Live) -> Result<(), End> {
        let mut positions = (*live.before).clone();
        if let Some(place) = &live.place {
            if self.floor.has(&place.partition, place.number, place.index) {
                return Ok(());
            }
            positions.advance(&place.partition, place.number, place.index);
        }
        positions.merge(&self.floor);
        let cursor = Cursor { positions, at: self.hub.told.until() };
        self.write(socket, framed(&cursor, &live.json)).await
    }

    /// A cursor without an event: where to begin again if nothing happens.
    async fn mark(&mut self, socket: &mut WebSocket, told: &Positions) -> Result<(), End> {
        let mut positions = told.clone();
        positions.merge(&self.floor);
        if told.covers(&self.floor) {
            // It has served its time.
            self.floor = Positions::default();
        }
        let cursor = Cursor { positions, at: self.hub.told.until() };
        self.write(socket, Message::Text(format!("{{\"cursor\":\"{cursor}\"}}").into())).await
    }

    async fn write(&self, socket: &mut WebSocket, message: Message) -> Result<(), End> {
        match tokio::time::timeout(self.timeout, socket.send(message)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Left),
            Err(_) => Err(End::Slow),
        }
    }
}

/// A cursor holds nothing that JSON would have to escape, and a CloudEvent is JSON.
fn framed(cursor: &Cursor, event: &[u8]) -> Message {
    let event = String::from_utf8_lossy(event);
    Message::Text(format!("{{\"cursor\":\"{cursor}\",\"event\":{event}}}").into())
}
