//! Taking connections, and letting go of those that only cost.
//!
//! A connection may rest between two requests, but a head that has begun must end soon, and an answer must be taken.
//! How many there may be is bounded, in all and from one address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use taskflow_core::metric;
use taskflow_stores::observe;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service;

use crate::address;
use crate::limits::Limits;
use crate::timed::{Phase, Timed};

/// The client library reads no more at a time, and keeps no more of a head that does not end.
const READ_BYTES: usize = 64 * 1024;
/// After the system could give no more sockets.
const REST: Duration = Duration::from_millis(50);

/// Serves until `stop`, then finishes the requests that have begun.
pub(crate) async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let doorman = Arc::new(Doorman { limits, guests: Mutex::default() });
    let builder = Arc::new(builder(&doorman.limits));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !is_of_the_client(&error) {
                    tracing::warn!(%error, "No connection can be taken.");
                    tokio::time::sleep(REST).await;
                }
                continue;
            }
        };
        let Some(guest) = doorman.let_in(peer.ip()) else { continue };
        let (builder, router, stop) = (Arc::clone(&builder), router.clone(), stop.clone());
        connections.spawn(async move { talk(&guest, &builder, stream, peer, router, stop).await });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

fn builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // It runs from the end of the last answer: what bounds the head alone is in `Timed`.
        .header_read_timeout(Duration::from_millis(limits.idle_timeout_ms))
        .max_header_size(limits.head_bytes)
        .max_buf_size(READ_BYTES.max(limits.head_bytes));
    if limits.headers != Limits::default().headers {
        // Any number but the library's own costs an allocation a request.
        builder.max_headers(limits.headers);
    }
    builder
}

async fn talk(
    guest: &Guest,
    builder: &http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let limits = &guest.of.limits;
    // An answer is small: waiting for more of it would only make it late.
    let _ = stream.set_nodelay(true);
    let phase = Arc::new(Phase::default());
    let service = service_fn({
        let phase = Arc::clone(&phase);
        move |mut request: Request<Incoming>| {
            phase.head_has_ended();
            request.extensions_mut().insert(ConnectInfo(peer));
            let answer = router.clone().call(request.map(Body::new));
            let phase = Arc::clone(&phase);
            async move {
                let answer = answer.await;
                let upgraded =
                    answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::SWITCHING_PROTOCOLS);
                if upgraded {
                    phase.is_no_longer_http();
                } else {
                    phase.answered();
                }
                answer
            }
        }
    });
    let head = Duration::from_millis(limits.head_timeout_ms);
    let write = Duration::from_millis(limits.write_timeout_ms);
    let io = TokioIo::new(Timed::new(stream, phase, head, write));
    let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients break off all the time, and what they send may be anything.
        tracing::trace!(%error, "A connection ended.");
    }
}

/// Errors of `accept` that are about one connection, which is gone.
fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Counts who is in.
struct Doorman {
    limits: Limits,
    guests: Mutex<Guests>,
}

#[derive(Default)]
struct Guests {
    all: usize,
    by_address: HashMap<String, usize>,
}

/// A connection that is counted until it is dropped.
struct Guest {
    of: Arc<Doorman>,
    address: Option<String>,
}

impl Doorman {
    fn let_in(self: &Arc<Self>, ip: IpAddr) -> Option<Guest> {
        let ip = ip.to_canonical();
        let proxy = self.limits.trusted_proxies.iter().any(|network| network.contains(ip));
        let address = (!proxy).then(|| address::limited(ip));
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        let turned_away = |reason| {
            observe::counter(&metric::CONNECTIONS_CLOSED, &[("reason", reason)]).increment(1);
            None
        };
        if guests.all >= self.limits.connections {
            return turned_away("full");
        }
        if let Some(address) = &address {
            let here = guests.by_address.entry(address.clone()).or_default();
            if *here >= self.limits.address_connections {
                return turned_away("address");
            }
            *here += 1;
        }
        guests.all += 1;
        observe::gauge(&metric::CONNECTIONS, &[]).set(guests.all as f64);
        drop(guests);
        Some(Guest { of: Arc::clone(self), address })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut guests = self.of.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.all -= 1;
        if let Some(address) = &self.address
            && let Some(here) = guests.by_address.get_mut(address)
        {
            *here -= 1;
            if *here == 0 {
                guests.by_address.remove(address);
            }
        }
        observe::gauge(&metric::CONNECTIONS, &[]).set(guests.all as f64);
    }
}
