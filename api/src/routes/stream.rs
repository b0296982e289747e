//! The live stream: `GET /v1/stream`, a WebSocket.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection};
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use taskflow_core::state::Role;
use taskflow_core::stream::{Cursor, Filter, TYPES_MAX};
use taskflow_stores::seldom::Seldom;
use uuid::Uuid;

use crate::auth::Caller;
use crate::problem::Problem;
use crate::stream::credential::PROTOCOL;
use crate::stream::hub::{Request, Seat};
use crate::stream::reader::{self, Stream};
use crate::stream::{End, gap};
use crate::{App, Shared};

/// How long a caller waits for the first reader's feed.
const FEED: Duration = Duration::from_secs(5);
/// A reader says nothing but pongs.
const MESSAGE_MAX: usize = 1024;
/// Small: two thousand idle readers have two thousand of them. An event that is larger takes what it needs.
const BUFFER: usize = 1024;

static COMPLAINTS: Seldom = Seldom::new();

pub(crate) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/stream", get(stream))
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// The newest cursor that the caller has.
    lasteventid: Option<String>,
    /// Types, separated by commas; `task.*` for all that begin so.
    #[serde(rename = "type")]
    kind: Option<String>,
    entity: Option<Uuid>,
    actor: Option<Uuid>,
}

async fn stream(
    State(app): Shared,
    caller: Caller,
    wanted: Result<Query<Wanted>, QueryRejection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|error| {
        Problem::bad_request("websocket_wanted", format!("this is a WebSocket: {}", error.body_text()))
    })?;
    let Query(wanted) = wanted.map_err(|error| Problem::bad_request("malformed", error.body_text()))?;
    let cursor = match &wanted.lasteventid {
        Some(text) => Some(
            text.parse::<Cursor>()
                .map_err(|why| Problem::bad_request("unknown_cursor", format!("lasteventid {why}")))?,
        ),
        None => None,
    };
    let filter = filter(wanted)?;
    let streams = &app.streams;
    if streams.is_stopping() {
        return Err(Problem::unavailable("this server stops; connect again"));
    }
    let request = Request {
        user: caller.user,
        all: caller.role == Role::Admin,
        filter,
        // An API key ends in its own way.
        session: caller.key.is_none().then(|| caller.session.clone()),
        until: caller.until,
        key: caller.key.clone(),
        buffer: streams.settings.buffer,
        buffer_bytes: streams.settings.buffer_bytes,
    };
    let Some((seat, events)) = streams.hub.take_seat(request) else {
        return Err(Problem::unavailable("this server has as many streams as it takes; try again soon"));
    };
    // From here on the seat is given back, whatever happens.
    let taken = Taken { app: Arc::clone(&app), seat, why: End::Left, entered: false };
    let (taken, newest) = prepare(&app, taken).await?;
    let stream = Stream {
        settings: streams.settings.clone(),
        hub: Arc::clone(&streams.hub),
        seat: Arc::clone(&taken.seat),
        events,
        newest,
    };
    let upgrade = upgrade
        .protocols([PROTOCOL])
        .max_message_size(MESSAGE_MAX)
        .max_frame_size(MESSAGE_MAX)
        .read_buffer_size(BUFFER)
        .write_buffer_size(0);
    Ok(upgrade.on_upgrade(move |socket| async move {
        let mut taken = taken;
        taken.why = Box::pin(reader::serve(socket, stream, &taken.app.stores, cursor)).await;
        taken.give_back().await;
    }))
}

/// Enters the socket into the register and waits for the feed.
async fn prepare(
    app: &Arc<App>,
    mut taken: Taken,
) -> Result<(Taken, taskflow_core::stream::Positions), Problem> {
    let streams = &app.streams;
    // Before: a caller that leaves meanwhile may have been entered.
    taken.entered = true;
    let (redis, seat) = (&app.stores.redis, &taken.seat);
    let here = || streams.hub.sockets_of(seat.user);
    let entered = redis.enter_socket(streams.hub.process, &seat.socket, seat.user, here).await;
    let prepared = async {
        let count = entered?;
        if count > streams.settings.user_sockets_max {
            let most = streams.settings.user_sockets_max;
            return Err(Problem::too_many_streams(most));
        }
        if tokio::time::timeout(FEED, streams.hub.is_fed()).await.is_err() {
            return Err(Problem::unavailable("the stream has no feed at the moment; try again soon"));
        }
        streams.hub.told.first_look(&app.stores.postgres).await?;
        Ok(gap::newest(&app.stores).await?)
    };
    match prepared.await {
        Ok(newest) => Ok((taken, newest)),
        Err(problem) => {
            taken.give_back().await;
            Err(problem)
        }
    }
}

/// A seat that is given back in the end, also when the upgrade never comes about.
struct Taken {
    app: Arc<App>,
    seat: Arc<Seat>,
    why: End,
    /// Whether the register may know the socket.
    entered: bool,
}

impl Taken {
    async fn give_back(mut self) {
        let entered = std::mem::take(&mut self.entered);
        let (app, seat) = (Arc::clone(&self.app), Arc::clone(&self.seat));
        // First the hub: the register's keeper enters again whom it finds there.
        drop(self);
        if entered {
            forget(&app, &seat).await;
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.app.streams.hub.leave(&self.seat, self.why);
        if self.entered {
            let (app, seat) = (Arc::clone(&self.app), Arc::clone(&self.seat));
            tokio::spawn(async move { forget(&app, &seat).await });
        }
    }
}

async fn forget(app: &App, seat: &Seat) {
    let removed = app.stores.redis.remove_sockets(&[(seat.socket.clone(), seat.user)]).await;
    if let Err(error) = removed
        && let Some(held_back) = COMPLAINTS.due()
    {
        tracing::warn!(%error, held_back, "A closed socket stays in the register until its time is over.");
    }
}

fn filter(wanted: Wanted) -> Result<Filter, Problem> {
    let types: Vec<String> = wanted
        .kind
        .iter()
        .flat_map(|types| types.split(','))
        .map(|kind| kind.trim().to_owned())
        .filter(|kind| !kind.is_empty())
        .collect();
    let is_word = |kind: &String| {
        let beginning = kind.strip_suffix('*').unwrap_or(kind);
        kind.len() <= 64 && beginning.bytes().all(|byte| byte.is_ascii_lowercase() || b"._".contains(&byte))
    };
    if types.len() > TYPES_MAX || !types.iter().all(is_word) {
        return Err(Problem::bad_request(
            "unknown_type",
            format!("type names at most {TYPES_MAX} types of events, such as task.created,user.*"),
        ));
    }
    Ok(Filter { types, entity: wanted.entity, actor: wanted.actor })
}
