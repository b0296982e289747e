//! The way of a command, end to end.

mod access;
mod amqp;
pub(crate) mod audit;
mod backups;
mod bad_input;
mod canary;
mod cli;
mod commands;
mod dead_letters;
mod duplicates;
mod event_writer;
mod events;
mod jobs;
mod journal;
mod live;
mod maintenance;
mod order;
mod reads;
mod redis_cluster;
mod retention;
mod sessions;
mod stampede;
mod stream;
mod waiting;
mod warming;

use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [
        access::tests(),
        audit::tests(),
        commands::tests(),
        dead_letters::tests(),
        duplicates::tests(),
        jobs::tests(),
        journal::tests(),
        maintenance::tests(),
        order::tests(),
        redis_cluster::tests(),
        event_writer::tests(),
        events::tests(),
        reads::tests(),
        retention::tests(),
        amqp::tests(),
        backups::tests(),
        bad_input::tests(),
        stream::tests(),
        waiting::tests(),
        warming::tests(),
        sessions::tests(),
        stampede::tests(),
        cli::tests(),
        live::tests(),
        canary::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
