//! The ports of one set of servers.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

use crate::proc;

/// Below those that the system gives to clients.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;
/// Where these servers listen by default: RabbitMQ's three and MongoDB's are in our range. They are left to whoever
/// installed such a server for himself and has just stopped it.
const STANDARD: [u16; 4] = [15_672, 25_672, 27_017, 27_018];

/// One port for each listener. All are on the loopback interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub postgres: u16,
    pub rabbitmq: u16,
    /// Erlang's distribution, which RabbitMQ can't do without.
    pub erlang: u16,
    /// Erlang's name server.
    pub epmd: u16,
    pub mongodb: u16,
    pub redis: u16,
}

impl Ports {
    /// Ports in a row from `first`.
    pub fn from(first: u16) -> Self {
        Self {
            postgres: first,
            rabbitmq: first + 1,
            mongodb: first + 2,
            redis: first + 3,
            erlang: first + 4,
            epmd: first + 5,
        }
    }

    /// Ports that nobody uses at the moment, below those that the system gives to clients.
    ///
    /// # Errors
    /// There are none.
    pub fn free() -> Result<Self> {
        Ok(Self {
            postgres: Self::one()?,
            rabbitmq: Self::one()?,
            erlang: Self::one()?,
            epmd: Self::one()?,
            mongodb: Self::one()?,
            redis: Self::one()?,
        })
    }

    /// One such port. One that the system chooses may be a client's before a server listens there.
    ///
    /// # Errors
    /// There is none.
    pub fn one() -> Result<u16> {
        // One process goes on where it ended; processes begin at different places.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let first = (std::process::id() % 1_000) as u16 * 16;
        let step = || FIRST + first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        std::iter::repeat_with(step)
            .take(usize::from(COUNT))
            .filter(|port| !STANDARD.contains(port))
            .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
            .context("no free port between 10000 and 30000")
    }
}

/// Where a program may listen: `host:port`, as [`Ports::one`].
///
/// # Errors
/// There is no free port.
pub fn free_address() -> Result<String> {
    Ok(format!("{}:{}", Ipv4Addr::LOCALHOST, Ports::one()?))
}

/// Says who is in the way, before a server says it in its own words.
pub(crate) fn must_be_free(port: u16, what: &str) -> Result<()> {
    let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else { return Ok(()) };
    let holder = proc::listener(port).map_or_else(
        || format!("`ss -ltnp 'sport = :{port}'`, as root, tells whose it is"),
        |pid| format!("process {pid} ({}) listens there", proc::name_of(pid).unwrap_or_else(|| "?".into())),
    );
    bail!("port {port}, wanted for {what}, is not free ({error}): {holder}; stop that or choose other ports")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_names_its_holder() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = must_be_free(port, "a test").unwrap_err().to_string();
        assert!(error.contains(&format!("port {port}")), "{error}");
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[test]
    fn free_ports_differ_and_are_not_the_standard_ones() {
        let sets = [Ports::free().unwrap(), Ports::free().unwrap()];
        let all: Vec<u16> = sets
            .iter()
            .flat_map(|p| [p.postgres, p.rabbitmq, p.erlang, p.epmd, p.mongodb, p.redis])
            .collect();
        let distinct: std::collections::BTreeSet<u16> = all.iter().copied().collect();
        assert_eq!(distinct.len(), all.len());
        assert!(all.iter().all(|port| *port < 32_768 && !STANDARD.contains(port)));
    }
}
