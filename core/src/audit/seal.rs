//! Seals: the heads of all chains at one time, signed.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use super::Hash;
use super::key::{PublicKey, SecretKey, Signature};
use super::link::genesis;
use crate::retention::{Class, Retention};

/// What the text of a seal begins with: a signature under it is one of a seal.
pub const FORMAT: &str = "taskflow audit seal 1";

/// The end of a partition's chain: `[partition, number, hash]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(String, i64, Hash)", into = "(String, i64, Hash)")]
pub struct Head {
    pub partition: String,
    /// Of the newest batch, whether it had events or not.
    pub number: i64,
    pub hash: Hash,
}

impl From<(String, i64, Hash)> for Head {
    fn from((partition, number, hash): (String, i64, Hash)) -> Self {
        Self { partition, number, hash }
    }
}

impl From<Head> for (String, i64, Hash) {
    fn from(head: Head) -> Self {
        (head.partition, head.number, head.hash)
    }
}

/// How long a class is kept, and what was past that by the policy of this seal or of one before:
/// `[class, days, past]`. Whoever shortens the policy later can't make a removal of today right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Class, u16, i64)", into = "(Class, u16, i64)")]
pub struct Kept {
    pub class: Class,
    pub days: u16,
    /// Events of the class that were made before may be gone; in milliseconds since 1970.
    pub past_ms: i64,
}

impl From<(Class, u16, i64)> for Kept {
    fn from((class, days, past_ms): (Class, u16, i64)) -> Self {
        Self { class, days, past_ms }
    }
}

impl From<Kept> for (Class, u16, i64) {
    fn from(kept: Kept) -> Self {
        (kept.class, kept.days, kept.past_ms)
    }
}

/// That Postgres was restored to an earlier time: who says so, and why. The chains of this seal need not follow those
/// of the seal before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    pub by: String,
    pub why: String,
}

/// What a seal says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    pub format: String,
    /// From 1, without gaps.
    pub number: i64,
    /// The digest of the seal before; zeros before the first.
    pub previous: Hash,
    /// In milliseconds since 1970.
    pub at_ms: i64,
    /// In the order of the partitions' names.
    pub heads: Vec<Head>,
    pub kept: Vec<Kept>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
}

/// A seal as it is kept: the text that was signed, and the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    pub seal: String,
    pub signature: Signature,
    pub key: PublicKey,
}

/// Why no seal can follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the chain of partition {partition} is at {now}, and seal {seal} has it at {sealed}: Postgres was set back or \
     changed. After a restore, `taskflow audit restored --why …` says so; otherwise `taskflow audit verify` says more"
)]
pub struct SetBack {
    pub partition: String,
    pub now: String,
    pub sealed: String,
    pub seal: i64,
}

impl Signed {
    pub fn new(seal: &Seal, key: &SecretKey) -> Self {
        let text = serde_json::to_string(seal).unwrap_or_default();
        Self { signature: key.sign(&text), key: key.public(), seal: text }
    }

    /// What the next seal names as the one before it.
    pub fn hash(&self) -> Hash {
        Hash::of(&[self.seal.as_bytes()])
    }

    /// The seal, if one of these keys has signed it.
    ///
    /// # Errors
    /// Why it can't be believed.
    pub fn open(&self, keys: &[PublicKey]) -> Result<Seal, &'static str> {
        if !keys.contains(&self.key) {
            return Err("it is signed with a key that is not among the known ones");
        }
        if !self.key.signed(&self.seal, &self.signature) {
            return Err("its signature does not fit its text");
        }
        let seal: Seal = serde_json::from_str(&self.seal).map_err(|_| "its text is no seal")?;
        if seal.format == FORMAT { Ok(seal) } else { Err("its text is no seal of a form that is known here") }
    }

    /// Whether it can be believed, and is the seal of this number.
    pub fn is_seal(&self, number: i64, keys: &[PublicKey]) -> bool {
        self.open(keys).is_ok_and(|seal| seal.number == number)
    }
}

impl Seal {
    /// The seal that follows `before`, with its digest. `heads` are in the order of their names.
    ///
    /// # Errors
    /// A chain has gone back, or is another one by now, and nobody has said why.
    pub fn next(
        before: Option<(&Self, Hash)>,
        at: DateTime<Utc>,
        heads: Vec<Head>,
        retention: &Retention,
        restored: Option<Restored>,
    ) -> Result<Self, SetBack> {
        if let (Some((before, _)), None) = (before, &restored) {
            follows(before, &heads)?;
        }
        let past =
            |class| before.and_then(|(seal, _)| seal.kept(class)).map_or(i64::MIN, |kept| kept.past_ms);
        let kept = Class::ALL.map(|class| {
            let days = retention.least_days(class);
            Kept { class, days, past_ms: past(class).max(ago(at, days)) }
        });
        Ok(Self {
            format: FORMAT.to_owned(),
            number: before.map_or(1, |(seal, _)| seal.number + 1),
            previous: before.map_or(Hash([0; 32]), |(_, hash)| hash),
            // Clocks differ between hosts; the order of seals does not go back for it.
            at_ms: at.timestamp_millis().max(before.map_or(i64::MIN, |(seal, _)| seal.at_ms)),
            heads,
            kept: kept.to_vec(),
            restored,
        })
    }

    /// Whether a seal over these heads says anything that this one does not.
    pub fn says_more(&self, heads: &[Head], retention: &Retention) -> bool {
        let days = |class| self.kept(class).map(|kept| kept.days);
        self.heads != heads
            || Class::ALL.into_iter().any(|class| days(class) != Some(retention.least_days(class)))
    }

    fn kept(&self, class: Class) -> Option<&Kept> {
        self.kept.iter().find(|kept| kept.class == class)
    }

    /// Before which time events of a class may be gone at `now`, by what this seal says; milliseconds since 1970.
    pub fn past_ms(&self, class: Class, now: DateTime<Utc>) -> i64 {
        self.kept(class).map_or(i64::MIN, |kept| kept.past_ms.max(ago(now, kept.days)))
    }

    /// Where a partition's chain was; at its beginning if the seal does not know it.
    pub fn head(&self, partition: &str) -> Head {
        let known = self.heads.iter().find(|head| head.partition == partition).cloned();
        known.unwrap_or_else(|| Self::beginning(partition))
    }

    /// Where a partition's chain begins.
    pub fn beginning(partition: &str) -> Head {
        Head { partition: partition.to_owned(), number: 0, hash: genesis(partition) }
    }
}

fn ago(at: DateTime<Utc>, days: u16) -> i64 {
    (at - TimeDelta::days(i64::from(days))).timestamp_millis()
}

/// Whether the chains can have grown to `heads` since a seal.
fn follows(before: &Seal, heads: &[Head]) -> Result<(), SetBack> {
    for sealed in &before.heads {
        let head = heads.iter().find(|head| head.partition == sealed.partition);
        let changed = |now: String| SetBack {
            partition: sealed.partition.clone(),
            now,
            sealed: format!("batch {} ({})", sealed.number, sealed.hash),
            seal: before.number,
        };
        match head {
            Some(head) if head.number > sealed.number => {}
            Some(head) if head.number == sealed.number && head.hash == sealed.hash => {}
            Some(head) => return Err(changed(format!("batch {} ({})", head.number, head.hash))),
            None => return Err(changed("no batch at all".to_owned())),
        }
    }
    Ok(())
}
