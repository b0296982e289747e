//! Restores that the seals tell of: from where on the chains went another way.
//!
//! A seal that tells of a restore follows, for each partition, the newest seal before it whose head is still a link of
//! the chain. What the seals in between have of that partition was undone.

use std::collections::HashMap;

use taskflow_core::audit::key::PublicKey;
use taskflow_core::audit::seal::{Head, Seal};
use taskflow_stores::StoreError;
use taskflow_stores::postgres::{PgPool, audit_chain, audit_seals};

use super::verify::SEALS_TOGETHER;

/// A restore.
#[derive(Debug)]
pub(super) struct Restore {
    /// The seal that tells of it.
    pub seal: i64,
    /// For each partition the seal that it was set back behind, 0 if none, and the head from which the chain goes on.
    bases: HashMap<String, (i64, Head)>,
}

impl Restore {
    pub(super) fn base(&self, partition: &str) -> Option<&(i64, Head)> {
        self.bases.get(partition)
    }
}

/// Reads the restores. What Postgres says of them counts only where a signed seal says it too.
pub(super) async fn read(pool: &PgPool, keys: &[PublicKey]) -> Result<Vec<Restore>, StoreError> {
    let mut restores = Vec::new();
    for (_, signed) in audit_seals::restored_seals(pool).await? {
        let Ok(seal) = signed.open(keys) else { continue };
        if seal.restored.is_none() {
            continue;
        }
        let mut bases = HashMap::new();
        for head in &seal.heads {
            bases.insert(head.partition.clone(), base(pool, keys, &seal, head).await?);
        }
        restores.push(Restore { seal: seal.number, bases });
    }
    Ok(restores)
}

async fn base(pool: &PgPool, keys: &[PublicKey], to: &Seal, head: &Head) -> Result<(i64, Head), StoreError> {
    let mut last = to.number - 1;
    while last > 0 {
        let first = (last - SEALS_TOGETHER + 1).max(1);
        for (number, signed) in audit_seals::read(pool, first, last).await?.iter().rev() {
            let Ok(seal) = signed.open(keys) else { continue };
            let sealed = seal.head(&head.partition);
            if sealed.number > head.number {
                continue;
            }
            let link = audit_chain::hash_before(pool, &head.partition, sealed.number + 1).await?;
            if link.unwrap_or(Seal::beginning(&head.partition).hash) == sealed.hash {
                return Ok((*number, sealed));
            }
        }
        last = first - 1;
    }
    Ok((0, Seal::beginning(&head.partition)))
}
