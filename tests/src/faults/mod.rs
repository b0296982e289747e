//! The catalogue: every fault that is caused, how it ends, and what must be seen meanwhile. One file a store.
//!
//! What must hold after each is the same, and is checked by [`crate::verdict`]: nothing lost, doubled, reordered or
//! stuck.

#![expect(clippy::unused_async, reason = "every act has the same shape, also one that waits for nothing")]

pub mod backups;
pub mod broker;
pub mod cluster;
pub mod failover;
pub mod mongodb;
pub mod network;
pub mod postgres;
pub mod process;
pub mod redis;
pub mod redis_cluster;

use std::time::Duration;

use taskflow_servers::Kind;

use crate::harness::Act;

/// Boxes an async function of the harness, so that it can stand in the catalogue.
macro_rules! act {
    ($function:expr) => {
        |harness| Box::pin($function(harness))
    };
}
pub(crate) use act;

/// What commands do while a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meanwhile {
    /// They are applied, in every partition.
    Applies,
    /// They are not, in one partition at least: otherwise the fault would be none.
    Stands,
    Either,
}

/// What the broker's and the API's intake do while a fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    Takes,
    Refuses,
    Either,
}

/// What a fault breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// One installation; others on the same servers see nothing of it.
    Site,
    /// Servers, for all who use them.
    Servers,
}

/// One way in which something breaks.
#[expect(clippy::struct_excessive_bools, reason = "each says one thing of its own")]
pub struct Fault {
    pub name: &'static str,
    pub scope: Scope,
    /// Whether the short form is left out: it takes minutes.
    pub soak_only: bool,
    /// Seconds that it lasts, in the short form and in the long one.
    pub hold: (f64, f64),
    /// How soon after it every partition must apply commands again.
    pub within: Duration,
    pub meanwhile: Meanwhile,
    pub intake: Intake,
    /// Whether the outbox must grow meanwhile: a sink that can't follow is seen there.
    pub falls_behind: bool,
    /// Stores that the program reaches through a wire of ours.
    pub wires: &'static [Kind],
    /// Servers that get a disk of their own, which can be filled.
    pub small_disks: &'static [Kind],
    /// Whether the program works on a Redis Cluster of the trial's own.
    pub redis_cluster: bool,
    /// Whether the servers are of no use to others afterwards.
    pub spoils: bool,
    /// Before the program starts.
    pub prepare: Act,
    pub cause: Act,
    pub heal: Act,
}

/// After a store is back.
const STORE_BACK: Duration = Duration::from_secs(5);
/// After a worker's death.
const WORKER_DEAD: Duration = Duration::from_secs(10);
/// After the death of a node of the broker that leads queues.
const LEADER_DEAD: Duration = Duration::from_secs(15);

impl Fault {
    const fn new(name: &'static str, cause: Act, heal: Act) -> Self {
        Self {
            name,
            scope: Scope::Site,
            soak_only: false,
            hold: (2.0, 20.0),
            within: STORE_BACK,
            meanwhile: Meanwhile::Either,
            intake: Intake::Either,
            falls_behind: false,
            wires: &[],
            small_disks: &[],
            redis_cluster: false,
            spoils: false,
            prepare: act!(nothing),
            cause,
            heal,
        }
    }

    const fn servers(self) -> Self {
        Self { scope: Scope::Servers, ..self }
    }

    const fn soak_only(self) -> Self {
        Self { soak_only: true, ..self }
    }

    const fn hold(self, short: f64, long: f64) -> Self {
        Self { hold: (short, long), ..self }
    }

    /// A death: there is nothing to hold, and the lease has to run out.
    const fn death(self) -> Self {
        Self { hold: (0.0, 0.0), within: WORKER_DEAD, ..self }
    }

    /// As [`Fault::death`], of a node of the broker.
    const fn leader_death(self) -> Self {
        Self { hold: (0.0, 0.0), ..self.elects() }
    }

    /// Leaders of the broker's queues are elected after it.
    const fn elects(self) -> Self {
        Self { within: LEADER_DEAD, ..self }
    }

    const fn applies(self) -> Self {
        Self { meanwhile: Meanwhile::Applies, ..self }
    }

    const fn stands(self) -> Self {
        Self { meanwhile: Meanwhile::Stands, ..self }
    }

    const fn takes(self) -> Self {
        Self { intake: Intake::Takes, ..self }
    }

    const fn refuses(self) -> Self {
        Self { intake: Intake::Refuses, ..self }
    }

    const fn falls_behind(self) -> Self {
        Self { falls_behind: true, ..self }
    }

    const fn wired(self, wires: &'static [Kind]) -> Self {
        Self { wires, ..self }
    }

    const fn small_disk(self, small_disks: &'static [Kind]) -> Self {
        Self { small_disks, scope: Scope::Servers, ..self }
    }

    const fn on_redis_cluster(self) -> Self {
        Self { redis_cluster: true, ..self }
    }

    const fn spoils(self) -> Self {
        Self { spoils: true, scope: Scope::Servers, ..self }
    }

    const fn prepared(self, prepare: Act) -> Self {
        Self { prepare, ..self }
    }
}

async fn nothing(_: &mut crate::harness::Harness<'_>) -> crate::Result {
    Ok(())
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Fault> {
    [
        process::FAULTS,
        broker::FAULTS,
        cluster::FAULTS,
        postgres::FAULTS,
        failover::FAULTS,
        mongodb::FAULTS,
        redis::FAULTS,
        redis_cluster::FAULTS,
        network::FAULTS,
        backups::FAULTS,
    ]
    .into_iter()
    .flatten()
}
