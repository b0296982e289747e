//! The collection `audit_seals`: a copy of the seals. They are only ever inserted.

use futures_util::TryStreamExt;
use mongodb::Database;
use mongodb::bson::{Bson, DateTime, Document, RawDocumentBuf, cstr, doc};
use taskflow_core::audit::copies::Newest;
use taskflow_core::audit::key::{PublicKey, Signature};
use taskflow_core::audit::seal::Signed;

use super::dump::ADDED_AT;
use super::events::{binary, durable, insert_new};
use super::failed;
use crate::StoreError;

/// The collection's name.
pub const COLLECTION: &str = "audit_seals";

/// Seals that come in one answer of the server where the newest is looked for: mostly one is enough.
const TOGETHER: u32 = 10;

/// Adds seals, each under its number; those that are there already count as added.
pub async fn insert(database: &Database, seals: &[(i64, Signed)]) -> Result<(), StoreError> {
    if seals.is_empty() {
        return Ok(());
    }
    let documents = seals.iter().map(|(number, signed)| {
        let mut seal = RawDocumentBuf::new();
        seal.append(cstr!("_id"), *number);
        seal.append(cstr!("seal"), signed.seal.as_str());
        seal.append(cstr!("signature"), binary(&signed.signature.0));
        seal.append(cstr!("key"), binary(&signed.key.0));
        seal.append(ADDED_AT, DateTime::now());
        seal
    });
    insert_new(&durable(database, COLLECTION), &documents.collect::<Vec<_>>(), "insert seals").await
}

/// Looks how far the seals go.
pub async fn newest(database: &Database, keys: &[PublicKey]) -> Result<Newest, StoreError> {
    const CALL: &str = "read the newest seal";
    let seals = database.collection::<Document>(COLLECTION);
    let found = seals.find(doc! {}).sort(doc! { "_id": -1 }).batch_size(TOGETHER).await;
    let mut found = found.map_err(failed(CALL))?;
    let mut newest = Newest::default();
    while let Some(seal) = found.try_next().await.map_err(failed(CALL))? {
        // What has not even a number is none, wherever it sorts.
        if let Ok(number) = seal.get_i64("_id")
            && newest.take(number, &signed(&seal), keys)
        {
            break;
        }
    }
    Ok(newest)
}

/// Reads the seals with numbers from `first` to `last`. One that is no seal any more comes with an empty text, which no
/// key has signed.
pub async fn read(database: &Database, first: i64, last: i64) -> Result<Vec<(i64, Signed)>, StoreError> {
    const CALL: &str = "read seals";
    let seals = database.collection::<Document>(COLLECTION);
    let found = seals.find(doc! { "_id": { "$gte": first, "$lte": last } }).sort(doc! { "_id": 1 }).await;
    let found: Vec<Document> = found.map_err(failed(CALL))?.try_collect().await.map_err(failed(CALL))?;
    Ok(found.iter().filter_map(|seal| Some((seal.get_i64("_id").ok()?, signed(seal)))).collect())
}

fn signed(seal: &Document) -> Signed {
    let read = || {
        let bytes = |name| match seal.get(name) {
            Some(Bson::Binary(binary)) => Some(binary.bytes.as_slice()),
            _ => None,
        };
        Some(Signed {
            seal: seal.get_str("seal").ok()?.to_owned(),
            signature: Signature(bytes("signature")?.try_into().ok()?),
            key: PublicKey(bytes("key")?.try_into().ok()?),
        })
    };
    read().unwrap_or(Signed { seal: String::new(), signature: Signature([0; 64]), key: PublicKey([0; 32]) })
}
