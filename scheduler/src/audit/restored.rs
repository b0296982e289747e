//! The seals after a restore: what was restored is held against them, as far as both stores go.

use chrono::{DateTime, Utc};
use taskflow_core::audit::copies::Trusted;
use taskflow_stores::mongo;
use taskflow_stores::postgres::audit_seals;

use super::Settings;
use super::files::{self, Outside};
use super::verify::{Error, Report, SEALS_TOGETHER, Verifier};
use crate::Stores;

/// What came of it.
pub enum Checked {
    /// Up to the seal of this number.
    Through(i64, Box<Report>),
    /// Why nothing was verified.
    Not(String),
}

/// Verifies from the first seal to the newest one that Postgres and MongoDB both have; of a trail that goes up to a time,
/// to the last seal before it. One of the two may be older than the other: what only one knows of is not held against it.
///
/// With `newest`, only so many stretches between two seals, the newest ones. `goes_on` is asked after each.
pub async fn check(
    stores: &Stores,
    settings: &Settings,
    trail_through: Option<DateTime<Utc>>,
    newest: Option<i64>,
    now: DateTime<Utc>,
    mut goes_on: impl FnMut() -> bool,
) -> Result<Checked, Error> {
    let keys = files::public_keys(&settings.public_keys_path)?;
    if keys.is_empty() {
        let why = format!(
            "there is no public key in {} (audit.public_keys_path)",
            settings.public_keys_path.display()
        );
        return Ok(Checked::Not(why));
    }
    let own = audit_seals::believed(&stores.postgres, &keys).await?.believed;
    let mut last = own.min(mongo::audit_seals::newest(&stores.mongo, &keys).await?.believed);
    if let Some(through) = trail_through {
        let (before, _) = audit_seals::around(&stores.postgres, through, through).await?;
        last = last.min(before.unwrap_or(0));
    }
    if last == 0 {
        return Ok(Checked::Not("nothing of it was sealed yet".to_owned()));
    }
    let outside = Outside::new(&settings.seals_folder);
    let outside = outside.is_there().then_some(outside);
    let mut verifier = Verifier::new(stores.clone(), keys, outside, now).await?;
    verifier.set_back = true;
    let from = newest.map_or(0, |newest| (last - newest).max(0));
    // The seal at which it begins is read too: the first stretch is from there.
    let (mut first, mut before): (i64, Option<Trusted>) = (from.max(1), None);
    while first <= last {
        let end = last.min(first + SEALS_TOGETHER - 1);
        for seal in verifier.seals(first, end, before.as_ref()).await? {
            if seal.seal.number > from {
                verifier.stretch(before.as_ref().map(|before| &before.seal), &seal.seal).await?;
            }
            before = Some(seal);
            if !goes_on() {
                return Ok(Checked::Not("it was told to stop".to_owned()));
            }
        }
        first = end + 1;
    }
    Ok(Checked::Through(last, Box::new(verifier.end())))
}
