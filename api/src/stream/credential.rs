//! A browser can't set headers on a WebSocket, but it can name protocols: `new WebSocket(url, ["taskflow.v1",
//! "bearer.<token>"])`. A token in the URL would be in every log on its way.

use axum::http::{HeaderMap, HeaderValue, header};

/// The protocol that this stream speaks.
pub(crate) const PROTOCOL: &str = "taskflow.v1";
const PREFIX: &str = "bearer.";

/// Puts the token where all routes look for it. Only on requests that ask for a WebSocket, and only if they bear no
/// `Authorization` of their own.
pub(crate) fn show(headers: &mut HeaderMap) {
    if let Some(value) = authorization(headers) {
        headers.insert(header::AUTHORIZATION, value);
    }
}

fn authorization(headers: &HeaderMap) -> Option<HeaderValue> {
    if headers.contains_key(header::AUTHORIZATION) || !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return None;
    }
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut named = protocols.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let token = named.find_map(|name| name.trim().strip_prefix(PREFIX))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_token_among_the_protocols_is_a_bearers() {
        let socket = ("sec-websocket-key", "x");
        let protocols = ("sec-websocket-protocol", "taskflow.v1, bearer.tfs_1");
        let of = |all: &[(&'static str, &'static str)]| authorization(&headers(all));
        assert_eq!(of(&[socket, protocols]).unwrap(), "Bearer tfs_1");
        assert_eq!(of(&[protocols]), None);
        assert_eq!(of(&[socket, ("sec-websocket-protocol", "taskflow.v1")]), None);
        assert_eq!(of(&[socket, protocols, ("authorization", "Bearer own")]), None);
    }
}
