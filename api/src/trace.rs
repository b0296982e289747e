//! W3C trace context: a request's trace goes on through the broker to the worker and its events.

use axum::http::HeaderMap;
use taskflow_core::envelope::is_traceparent;

/// The context under which a command travels: the trace of the command's own `traceparent`, else of the request, else
/// a new one; in any case a span of this intake.
pub(crate) fn continued(own: Option<&str>, headers: &HeaderMap) -> String {
    let header = headers.get("traceparent").and_then(|value| value.to_str().ok());
    let given = own.or(header).filter(|text| is_traceparent(text));
    let span = rand::random::<u64>().max(1);
    match given.and_then(|text| Some((text.get(3..35)?, text.get(53..55)?))) {
        Some((trace, flags)) => format!("00-{trace}-{span:016x}-{flags}"),
        None => format!("00-{:032x}-{span:016x}-01", rand::random::<u128>().max(1)),
    }
}
