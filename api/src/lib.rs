//! The HTTP intake and its reads: what the public contract's section 3 names.
//!
//! [`intake`] is what a command goes through: validation, the check of who may send it, the look for an earlier
//! receipt, stamping, publishing with a confirm. [`routes`] has one file a resource. [`problem`] is the only place
//! that knows status codes.

mod activity;
mod address;
mod answer;
mod asyncapi;
mod auth;
mod authority;
mod backups;
mod bodies;
mod body;
mod brief;
mod credentials;
mod gate;
mod intake;
mod limits;
mod login_guard;
mod lookup;
mod observe_http;
mod openapi;
mod passwords;
mod pressure;
mod problem;
mod rate_limit;
mod reads;
mod recent;
mod routes;
mod serve;
pub mod stream;
mod timed;
mod trace;
mod wait;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use taskflow_stores::declare::Mender;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::Publisher;
use taskflow_stores::redis::Redis;
use taskflow_stores::vitals::Vitals;
use taskflow_stores::{clock, mongo, rabbit, supervise};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use backups::Backups;

/// How the API listens, and its bounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Address and port.
    pub listen: SocketAddr,
    /// Largest body that is read whole, in bytes. Streams of ndjson have no bound.
    pub body_max: usize,
    /// Bytes of bodies that are in hand at once, over all requests; more are refused with 503. What is made of a body
    /// takes some times its size. Bodies up to 64 KiB have an eighth of it beside, which large ones can't take. Beyond
    /// half of either, each caller has a share.
    pub bodies_max: usize,
    /// Commands in one array.
    pub batch_max: usize,
    /// Password checks and hashes at a time: each occupies a core for a quarter of a second.
    pub password_checks: usize,
    /// How long a read waits for the caches before it does without, in milliseconds.
    pub cache_patience_ms: u64,
    /// How long Postgres may look for what somebody searches, in milliseconds; then the search is given up with 503.
    pub search_patience_ms: u64,
    /// Seconds that the oldest command of a partition may have waited before more for that partition are refused with
    /// 429. 0 takes them however long the queue is: that is what a queue is for, and what is accepted is safe.
    pub backlog_age_max_s: u64,
    /// Whether `/metrics` answers anybody here, as well as on its own port: for a scraper that only comes this way.
    pub open_metrics: bool,
    /// Bounds of the live stream.
    pub stream: stream::Settings,
    /// What a caller may cost.
    pub limits: limits::Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            body_max: 8 * 1024 * 1024,
            bodies_max: 64 * 1024 * 1024,
            batch_max: 10_000,
            password_checks: 2,
            cache_patience_ms: 100,
            search_patience_ms: 5_000,
            backlog_age_max_s: 0,
            open_metrics: false,
            stream: stream::Settings::default(),
            limits: limits::Limits::default(),
        }
    }
}

/// The stores that the API uses.
#[derive(Clone)]
pub struct Stores {
    pub postgres: PgPool,
    pub mongo: mongo::Database,
    pub redis: Redis,
    pub publisher: Publisher,
    /// The publisher's connection, for a look at the queues.
    pub broker: Link,
    pub rabbit: rabbit::Settings,
    /// Where this process sees backups, if anywhere.
    pub backups: Option<Arc<dyn Backups>>,
}

/// Renders the metrics of this process.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What every request sees.
pub(crate) struct App {
    pub settings: Settings,
    pub stores: Stores,
    pub metrics: Metrics,
    /// What the stores have said of themselves a moment ago.
    pub looks: routes::health::Looks,
    /// This process, as the workers know it when they announce receipts.
    pub intake: Uuid,
    pub lookup: lookup::Lookup,
    pub waiters: wait::Waiters,
    pub recent: recent::Recent,
    pub passwords: passwords::Passwords,
    pub bodies: bodies::Bodies,
    pub pressure: pressure::Pressure,
    pub mender: Mender,
    pub streams: stream::Streams,
    pub credentials: credentials::Credentials,
    pub rate_limit: rate_limit::RateLimit,
    pub login_guard: login_guard::LoginGuard,
    pub reads: reads::Reads,
    pub activity: activity::Activity,
    /// What other parts of this process know of their health.
    pub vitals: Vitals,
}

pub(crate) type Shared = axum::extract::State<Arc<App>>;

/// Binds the address. Apart from [`run`], so that a port in use stops the start.
///
/// # Errors
/// The address and what the system says.
pub async fn bind(settings: &Settings) -> Result<TcpListener, String> {
    TcpListener::bind(settings.listen).await.map_err(|error| {
        format!("http.listen {}: {error}; choose another with TASKFLOW_HTTP__LISTEN", settings.listen)
    })
}

/// Serves until `stop`: then takes nothing new and finishes what it has begun. `inside` is for operators: health and
/// metrics, without authentication.
pub async fn run(
    settings: Settings,
    stores: Stores,
    metrics: Metrics,
    vitals: Vitals,
    listener: TcpListener,
    inside: TcpListener,
    stop: CancellationToken,
) {
    let intake = clock::new_id();
    let mender = mend(&stores, stop.clone());
    let streams = match stream::start(settings.stream.clone(), &stores, intake, &stop) {
        Ok(streams) => streams,
        Err(error) => {
            tracing::error!(%error, "The API can't start.");
            return;
        }
    };
    let app = Arc::new(App {
        lookup: lookup::start(stores.postgres.clone(), stop.clone()),
        waiters: wait::start(stores.clone(), intake, stop.clone()),
        recent: recent::Recent::default(),
        reads: reads::Reads::start(
            &stores.postgres,
            &stores.redis,
            std::time::Duration::from_millis(settings.cache_patience_ms),
            &stop,
        ),
        passwords: passwords::Passwords::new(settings.password_checks),
        bodies: bodies::Bodies::new(&settings),
        pressure: pressure::start(&stores, mender.clone(), stop.clone()),
        mender: mender.clone(),
        looks: routes::health::Looks::default(),
        streams,
        credentials: credentials::Credentials::default(),
        rate_limit: rate_limit::RateLimit::new(&settings.limits),
        login_guard: login_guard::LoginGuard::new(&settings.limits),
        activity: activity::Activity::default(),
        vitals,
        settings,
        stores,
        metrics,
        intake,
    });
    credentials::start(&app, &stop);
    stream::keys::start(&app, &stop);
    activity::start(&app, &stop);
    // Open streams would never end by themselves.
    let farewell = async {
        stop.cancelled().await;
        app.streams.close(&app.stores.redis).await;
    };
    let limits = app.settings.limits.clone();
    let serve = serve::serve(listener, router(Arc::clone(&app)), limits, stop.clone());
    let inside = serve_inside(inside, Arc::clone(&app), stop.clone());
    tokio::join!(serve, farewell, inside);
    // What was called last has used keys too, and nobody waits for the task that writes it down.
    let noted = app.credentials.note_uses(&app.stores.postgres);
    if tokio::time::timeout(std::time::Duration::from_secs(5), noted).await.is_err() {
        tracing::debug!("When API keys were used last is not written down.");
    }
}

async fn serve_inside(listener: TcpListener, app: Arc<App>, stop: CancellationToken) {
    let router = Router::new().merge(routes::health::routes()).with_state(app);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move { stop.cancelled().await });
    if let Err(error) = served.await {
        tracing::error!(%error, "Health and metrics on their own port ended.");
    }
}

/// Starts to declare again what somebody deletes.
fn mend(stores: &Stores, stop: CancellationToken) -> Mender {
    let mender = Mender::default();
    let (mending, stores) = (mender.clone(), stores.clone());
    tokio::spawn(async move {
        let Stores { postgres, broker, rabbit, .. } = &stores;
        supervise::forever("mender", &stop, || mending.run(postgres, broker, rabbit, &stop)).await;
    });
    mender
}

fn router(app: Arc<App>) -> Router {
    let limit = DefaultBodyLimit::max(app.settings.body_max);
    Router::new()
        .merge(routes::commands::routes())
        .merge(routes::dead_letters::routes())
        .merge(routes::sessions::routes())
        .merge(routes::pauses::routes())
        .merge(routes::stream::routes())
        .merge(routes::users::routes())
        .merge(routes::user_reads::routes())
        .merge(routes::api_keys::routes())
        .merge(routes::docs::routes())
        .merge(routes::events::routes())
        .merge(routes::schemas::routes())
        .merge(routes::tasks::routes())
        .merge(routes::jobs::routes())
        .merge(routes::holds::routes())
        .merge(routes::backups::routes())
        .merge(routes::health::routes())
        // A route that is merged below this line would be open to everybody.
        .route_layer(from_fn_with_state(Arc::clone(&app), gate::gate))
        .fallback(routes::unknown)
        .method_not_allowed_fallback(routes::wrong_method)
        .layer(limit)
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// What lies around every call, known or not. One layer for all of it: each costs every request a copy of the routes.
async fn around(State(app): Shared, mut request: Request, next: Next) -> Response {
    stream::credential::show(request.headers_mut());
    observe_http::observe(&app.settings.limits, request, |request| next.run(request)).await
}
