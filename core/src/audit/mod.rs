//! The seals of the audit trail: what makes it visible that an event was changed, removed, or put in between.
//!
//! - The events of a batch are the leaves of Merkle trees, one a retention class ([`tree`], [`leaves`]); what may be
//!   erased goes into a leaf by a salted digest only ([`canonical`]).
//! - The roots of a batch are a link of its partition's chain ([`link`]), written in the batch's own transaction.
//! - A seal holds the heads of all chains and the digest of the seal before it, and is signed ([`seal`], [`key`]).
//! - [`copies`] compares the places where seals are kept, [`chain`] the links between two seals, [`trail`] the events
//!   with the links; each names what is wrong ([`finding`]).
//! - A [`proof`] shows to somebody else, with one event and a signature, that the event was there.
//!
//! Digests are SHA-256. A first byte keeps apart what is hashed, so that nothing can be taken for something else:
//! 0 a leaf, 1 a node of a tree, 2 the data of an event, 3 a link, 4 the beginning of a
//! chain, 5 the ids of a class of a batch, 6 the leaf of an event that a restore has set apart ([`apart`]).

pub mod apart;
pub mod canonical;
pub mod chain;
pub mod copies;
pub mod finding;
pub mod key;
pub mod leaves;
pub mod link;
pub mod proof;
pub mod seal;
pub mod trail;
pub mod tree;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::hex;

/// A SHA-256 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The digest of some parts, one behind the other.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        parts.iter().for_each(|part| hash.update(part));
        Self(hash.finalize().into())
    }

    /// A digest that a store has kept; `None` if it has not the length of one.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::of(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::of(&self.0))
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bytes_of(deserializer).map(Self)
    }
}

/// Reads so many bytes from their hexadecimal digits.
pub(crate) fn bytes_of<'de, D: Deserializer<'de>, const N: usize>(
    deserializer: D,
) -> Result<[u8; N], D::Error> {
    let text = String::deserialize(deserializer)?;
    hex::read(&text)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| serde::de::Error::custom(format!("expected {} hexadecimal digits", N * 2)))
}
