//! API keys: what programs authenticate with. Their form, what they may do, and for whom they speak.
//!
//! A key is `tfk_<id>_<secret>_<checksum>`. The prefix and the checksum make one that has leaked recognizable, in a
//! repository say, without asking anybody. Only its digest is kept: 256 random bits need no slow hash.

use std::fmt::Write;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What every key begins with.
pub const PREFIX: &str = "tfk_";
/// Characters of a key's name.
pub const NAME_MAX: usize = 100;
/// Characters of a source prefix, as of a source.
pub const SOURCE_PREFIX_MAX: usize = 255;
/// Random bytes of a key.
pub const SECRET_BYTES: usize = 32;
const SECRET_DIGITS: usize = 43;
const CHECKSUM_DIGITS: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// One thing that a key may do. No scope includes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Send commands, as any user, from the sources under the key's prefix.
    #[serde(rename = "commands:write")]
    CommandsWrite,
    /// Read what any user may read.
    #[serde(rename = "read")]
    Read,
    /// What operators do.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    pub const WORDS: [(&'static str, Self); 3] =
        [("commands:write", Self::CommandsWrite), ("read", Self::Read), ("admin", Self::Admin)];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::CommandsWrite => "commands:write",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, scope)| *scope)
    }
}

/// What is known of a key, without the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    pub id: Uuid,
    /// What it is for.
    pub name: String,
    pub scopes: Vec<Scope>,
    /// The sources that it speaks for; a key that may send commands has one.
    #[serde(rename = "sourceprefix", skip_serializing_if = "Option::is_none")]
    pub source_prefix: Option<String>,
    #[serde(rename = "createdat")]
    pub created_at: DateTime<Utc>,
    /// The nil UUID: somebody at the command line.
    #[serde(rename = "createdby")]
    pub created_by: Uuid,
    #[serde(rename = "expiresat", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<DateTime<Utc>>,
    /// To the minute.
    #[serde(rename = "lastusedat", skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<DateTime<Utc>>,
    #[serde(rename = "revokedat", skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<DateTime<Utc>>,
}

impl ApiKey {
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }

    /// Whether it opens anything at this time.
    pub fn is_good(&self, now: DateTime<Utc>) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    /// Whether commands from this source may be sent with it.
    pub fn speaks_for(&self, source: &str) -> bool {
        self.source_prefix.as_deref().is_some_and(|prefix| covers(prefix, source))
    }
}

/// Whether a source lies under a prefix: it is the prefix, or goes on behind it at a border. `/crm/eu` covers
/// `/crm/eu/sales`, but neither `/crm/europe` nor `/crm/eu/../us`.
pub fn covers(prefix: &str, source: &str) -> bool {
    let Some(rest) = source.strip_prefix(prefix) else { return false };
    let at_border = rest.is_empty() || prefix.ends_with(['/', ':']) || rest.starts_with(['/', ':', '?', '#']);
    at_border && !source.split(['/', '?', '#']).any(|part| part == "..")
}

/// A key as its holder sends it. Shown once, never kept.
pub fn token(id: Uuid, secret: [u8; SECRET_BYTES]) -> String {
    let body = format!("{PREFIX}{}_{}", id.simple(), base62(&secret, SECRET_DIGITS));
    let checksum = checksum(&body);
    format!("{body}_{checksum}")
}

/// The id in a key; `None` for what can't be one: the store is not asked about typing errors.
pub fn id_of(token: &str) -> Option<Uuid> {
    let (body, given) = token.rsplit_once('_')?;
    let (id, secret) = body.strip_prefix(PREFIX)?.split_once('_')?;
    let well_formed = id.len() == 32
        && id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        && secret.len() == SECRET_DIGITS
        && secret.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !well_formed || checksum(body) != given {
        return None;
    }
    Uuid::try_parse(id).ok()
}

/// What is kept of a key.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether two digests are equal, in the same time wherever they differ.
pub fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

/// CRC-32 (ISO-HDLC) of the text before it, in base 62.
fn checksum(text: &str) -> String {
    let crc = text.bytes().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    base62(&(!crc).to_be_bytes(), CHECKSUM_DIGITS)
}

/// A big-endian number in base 62, with leading zeros.
fn base62(bytes: &[u8], digits: usize) -> String {
    let mut number = bytes.to_vec();
    let mut text = vec![b'0'; digits];
    for digit in text.iter_mut().rev() {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        *digit = DIGITS[rest as usize];
    }
    text.iter().fold(String::with_capacity(digits), |mut out, digit| {
        let _ = write!(out, "{}", char::from(*digit));
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        // The check value of CRC-32/ISO-HDLC.
        assert_eq!(checksum("123456789"), base62(&0xCBF4_3926_u32.to_be_bytes(), 6));
    }

    #[test]
    fn a_prefix_ends_at_a_border() {
        for source in ["/crm/eu", "/crm/eu/sales", "/crm/eu?x", "/crm/eu#x"] {
            assert!(covers("/crm/eu", source), "{source}");
        }
        for source in ["/crm", "/crm/europe", "/crm/eu/../us", "/crm/eu/..", "crm/eu", ""] {
            assert!(!covers("/crm/eu", source), "{source}");
        }
        assert!(
            covers("urn:crm:", "urn:crm:eu") && covers("/crm/", "/crm/eu") && !covers("urn:c", "urn:crm")
        );
    }
}
