//! What others rely on, and the rules that we set ourselves.

mod asyncapi;
mod clients;
mod openapi;
mod readme;
mod schemas;
mod tidy;

use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [tidy::tests(), readme::tests(), clients::tests(), schemas::tests(), openapi::tests(), asyncapi::tests()]
        .into_iter()
        .flatten()
        .collect()
}
