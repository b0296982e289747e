//! What a backup needs, in the order in which it is restored.

use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::vault::Vault;

/// No chain is longer: hourly backups between two full ones, with much to spare.
const LONGEST: usize = 10_000;

/// The backup and all that it stands on, the first one first.
pub async fn read(vault: &Vault, id: &str) -> Result<Vec<Manifest>> {
    let mut chain = vec![vault.read(id).await?];
    while let Some(before) = chain.last().and_then(|manifest| manifest.needs.first()).cloned() {
        if chain.len() > LONGEST || chain.iter().any(|manifest| manifest.id == before) {
            return Err(Error::damaged(format!("{id}: its chain of backups does not end")));
        }
        let manifest =
            vault.read(&before).await.map_err(|error| error.during(format!("{id} needs {before}")))?;
        chain.push(manifest);
    }
    chain.reverse();
    Ok(chain)
}
