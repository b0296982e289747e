//! One entity's history out of a backup of the audit trail: its events, in order, and nothing is written anywhere.

use std::collections::BTreeMap;

use mongodb::bson::{Bson, RawDocumentBuf};
use serde_json::Value;
use taskflow_stores::mongo::{Document, events};
use uuid::Uuid;

use super::chain;
use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::mongo::documents::Cutter;
use crate::mongo::dump::base;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::vault::Vault;

/// Events of one entity that are kept in memory; a task has some dozens.
const MOST: usize = 100_000;

/// Reads an entity's events from a backup and those that it needs, the oldest first, as relaxed Extended JSON.
pub async fn read(
    vault: &Vault,
    identities: &Identities,
    id: &str,
    entity: Uuid,
    progress: &Progress,
) -> Result<Vec<Value>> {
    let entity = entity.to_string();
    let mut found: BTreeMap<(i64, i64, i32, [u8; 12]), Document> = BTreeMap::new();
    for manifest in chain::read(vault, id).await? {
        vault.verify(&manifest, Some(identities), progress).await?;
        progress.begin(format!("look through {}", manifest.id), manifest.content_bytes());
        let name = format!("{}.bson", base(&manifest.database, events::COLLECTION));
        let file = manifest.files.iter().find(|file| file.path.starts_with(&name));
        let file = file.ok_or_else(|| Error::refused(format!("{} has no events", manifest.id)))?;
        let mut reader = FileReader::begin(&vault.place, &Vault::folder(&manifest.id), file, identities);
        let mut cutter = Cutter::default();
        while let Some(piece) = reader.next().await? {
            progress.check()?;
            progress.add(piece.len() as u64);
            for bytes in cutter.cut(&piece)? {
                let raw = RawDocumentBuf::from_bytes(bytes.to_vec())
                    .map_err(|error| Error::damaged(format!("{}: {error}", file.path)))?;
                if raw.get_str("entityId").is_ok_and(|of| of == entity) {
                    let event = Document::try_from(raw.as_ref())
                        .map_err(|error| Error::damaged(format!("{}: {error}", file.path)))?;
                    let at = event.get_datetime("createdAt").map_or(0, |at| at.timestamp_millis());
                    let key = event.get_object_id("_id").map_or([0; 12], |id| id.bytes());
                    if found.len() >= MOST {
                        return Err(Error::refused(format!(
                            "{entity} has more than {MOST} events; restore the collection instead"
                        )));
                    }
                    // Those of one batch have one time.
                    let run = event.get_document("run").ok();
                    let batch = run.and_then(|run| run.get_i64("n").ok()).unwrap_or(0);
                    let place = run.and_then(|run| run.get_i32("i").ok()).unwrap_or(0);
                    found.insert((at, batch, place, key), event);
                }
            }
        }
        cutter.end()?;
    }
    Ok(found.into_values().map(|event| Bson::Document(event).into_relaxed_extjson()).collect())
}
