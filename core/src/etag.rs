//! The tag by which a reader recognises an answer that it has already (RFC 9110, section 8.8.3).

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// A short digest of an answer's body.
pub fn of(body: &[u8]) -> String {
    Sha256::digest(body)[..8].iter().fold(String::with_capacity(16), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
