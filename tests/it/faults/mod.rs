//! What breaks, and what must hold all the same.

mod backpressure;
mod backups;
mod bodies;
mod broker;
mod catalogue;
mod crashes;
mod dead_letters;
mod demo;
mod growth;
mod intake;
mod lease;
mod partitions;
mod poison;
mod reads;
mod recovery;
mod scheduler;
mod shutdown;
mod silence;
mod stores;
mod verify;
mod watchdog;

pub(crate) use catalogue::breakable;
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [
        backpressure::tests(),
        backups::tests(),
        bodies::tests(),
        broker::tests(),
        crashes::tests(),
        dead_letters::tests(),
        growth::tests(),
        intake::tests(),
        demo::tests(),
        lease::tests(),
        partitions::tests(),
        poison::tests(),
        reads::tests(),
        recovery::tests(),
        scheduler::tests(),
        shutdown::tests(),
        silence::tests(),
        stores::tests(),
        verify::tests(),
        watchdog::tests(),
        catalogue::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Stops servers that faults have shared.
pub(crate) async fn stop() {
    catalogue::stop().await;
}
