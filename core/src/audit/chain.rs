//! Whether the links that Postgres keeps lead from one seal to the next.

use super::Hash;
use super::finding::{Finding, Kind};
use super::link::{self, ClassRoot};
use super::seal::Head;

/// A link as Postgres keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub partition: String,
    pub number: i64,
    /// The text of its classes.
    pub classes: String,
    pub hash: Hash,
}

/// A batch that the chain vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub partition: String,
    pub number: i64,
    pub classes: Vec<ClassRoot>,
}

/// Goes along the links of one partition from a seal's head to the next one's, which are in the order of their numbers.
/// Returns the batches, and what is wrong.
pub fn walk(from: &Head, to: &Head, links: &[Link]) -> (Vec<Batch>, Vec<Finding>) {
    let (mut batches, mut findings) = (Vec::with_capacity(links.len()), Vec::new());
    let broken =
        |number, detail: String| Finding::new(Kind::ChainBroken, detail).batch(&to.partition, number);
    let (mut before, mut at) = (from.hash, from.number);
    for one in links {
        let right = link::hash(&before, one.number, &one.classes);
        if right != one.hash {
            findings.push(broken(
                one.number,
                format!("this link does not follow batch {at}: it was changed, or one between them is gone"),
            ));
        }
        if let Some(classes) = link::read(&one.classes) {
            batches.push(Batch { partition: one.partition.clone(), number: one.number, classes });
        } else {
            findings.push(broken(one.number, "this link can't be read: it was changed".to_owned()));
        }
        // Each link is held against the one before it, so that one wrong link does not hide another.
        (before, at) = (one.hash, one.number);
    }
    if before != to.hash {
        let detail = format!(
            "the chain ends with batch {at}, the seal has it go on to here: links behind it are gone"
        );
        findings.push(broken(to.number, detail));
    }
    (batches, findings)
}
