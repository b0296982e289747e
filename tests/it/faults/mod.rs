//! What breaks, and what must hold all the same.

mod backpressure;
mod broker;
mod catalogue;
mod crashes;
mod dead_letters;
mod lease;
mod partitions;
mod poison;
mod shutdown;
mod stores;
mod verify;
mod watchdog;

use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [
        backpressure::tests(),
        broker::tests(),
        crashes::tests(),
        dead_letters::tests(),
        lease::tests(),
        partitions::tests(),
        poison::tests(),
        shutdown::tests(),
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
