//! A proof for somebody else: that an event was in the trail when a seal was made.
//!
//! It holds all that is needed but the public key, which the other one must have from us by another way. The script
//! `docs/audit-proof.py` checks one without any of this code.

use serde::{Deserialize, Serialize};

use super::Hash;
use super::canonical::{Salt, data_digest, leaf_of};
use super::key::PublicKey;
use super::link::{self, ClassRoot};
use super::seal::Signed;
use super::tree::{self, Path};
use crate::hex;

/// What a proof begins with.
pub const FORMAT: &str = "taskflow audit proof 1";

/// A link between the event's batch and the seal: `[number, classes]`.
pub type Step = (i64, String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    pub format: String,
    /// The event without what may be erased, as its leaf has it.
    pub fields: String,
    /// What may be erased, and its salt; neither once it is erased.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub salt: Option<String>,
    /// The digest of both.
    pub data_digest: Hash,
    /// From the leaf to the root of its class.
    pub path: Path,
    pub partition: String,
    /// The chain's digest before the event's batch.
    pub before: Hash,
    /// The links from the event's batch, which is the first, to the one that the seal has.
    pub links: Vec<Step>,
    pub seal: Signed,
}

impl Proof {
    /// Checks everything. Returns the fields, and the seal's time in milliseconds since 1970.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self, keys: &[PublicKey]) -> Result<i64, &'static str> {
        if self.format != FORMAT {
            return Err("it is no proof of a form that is known here");
        }
        if let (Some(data), Some(salt)) = (&self.data, &self.salt) {
            let salt: Option<Salt> = hex::read(salt).and_then(|salt| salt.try_into().ok());
            let salt = salt.ok_or("the salt has not 16 bytes")?;
            if data_digest(&salt, data.as_bytes()) != self.data_digest {
                return Err("the event's data has another digest");
            }
        }
        let root = tree::climb(leaf_of(self.fields.as_bytes(), &self.data_digest), &self.path);
        let classes = self.links.first().and_then(|(_, classes)| link::read(classes));
        let has_root = |classes: Vec<ClassRoot>| classes.iter().any(|class| class.root == root);
        if !classes.is_some_and(has_root) {
            return Err("the event's leaf does not lead to a root of its batch");
        }
        let end =
            self.links.iter().fold(self.before, |at, (number, classes)| link::hash(&at, *number, classes));
        let seal = self.seal.open(keys)?;
        let head = seal.head(&self.partition);
        if head.hash != end {
            return Err("the links do not lead to what the seal has");
        }
        Ok(seal.at_ms)
    }
}
