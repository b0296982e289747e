//! The harness: real servers, the program under test as processes, clients, waiting for conditions, and the check of
//! the promise.

pub mod client;
pub mod cluster;
pub mod commands;
pub mod promise;
pub mod site;
pub mod wait;
pub mod world;

pub use client::Client;
pub use cluster::{Cluster, Process};
pub use site::Site;
pub use world::World;

/// What a test returns.
pub type Result<T = ()> = anyhow::Result<T>;
