//! The way to Redis: one server, or a cluster. Who sends commands does not see which.
//!
//! A cluster takes a pipeline of one slot only. So a pipeline for a cluster is cut here by the slots of its keys, the
//! parts travel side by side, and the answers come back in the order of the commands: within a slot they are carried
//! out in order, between slots they are not. A transaction, and the keys of one script, must share a slot.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::Slot;
use redis::{Arg, Client, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisFuture, Value};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{STORE, Settings, failed};
use crate::{Kind, StoreError};

/// What the address looks like.
const EXPECTED: &str =
    "expected redis://:password@host:port/0, or several of these divided by commas for a cluster";
/// How long a cluster's new connection may take: its nodes are asked one after the other.
const CONNECT_CLUSTER: Duration = Duration::from_secs(10);
/// Between two new connections to a cluster that still does its work in part.
const RENEW_PAUSE: Duration = Duration::from_secs(1);

/// Sends commands, pipelines and scripts. Clones share what is below.
#[derive(Clone)]
pub(crate) enum Connection {
    Server(ConnectionManager),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(server) => server.req_packed_command(cmd),
            Self::Cluster(cluster) => cluster.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(server) => server.req_packed_commands(pipeline, offset, count),
            Self::Cluster(cluster) => {
                if pipeline.is_transaction() {
                    cluster.req_packed_commands(pipeline, offset, count)
                } else {
                    Box::pin(by_slots(cluster, pipeline))
                }
            }
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(server) => server.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

/// Sends the commands of each slot as a pipeline of their own.
async fn by_slots(cluster: &ClusterConnection, pipeline: &Pipeline) -> redis::RedisResult<Vec<Value>> {
    let commands: Vec<&Cmd> = pipeline.cmd_iter().collect();
    let send = async |places: Vec<usize>| {
        let mut cluster = cluster.clone();
        let answers = match places[..] {
            [one] => vec![cluster.req_packed_command(commands[one]).await?],
            _ => {
                let mut part = Pipeline::with_capacity(places.len());
                for place in &places {
                    part.add_command(commands[*place].clone());
                }
                cluster.req_packed_commands(&part, 0, places.len()).await?
            }
        };
        redis::RedisResult::Ok((places, answers))
    };
    let mut all = vec![Value::Nil; commands.len()];
    for (places, answers) in try_join_all(parts(&commands).into_iter().map(send)).await? {
        for (place, answer) in places.into_iter().zip(answers) {
            all[place] = answer;
        }
    }
    Ok(all)
}

/// The places of commands that travel together: those of one slot, in order. Whatever may concern several slots, or
/// none, goes alone: the client knows its way.
fn parts(commands: &[&Cmd]) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::with_capacity(commands.len());
    let mut of_slot: HashMap<Slot, usize> = HashMap::with_capacity(commands.len());
    for (place, command) in commands.iter().enumerate() {
        let part = match slot(command) {
            Some(slot) => *of_slot.entry(slot).or_insert(parts.len()),
            None => parts.len(),
        };
        if part == parts.len() {
            parts.push(Vec::new());
        }
        parts[part].push(place);
    }
    parts
}

/// The one slot that a command concerns.
fn slot(command: &Cmd) -> Option<Slot> {
    let word = |place| match command.args_iter().nth(place) {
        Some(Arg::Simple(word)) => Some(word),
        _ => None,
    };
    let name = word(0)?.to_ascii_uppercase();
    let key = match name.as_slice() {
        b"EVAL" | b"EVALSHA" | b"EVAL_RO" | b"EVALSHA_RO" | b"FCALL" | b"FCALL_RO" => {
            (word(2)? != b"0").then(|| word(3))?
        }
        // Of several keys, or of none.
        b"DEL" | b"EXISTS" | b"MGET" | b"MSET" | b"TOUCH" | b"UNLINK" | b"CLUSTER" | b"CONFIG"
        | b"DBSIZE" | b"INFO" | b"PING" | b"SCAN" | b"SCRIPT" => None,
        _ => word(1),
    };
    key.map(Slot::for_key)
}

/// Makes connections.
enum Way {
    Server(Box<Client>),
    Cluster {
        client: Box<ClusterClient>,
        /// Each node that the settings name, for what concerns a single one.
        nodes: Vec<Client>,
    },
}

/// One connection for all, made when it is first needed and made anew when it gives no answers.
pub(super) struct Keeper {
    way: Way,
    response_timeout: Duration,
    state: watch::Sender<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// A new one is being made, by one task for all.
    connecting: bool,
    /// How the last try ended, if it failed, and when.
    failure: Option<RedisError>,
    tried: Option<Instant>,
}

impl Keeper {
    /// # Errors
    /// [`Kind::Bug`] when the address can't be understood.
    pub(super) fn new(settings: &Settings) -> Result<Arc<Self>, StoreError> {
        let response_timeout = Duration::from_millis(settings.response_timeout_ms);
        let way = Way::of(settings, response_timeout).map_err(|error| {
            StoreError::new(STORE, "read redis.url", Kind::Bug, format!("{error}; {EXPECTED}"))
        })?;
        Ok(Arc::new(Self { way, response_timeout, state: watch::Sender::default() }))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.way, Way::Cluster { .. })
    }

    /// Clients of single servers, each enough to subscribe to a channel: a cluster tells what is published to all its
    /// nodes.
    pub(super) fn servers(&self) -> &[Client] {
        match &self.way {
            Way::Server(client) => std::slice::from_ref(&**client),
            Way::Cluster { nodes, .. } => nodes,
        }
    }

    /// The connection, waited for no longer than for an answer.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Connection, StoreError> {
        let mut state = self.state.subscribe();
        if let Some(connection) = &state.borrow().connection {
            return Ok(connection.clone());
        }
        self.renew();
        let ended = state.wait_for(|state| state.connection.is_some() || !state.connecting);
        let Ok(Ok(state)) = timeout(self.response_timeout, ended).await else {
            return Err(StoreError::unavailable(STORE, "connect", "no connection in time"));
        };
        match (&state.connection, &state.failure) {
            (Some(connection), _) => Ok(connection.clone()),
            (None, Some(error)) => Err(failed("connect")(error.clone())),
            (None, None) => Err(StoreError::unavailable(STORE, "connect", "no connection")),
        }
    }

    /// Has a connection made that takes the place of the one there is, unless that is under way.
    fn renew(self: &Arc<Self>) {
        if !self.state.send_if_modified(|state| !std::mem::replace(&mut state.connecting, true)) {
            return;
        }
        let keeper = Arc::clone(self);
        tokio::spawn(async move {
            let maker = Arc::clone(&keeper);
            let made = tokio::spawn(async move { maker.connect().await }).await;
            let panicked = |_| Err((ErrorKind::Client, "the client library panicked").into());
            let made = match made.unwrap_or_else(panicked) {
                Ok(connection) => Ok(connection),
                Err(error) => keeper.what_still_answers().await.ok_or(error),
            };
            keeper.state.send_modify(|state| {
                state.connecting = false;
                state.failure = made.as_ref().err().cloned();
                state.connection = made.ok();
                state.tried = Some(Instant::now());
            });
        });
    }

    async fn connect(&self) -> Result<Connection, RedisError> {
        match &self.way {
            Way::Server(client) => {
                let config = ConnectionManagerConfig::new()
                    .set_response_timeout(Some(self.response_timeout))
                    .set_connection_timeout(Some(self.response_timeout))
                    .set_number_of_retries(1)
                    .set_max_delay(Duration::from_millis(500));
                client.get_connection_manager_with_config(config).await.map(Connection::Server)
            }
            Way::Cluster { client, .. } => {
                let late = |_| RedisError::from((ErrorKind::Io, "the cluster's nodes do not answer in time"));
                let connected = timeout(CONNECT_CLUSTER, client.get_async_connection());
                connected.await.map_err(late)?.map(Connection::Cluster)
            }
        }
    }

    /// The connection there is, if it reaches anybody: the nodes that the settings name may have gone while others do
    /// their work. One that reaches nobody is given up, since the library would look for a node without a pause.
    async fn what_still_answers(&self) -> Option<Connection> {
        let mut connection = self.state.borrow().connection.clone()?;
        let asked = redis::cmd("CLUSTER").arg("INFO").query_async::<Value>(&mut connection).await;
        asked.ok().map(|_| connection)
    }

    /// After a call that failed. A connection that gives no answer may be half open: the client library would keep it
    /// for as long as the kernel does. A cluster's is used until there is another: a part may do its work all the while.
    pub(super) fn note(self: &Arc<Self>, error: &RedisError) {
        match self.way {
            Way::Server(_) if error.is_timeout() => self.state.send_modify(|state| {
                // A younger one is not what has kept the call waiting.
                if state.tried.is_none_or(|tried| tried.elapsed() >= self.response_timeout) {
                    state.connection = None;
                }
            }),
            Way::Cluster { .. }
                if matches!(error.kind(), ErrorKind::Io | ErrorKind::ClusterConnectionNotFound) =>
            {
                let lately = self.state.borrow().tried.is_some_and(|tried| tried.elapsed() < RENEW_PAUSE);
                if !lately {
                    self.renew();
                }
            }
            Way::Server(_) | Way::Cluster { .. } => {}
        }
    }
}

impl Way {
    fn of(settings: &Settings, response_timeout: Duration) -> Result<Self, RedisError> {
        let urls = addresses(&settings.url);
        if let [url] = &urls[..]
            && !settings.cluster
        {
            return Client::open(url.as_str()).map(|client| Self::Server(Box::new(client)));
        }
        for url in &urls {
            if url.as_str().into_connection_info()?.redis_settings().db() != 0 {
                return Err((ErrorKind::InvalidClientConfig, "a cluster has no database but 0").into());
            }
        }
        let nodes = urls.iter().map(|url| Client::open(url.as_str())).collect::<Result<_, _>>()?;
        // Few tries, and those soon: who calls has a pause of his own.
        let client = Box::new(
            ClusterClientBuilder::new(urls)
                .retries(3)
                .min_retry_wait(20)
                .max_retry_wait(250)
                .connection_timeout(response_timeout)
                .response_timeout(response_timeout)
                .build()?,
        );
        Ok(Self::Cluster { client, nodes })
    }
}

/// The addresses that stand in the setting. A comma that no address follows belongs to a password.
fn addresses(text: &str) -> Vec<String> {
    let mut addresses: Vec<String> = Vec::new();
    for piece in text.split(',') {
        match addresses.last_mut() {
            Some(last) if !piece.contains("://") => {
                last.push(',');
                last.push_str(piece);
            }
            _ => addresses.push(piece.trim().to_owned()),
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_addresses_are_divided_by_commas() {
        assert_eq!(addresses("redis://a:1/0"), ["redis://a:1/0"]);
        assert_eq!(addresses("redis://:p,w@a:1, rediss://b:2"), ["redis://:p,w@a:1", "rediss://b:2"]);
    }

    #[test]
    fn a_cluster_is_known_by_its_addresses_or_the_setting() {
        let keeper = |url: &str, cluster| {
            let settings = Settings { url: url.to_owned(), cluster, ..Settings::default() };
            Keeper::new(&settings).map(|keeper| keeper.is_cluster()).map_err(|error| error.to_string())
        };
        assert_eq!(keeper("redis://a:1/5", false), Ok(false));
        assert_eq!(keeper("redis://a:1", true), Ok(true));
        assert_eq!(keeper("redis://a:1,redis://b:2/0", false), Ok(true));
        let error = keeper("redis://a:1,redis://b:2/1", false).unwrap_err();
        assert!(error.contains("no database but 0"), "{error}");
        let error = keeper("a:1", true).unwrap_err();
        assert!(error.contains("expected redis://"), "{error}");
    }

    #[test]
    fn commands_of_a_slot_travel_together_and_in_order() {
        let mut pipeline = redis::pipe();
        pipeline.cmd("INCR").arg("{a}1").cmd("SET").arg("b").arg(1).cmd("EXPIRE").arg("{a}1").arg(9);
        pipeline.cmd("EVAL").arg("return 1").arg(1).arg("a").cmd("EVAL").arg("return 1").arg(0);
        pipeline.cmd("UNLINK").arg("a").arg("b").cmd("PUBLISH").arg("b").arg("x").cmd("PING");
        let commands: Vec<&Cmd> = pipeline.cmd_iter().collect();
        assert_eq!(parts(&commands), [vec![0, 2, 3], vec![1, 6], vec![4], vec![5], vec![7]]);
    }
}
