//! What every request passes before a handler sees it: its form, its limits, who sends it, whether it may, and room for
//! its body.
//!
//! The order is that of the cost: what needs no store comes first, the address is counted before anything is looked up.
//! A caller that is remembered costs at most one round trip, to Redis; the first request of its second one more.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::address::{self, ClientAddress};
use crate::auth::{Caller, Credential, user_agent};
use crate::authority::{self, Need};
use crate::bodies;
use crate::body::{Paced, media_type};
use crate::problem::Problem;
use crate::rate_limit::{self, Standing, Whose};
use crate::{App, Shared};

/// The one call that does not answer with JSON.
const METRICS: &str = "/metrics";

pub(crate) async fn gate(State(app): Shared, request: Request, next: Next) -> Response {
    let mut standings = Vec::new();
    let stream = is_stream(&request);
    let mut answer = match admit(&app, request, &mut standings).await {
        Ok(request) => bodies::bound(&app, request, |request| answer(&app, request, stream, next)).await,
        Err(problem) => problem.into_response(),
    };
    rate_limit::tell(&standings, answer.headers_mut());
    answer
}

async fn admit(
    app: &Arc<App>,
    mut request: Request,
    standings: &mut Vec<Standing>,
) -> Result<Request, Problem> {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let Some(need) = authority::need(request.method(), route) else {
        tracing::error!(method = %request.method(), route, "A route has no entry in api/src/authority.rs.");
        return Err(Problem::closed());
    };
    let is_metrics = route == METRICS;
    if need == Need::Open || is_metrics && app.settings.open_metrics {
        return Ok(request);
    }
    check_form(&request, !is_metrics)?;
    let limits = &app.settings.limits;
    let client = address::find(request.extensions(), request.headers(), &limits.trusted_proxies);
    if let Some(client) = client {
        request.extensions_mut().insert(client);
    }
    let ip = client.map(|ClientAddress(ip)| ip);
    let of_address: Vec<Whose> = ip.map(Whose::Address).into_iter().collect();
    let redis = &app.stores.redis;
    let credential = if need == Need::Login { None } else { Some(Credential::of(request.headers())) };
    let Some(Ok(credential)) = credential else {
        standings.extend(app.rate_limit.count(redis, &of_address).await);
        refuse_if_exceeded(standings)?;
        return credential.transpose().map(|_| paced(app, request));
    };
    let identity = match app.credentials.remembered(&credential) {
        Some(Ok(identity)) => {
            let both: Vec<Whose> = of_address.into_iter().chain([Whose::User(identity.user)]).collect();
            standings.extend(app.rate_limit.count(redis, &both).await);
            identity
        }
        unknown => {
            standings.extend(app.rate_limit.count(redis, &of_address).await);
            refuse_if_exceeded(standings)?;
            let identity = match unknown {
                Some(refused) => refused?,
                None => app.credentials.look_up(&app.stores, &credential).await?,
            };
            standings.extend(app.rate_limit.count(redis, &[Whose::User(identity.user)]).await);
            identity
        }
    };
    refuse_if_exceeded(standings)?;
    // A key reads for many, and what it reads is not its own.
    let reads = (identity.key.is_none() && request.method() == Method::GET).then_some(identity.user);
    let caller = identity.into_caller(ip, user_agent(request.headers()));
    caller.may_call(need)?;
    reads.inspect(|user| app.activity.note(*user));
    request.extensions_mut().insert(caller);
    Ok(paced(app, request))
}

/// Who has sent a request, asked once more while it lasts; nothing is counted.
pub(crate) async fn caller_of(
    app: &App,
    headers: &HeaderMap,
    ip: Option<IpAddr>,
    need: Need,
) -> Result<Caller, Problem> {
    let credential = Credential::of(headers)?;
    let identity = match app.credentials.remembered(&credential) {
        Some(known) => known?,
        None => app.credentials.look_up(&app.stores, &credential).await?,
    };
    let caller = identity.into_caller(ip, user_agent(headers));
    caller.may_call(need)?;
    Ok(caller)
}

fn refuse_if_exceeded(standings: &[Standing]) -> Result<(), Problem> {
    rate_limit::refusal(standings).map_or(Ok(()), Err)
}

/// Lets the handler answer, within its time.
async fn answer(app: &App, request: Request, stream: bool, next: Next) -> Response {
    if stream {
        return next.run(request).await;
    }
    let patience = Duration::from_millis(app.settings.limits.request_timeout_ms);
    tokio::time::timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        Problem::unavailable("the answer took too long; whether it was done is not known").into_response()
    })
}

/// A body comes in time or not at all.
fn paced(app: &App, request: Request) -> Request {
    let limits = &app.settings.limits;
    let whole = (!is_stream(&request)).then(|| Duration::from_millis(limits.body_timeout_ms));
    let pause = Duration::from_millis(limits.body_pause_ms);
    request.map(|body| Body::new(Paced::new(body, pause, whole)))
}

/// Whether it may take as long as it likes: commands one a line. Another call that says it is so is none.
pub(crate) fn is_stream(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    route == "/v1/commands"
        && matches!(media_type(request.headers()).as_str(), "application/x-ndjson" | "application/ndjson")
}

/// What is no request for us, whoever sends it.
fn check_form(request: &Request, answers_json: bool) -> Result<(), Problem> {
    // Postgres has no text that holds it.
    if request.uri().path().contains("%00") {
        return Err(Problem::not_found("nothing has a path with the NUL character (%00)"));
    }
    if request.uri().query().is_some_and(|query| query.contains("%00")) {
        return Err(Problem::bad_request("bad_query", "a query must not hold the NUL character (%00)"));
    }
    let headers = request.headers();
    let coded = |value: &axum::http::HeaderValue| !value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(header::CONTENT_ENCODING).iter().any(coded) {
        // Nothing is decompressed, so nothing can burst.
        return Err(Problem::wrong_type(
            "compressed bodies are not taken; send it as it is, without content-encoding",
        ));
    }
    let accepted: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if answers_json && !accepted.is_empty() && !accepts_json(&accepted) {
        return Err(Problem::not_acceptable());
    }
    Ok(())
}

/// Whether one of the ranges of `Accept` (RFC 9110, 12.5.1) means JSON.
fn accepts_json(accepted: &[&str]) -> bool {
    let mut ranges = accepted.iter().flat_map(|value| value.split(','));
    ranges.any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
        let refused = parts.any(|part| {
            part.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
        });
        let json = kind == "*/*"
            || kind == "application/*"
            || kind.starts_with("application/") && kind.contains("json");
        json && !refused
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_mean_json() {
        for good in ["*/*", "application/json", "text/html, application/*;q=0.5", "Application/Problem+JSON"]
        {
            assert!(accepts_json(&[good]), "{good}");
        }
        for bad in
            ["text/html", "application/json;q=0", "application/xml, text/*", "", "application/json; q=0.0"]
        {
            assert!(!accepts_json(&[bad]), "{bad}");
        }
    }
}
