//! What others rely on, and the rules that we set ourselves.

mod readme;
mod tidy;

use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    [tidy::tests(), readme::tests()].into_iter().flatten().collect()
}
