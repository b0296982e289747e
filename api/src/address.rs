//! Where a request comes from.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::extract::ConnectInfo;
use axum::http::{Extensions, HeaderMap};

use crate::limits::Network;

const FORWARDED_FOR: &str = "x-forwarded-for";
/// Proxies in a row that are followed back.
const HOPS_MAX: usize = 16;

/// The client's address: the connection's, or the one that a trusted proxy names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClientAddress(pub IpAddr);

/// Finds the client's address. Only what a trusted proxy has added is believed: the list is read from its end, and the
/// first address that is no trusted proxy is the client. What stands before it may be invented.
pub(crate) fn find(
    extensions: &Extensions,
    headers: &HeaderMap,
    trusted: &[Network],
) -> Option<ClientAddress> {
    let peer = extensions.get::<ConnectInfo<SocketAddr>>()?.0.ip().to_canonical();
    let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer;
    if is_trusted(peer) {
        let lists = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let hops: Vec<&str> = lists.flat_map(|list| list.split(',')).collect();
        for hop in hops.into_iter().rev().take(HOPS_MAX) {
            let Ok(address) = hop.trim().parse::<IpAddr>() else { break };
            client = address.to_canonical();
            if !is_trusted(client) {
                break;
            }
        }
    }
    Some(ClientAddress(client))
}

/// Whom a limit by address means: an IPv4 address, or the network of 64 bits that one customer has in IPv6.
pub(crate) fn limited(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(peer: &str, forwarded: &[&str], trusted: &[&str]) -> String {
        let mut extensions = Extensions::new();
        extensions.insert(ConnectInfo(SocketAddr::new(peer.parse().unwrap(), 1)));
        let mut headers = HeaderMap::new();
        for list in forwarded {
            headers.append(FORWARDED_FOR, list.parse().unwrap());
        }
        let trusted: Vec<Network> = serde_json::from_value(serde_json::json!(trusted)).unwrap();
        find(&extensions, &headers, &trusted).unwrap().0.to_string()
    }

    #[test]
    fn only_a_trusted_proxy_is_believed() {
        let proxies = &["10.0.0.0/8"];
        assert_eq!(found("192.0.2.1", &["198.51.100.7"], proxies), "192.0.2.1", "no proxy");
        assert_eq!(found("10.0.0.1", &["198.51.100.7"], &[]), "10.0.0.1", "none is trusted");
        assert_eq!(found("10.0.0.1", &["198.51.100.7"], proxies), "198.51.100.7");
        assert_eq!(found("10.0.0.1", &["203.0.113.9, 198.51.100.7, 10.0.0.2"], proxies), "198.51.100.7");
        assert_eq!(found("10.0.0.1", &["203.0.113.9", "198.51.100.7"], proxies), "198.51.100.7");
        assert_eq!(found("10.0.0.1", &["nonsense"], proxies), "10.0.0.1");
        assert_eq!(found("192.0.2.1", &["198.51.100.7"], &["192.0.2.1"]), "198.51.100.7", "an address");
        assert_eq!(found("::ffff:10.0.0.1", &["198.51.100.7"], proxies), "198.51.100.7");
    }

    #[test]
    fn a_network_of_ipv6_is_one_caller() {
        let limited = |text: &str| limited(text.parse().unwrap());
        assert_eq!(limited("2001:db8:1:2:3::4"), limited("2001:db8:1:2:ffff::1"));
        assert_ne!(limited("2001:db8:1:2::1"), limited("2001:db8:1:3::1"));
        assert_eq!(limited("192.0.2.1"), "192.0.2.1");
    }
}
