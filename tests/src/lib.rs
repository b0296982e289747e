//! The harness: real servers, the program under test as processes, clients, waiting for conditions, and the check of
//! the promise.

pub mod backups;
pub mod client;
pub mod cluster;
pub mod commands;
pub mod dice;
pub mod disk;
pub mod faults;
pub mod growth;
pub mod harness;
pub mod letters;
pub mod load;
pub mod logs;
pub mod promise;
pub mod proxy;
pub mod redis_cluster;
pub mod site;
pub mod soak;
pub mod socket;
pub mod trial;
pub mod verdict;
pub mod wait;
pub mod world;

pub use client::Client;
pub use cluster::{Cluster, Process};
pub use site::Site;
pub use taskflow_servers::free_address;
pub use world::World;

/// What a test returns.
pub type Result<T = ()> = anyhow::Result<T>;
