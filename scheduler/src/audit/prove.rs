//! Gathers the proof of one event.

use taskflow_core::audit::key::PublicKey;
use taskflow_core::audit::proof::{FORMAT, Proof};
use taskflow_core::audit::seal::{Seal, Signed};
use taskflow_core::audit::trail::LeafList;
use taskflow_core::audit::{Hash, link, tree};
use taskflow_core::event::EventId;
use taskflow_core::hex;
use taskflow_stores::postgres::{audit_chain, audit_seals};
use taskflow_stores::{StoreError, mongo};

use super::verify::SEALS_TOGETHER;
use crate::Stores;

/// Links of a proof: more than a partition has batches in a minute.
const LINKS_MAX: i64 = 20_000;

/// Why there is no proof.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Without(String),
}

fn without<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::Without(why.into()))
}

/// The proof of an event, checked.
pub async fn prove(stores: &Stores, keys: &[PublicKey], id: EventId) -> Result<Proof, Error> {
    let Some(shown) = mongo::audit_trail::one(&stores.mongo, id).await? else {
        return without(format!("there is no event {id} in the audit trail"));
    };
    if shown.seen.undone {
        return without(format!(
            "event {id} was set apart by a restore: what it tells of was undone, and nothing proves that it happened"
        ));
    }
    let place = &shown.seen.place;
    let Some(leaf) = place.leaf else {
        return without(format!("event {id} is from before the trail was sealed; nothing proves it"));
    };
    let changed = || without(format!("event {id} is not what was sealed; `taskflow audit verify` says more"));
    let (Some(fields), Some(data_digest), Some(hash)) = (shown.fields, shown.data_digest, shown.seen.hash)
    else {
        return changed();
    };
    let Some((_, seal, signed)) =
        seal_of(stores, keys, &place.partition, place.number, shown.seen.created_ms).await?
    else {
        return without(format!(
            "event {id} is not sealed yet: a seal is made every minute, see `taskflow jobs show audit.seal`"
        ));
    };
    let head = seal.head(&place.partition);
    let postgres = &stores.postgres;
    let links =
        audit_chain::links(postgres, &place.partition, place.number - 1, head.number, LINKS_MAX).await?;
    let Some(first) = links.first().filter(|link| link.number == place.number) else { return changed() };
    let classes = link::read(&first.classes).unwrap_or_default();
    let Some(root) = classes.iter().find(|root| root.class == place.class) else { return changed() };
    let list = match root.only {
        Some(only) => Some(LeafList { ids: vec![only], leaves: vec![root.root] }),
        None => mongo::audit_leaves::read(&stores.mongo, &place.partition, place.number)
            .await?
            .remove(&place.class),
    };
    let Some(list) = list.filter(|list| list.root() == Some(root.root)) else {
        return without(format!(
            "the list of the leaves of batch {} of partition {} is gone or changed: without it nothing proves event {id}",
            place.number, place.partition
        ));
    };
    let path = match tree::path(&list.tree(), leaf as usize) {
        Some(path) if list.leaves.get(leaf as usize) == Some(&hash) => path,
        _ => return changed(),
    };
    let before: Option<Hash> = audit_chain::hash_before(postgres, &place.partition, place.number).await?;
    let (data, salt) = shown.data.map(|(data, salt)| (data, hex::of(&salt))).unzip();
    let proof = Proof {
        format: FORMAT.to_owned(),
        fields,
        data,
        salt,
        data_digest,
        path,
        partition: place.partition.clone(),
        before: before.unwrap_or_else(|| link::genesis(&place.partition)),
        links: links.into_iter().map(|link| (link.number, link.classes)).collect(),
        seal: signed,
    };
    match proof.check(keys) {
        Ok(_) => Ok(proof),
        Err(why) => without(format!("event {id} can't be proved: {why}; `taskflow audit verify` says more")),
    }
}

/// The first seal that has a batch, of those that can be believed.
async fn seal_of(
    stores: &Stores,
    keys: &[PublicKey],
    partition: &str,
    number: i64,
    created_ms: i64,
) -> Result<Option<(i64, Seal, Signed)>, Error> {
    let created = chrono::DateTime::from_timestamp_millis(created_ms).unwrap_or_default();
    // Clocks differ between hosts: from the seal before on.
    let (before, after) = audit_seals::around(&stores.postgres, created, created).await?;
    let mut from = before.or(after).unwrap_or(1);
    loop {
        let seals = audit_seals::read(&stores.postgres, from, from + SEALS_TOGETHER - 1).await?;
        let Some((last, _)) = seals.last() else { return Ok(None) };
        from = last + 1;
        for (place, signed) in seals {
            if let Ok(seal) = signed.open(keys)
                && seal.head(partition).number >= number
            {
                return Ok(Some((place, seal, signed)));
            }
        }
    }
}
