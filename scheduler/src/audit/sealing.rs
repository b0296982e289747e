//! Makes the next seal, and carries seals to the places that lack them.
//!
//! A seal is first in Postgres, under the leader's fence, so that no two have one number; then outside, then in MongoDB.
//! Whatever fails or dies in between, the next run adds what is missing. Nothing is sealed over that looks set back:
//! a person has to say so first.

use chrono::{DateTime, TimeDelta, Utc};
use taskflow_core::audit::key::{PublicKey, SecretKey};
use taskflow_core::audit::seal::{Restored, Seal, Signed};
use taskflow_core::event::Retention;
use taskflow_core::metric;
use taskflow_stores::observe::gauge;
use taskflow_stores::postgres::leader::{self, Fence};
use taskflow_stores::postgres::{audit_chain, audit_seals};
use taskflow_stores::{Kind, clock, crash, mongo};

use super::files::{self, FileError, Outside};
use super::{Settings, blocking};
use crate::Stores;
use crate::context::Failure;

/// A seal is made at least so often, even if nothing has happened.
const AT_LEAST: TimeDelta = TimeDelta::minutes(60);
/// Seals that are carried to a place at once, and how many times a run does so.
const TOGETHER: i64 = 500;
const TIMES: usize = 40;

/// What a run has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    /// The newest seal.
    pub number: i64,
    /// Whether it is new.
    pub made: bool,
    /// Copies that were added, to MongoDB and outside.
    pub copied: u64,
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::Again(error.to_string())
    }
}

/// The key, or what to do about it.
fn key(settings: &Settings) -> Result<SecretKey, Failure> {
    let path = &settings.key_path;
    files::secret_key(path).map_err(|error| Failure::Final(error.to_string()))?.ok_or_else(|| {
        Failure::Final(format!(
            "the audit trail is not sealed, since there is no key at {}: run `taskflow audit keygen` where the \
             scheduler runs, and give a copy of {} to those who verify (docs/audit.md)",
            path.display(),
            settings.public_keys_path.display()
        ))
    })
}

/// Whether the next run would seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Due {
    /// The newest seal; 0 if there is none.
    pub newest: i64,
    pub says_more: bool,
}

/// Only looks, whether the newest seal of Postgres still says how things are.
pub(crate) async fn due(stores: &Stores, settings: &Settings, retention: &Retention) -> Result<Due, Failure> {
    let mut keys = files::public_keys(&settings.public_keys_path)?;
    keys.push(key(settings)?.public());
    let Some((number, signed)) = audit_seals::newest(&stores.postgres).await? else {
        return Ok(Due { newest: 0, says_more: true });
    };
    let seal = signed.open(&keys).map_err(|why| disbelieved(number, "Postgres", why))?;
    let heads = audit_chain::heads(&stores.postgres).await?;
    let restored = audit_seals::restored(&stores.postgres).await?.is_some();
    Ok(Due { newest: number, says_more: restored || seal.says_more(&heads, retention) })
}

/// Seals what has happened since the last seal.
pub(crate) async fn seal(
    stores: &Stores,
    settings: &Settings,
    retention: &Retention,
    fence: &Fence,
) -> Result<Sealed, Failure> {
    let key = key(settings)?;
    let mut keys = files::public_keys(&settings.public_keys_path)?;
    keys.push(key.public());
    let outside = Outside::new(&settings.seals_folder);
    let restored = audit_seals::restored(&stores.postgres).await?;
    let last = last(stores, &outside, &keys, restored.is_some(), fence).await?;
    let (now, heads) = (clock::now(), audit_chain::heads(&stores.postgres).await?);
    let due = last.as_ref().is_none_or(|(seal, _)| {
        restored.is_some()
            || seal.says_more(&heads, retention)
            || seal.at_ms + AT_LEAST.num_milliseconds() <= now.timestamp_millis()
    });
    let mut number = last.as_ref().map_or(0, |(seal, _)| seal.number);
    if due {
        let before = last.as_ref().map(|(seal, signed)| (seal, signed.hash()));
        let told: Option<Restored> = restored.as_ref().map(|(_, restored)| restored.clone());
        let next = Seal::next(before, now, heads, retention, told)
            .map_err(|set_back| Failure::Final(set_back.to_string()))?;
        number = next.number;
        let signed = Signed::new(&next, &key);
        let mut transaction = fence.begin().await?;
        audit_seals::insert(&mut transaction, number, at(&next), &signed).await?;
        if let Some((id, _)) = restored {
            audit_seals::told_restored(&mut transaction, id, number).await?;
        }
        leader::commit(transaction).await?;
        crash::point("half_done");
        // Who keeps the log elsewhere has a witness.
        tracing::info!(seal = number, hash = %signed.hash(), "The audit trail is sealed.");
        gauge(&metric::AUDIT_SEALED, &[]).set(now.timestamp() as f64);
    }
    gauge(&metric::AUDIT_SEAL, &[]).set(number as f64);
    let copied = copy(stores, &outside, &keys, number).await?;
    Ok(Sealed { number, made: due, copied })
}

fn at(seal: &Seal) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(seal.at_ms).unwrap_or_default()
}

fn disbelieved(number: i64, place: &str, why: &str) -> Failure {
    Failure::Final(format!(
        "seal {number} in {place} can't be believed: {why}; `taskflow audit verify` says more"
    ))
}

/// The newest seal there is. Where Postgres lacks seals that another place has, it was set back.
async fn last(
    stores: &Stores,
    outside: &Outside,
    keys: &[PublicKey],
    restored: bool,
    fence: &Fence,
) -> Result<Option<(Seal, Signed)>, Failure> {
    let own = audit_seals::newest(&stores.postgres).await?;
    let own_number = own.as_ref().map_or(0, |(number, _)| *number);
    let beside = newest_outside(outside, keys).await?;
    let beside_number = beside.as_ref().map_or(0, |(number, _)| *number);
    let mongo_number = match mongo::audit_seals::newest(&stores.mongo, keys).await {
        // The trail is sealed while MongoDB is away; its copies come later, and until then the run says that they lack.
        Err(error) if error.kind == Kind::Unavailable => 0,
        known => known?.believed,
    };
    let newest = beside_number.max(mongo_number);
    if newest > own_number {
        if !restored {
            return Err(Failure::Final(format!(
                "seal {newest} is kept elsewhere, and Postgres has seals up to {own_number}: Postgres was set back. After \
                 a restore, `taskflow audit restored --why …` says so; otherwise `taskflow audit verify` says more"
            )));
        }
        take_back(stores, outside, keys, own_number, newest, fence).await?;
        return Box::pin(last(stores, outside, keys, false, fence)).await;
    }
    if let (Some((number, own)), Some((same, other))) = (&own, &beside)
        && number == same
        && own != other
    {
        return Err(disbelieved(*number, "Postgres", "the one outside is another"));
    }
    let Some((number, signed)) = own else { return Ok(None) };
    let seal = signed.open(keys).map_err(|why| disbelieved(number, "Postgres", why))?;
    Ok(Some((seal, signed)))
}

async fn newest_outside(outside: &Outside, keys: &[PublicKey]) -> Result<Option<(i64, Signed)>, FileError> {
    let (folder, keys) = (outside.clone(), keys.to_vec());
    blocking(move || folder.newest(&keys)).await
}

/// Gives Postgres the seals again that it has lost by a restore: the sequence goes on where it was.
async fn take_back(
    stores: &Stores,
    outside: &Outside,
    keys: &[PublicKey],
    from: i64,
    to: i64,
    fence: &Fence,
) -> Result<(), Failure> {
    let folder = outside.clone();
    let mut seals = blocking(move || folder.read(from + 1, to)).await?;
    for (number, signed) in mongo::audit_seals::read(&stores.mongo, from + 1, to).await? {
        seals.entry(number).or_insert(signed);
    }
    let mut next = from + 1;
    while next <= to {
        let last = to.min(next + TOGETHER - 1);
        let mut transaction = fence.begin().await?;
        for number in next..=last {
            let Some(signed) = seals.get(&number) else {
                return Err(Failure::Final(format!(
                    "seal {number} is gone from all places; seals up to {to} are there"
                )));
            };
            let seal = signed.open(keys).map_err(|why| disbelieved(number, "another place", why))?;
            audit_seals::insert(&mut transaction, number, at(&seal), signed).await?;
        }
        leader::commit(transaction).await?;
        next = last + 1;
    }
    Ok(())
}

/// Adds to both other places what they lack, up to a seal. One that is away does not keep the other from it.
async fn copy(stores: &Stores, outside: &Outside, keys: &[PublicKey], number: i64) -> Result<u64, Failure> {
    let beside = copy_outside(stores, outside, keys, number).await;
    let mongo = copy_to_mongo(stores, keys, number).await;
    Ok(beside? + mongo?)
}

async fn copy_outside(
    stores: &Stores,
    outside: &Outside,
    keys: &[PublicKey],
    number: i64,
) -> Result<u64, Failure> {
    let mut have = newest_outside(outside, keys).await?.map_or(0, |(newest, _)| newest);
    let mut copied = 0;
    for _ in 0..TIMES {
        if have >= number {
            break;
        }
        let seals = audit_seals::read(&stores.postgres, have + 1, (have + TOGETHER).min(number)).await?;
        let timed = seals.into_iter().map(|(number, signed)| match signed.open(keys) {
            Ok(seal) => Ok((number, at(&seal), signed)),
            Err(why) => Err(disbelieved(number, "Postgres", why)),
        });
        let timed = timed.collect::<Result<Vec<_>, Failure>>()?;
        let Some((last, _, _)) = timed.last() else { break };
        (have, copied) = (*last, copied + timed.len() as u64);
        let folder = outside.clone();
        blocking(move || folder.append(&timed)).await?;
    }
    Ok(copied)
}

async fn copy_to_mongo(stores: &Stores, keys: &[PublicKey], number: i64) -> Result<u64, Failure> {
    let (mut have, mut copied) = (mongo::audit_seals::newest(&stores.mongo, keys).await?.believed, 0);
    for _ in 0..TIMES {
        if have >= number {
            break;
        }
        let seals = audit_seals::read(&stores.postgres, have + 1, (have + TOGETHER).min(number)).await?;
        let Some((last, _)) = seals.last() else { break };
        have = *last;
        mongo::audit_seals::insert(&stores.mongo, &seals).await?;
        copied += seals.len() as u64;
    }
    Ok(copied)
}
