//! The tag by which a reader recognises an answer that it has already (RFC 9110, section 8.8.3).

use sha2::{Digest, Sha256};

use crate::hex;

/// A short digest of an answer's body.
pub fn of(body: &[u8]) -> String {
    hex::of(&Sha256::digest(body)[..8])
}
