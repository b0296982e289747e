//! The keys of the seals: Ed25519 (RFC 8032). The secret one belongs to the scheduler, the public ones to whoever
//! verifies.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::hex;

/// Stands before the digits in a key's file, so that a key is not taken for something else.
const SECRET_WORD: &str = "taskflow-seal-secret";
const PUBLIC_WORD: &str = "taskflow-seal-public";

/// The key that seals are signed with. Nothing shows its bytes.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey of {}", self.public())
    }
}

impl SecretKey {
    /// The key that follows from 32 bytes of good chance.
    pub fn new(chance: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&chance))
    }

    /// The text of its file.
    pub fn to_file(&self) -> String {
        format!("{SECRET_WORD} {}\n", hex::of(self.0.as_bytes()))
    }

    /// Reads the text of its file.
    ///
    /// # Errors
    /// It is none of ours; nothing of it is told.
    pub fn from_file(text: &str) -> Result<Self, &'static str> {
        let digits = text.trim().strip_prefix(SECRET_WORD).map(str::trim);
        let bytes = digits.and_then(hex::read).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self::new).ok_or("this is no secret key of seals; `taskflow audit keygen` makes one")
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub fn sign(&self, text: &str) -> Signature {
        Signature(self.0.sign(text.as_bytes()).to_bytes())
    }
}

/// The key that seals are checked with.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// A line of its file.
    pub fn to_line(&self) -> String {
        format!("{PUBLIC_WORD} {self}\n")
    }

    /// Reads a file of public keys, one a line: older ones stay, for the seals that were signed with them.
    ///
    /// # Errors
    /// A line is none of ours.
    pub fn from_file(text: &str) -> Result<Vec<Self>, String> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| Self::read(line).ok_or_else(|| format!("{line:?} is no public key of seals")))
            .collect()
    }

    /// A key as a line of its file, or its digits alone.
    pub fn read(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(PUBLIC_WORD).unwrap_or(text).trim();
        hex::read(digits)?.try_into().ok().map(Self)
    }

    /// Whether a text was signed with this key's secret. Weak keys and other forms of one signature are refused.
    pub fn signed(&self, text: &str, signature: &Signature) -> bool {
        let key = VerifyingKey::from_bytes(&self.0);
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.is_ok_and(|key| key.verify_strict(text.as_bytes(), &signature).is_ok())
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::of(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A signature.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(pub [u8; 64]);

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::of(&self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::of(&self.0))
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::bytes_of(deserializer).map(Self)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::bytes_of(deserializer).map(Self)
    }
}
