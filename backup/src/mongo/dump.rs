//! A backup of the audit trail's database: `DATABASE/COLLECTION.bson` with `COLLECTION.metadata.json` beside it.
//!
//! Where the server has snapshots (a replica set), all is read at one moment. Else the window is stated: what was written
//! within it may be in the backup or not. Events are only ever added, so that a later incremental backup, which begins
//! before the window, makes up for it.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use taskflow_core::hex;
use taskflow_stores::mongo::dump::{self, Collection, Reading, WITHOUT_SNAPSHOT};
use taskflow_stores::mongo::{self, Database, refill};
use taskflow_stores::postgres::{PgPool, outbox};
use taskflow_stores::{StoreError, clock};

use super::documents::Summing;
use crate::draft::{Draft, Facts};
use crate::error::{Error, Result, Trouble};
use crate::manifest::{Kind, Manifest, Position, Sum};
use crate::progress::Progress;
use crate::settings::Compression;
use crate::vault::{Found, Vault};

/// Clocks of workers may differ by so much: an incremental backup begins so long before the end of the one before.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(2);

/// A time up to which all events have reached MongoDB: what the outbox still holds is later.
pub async fn settled(pool: &PgPool) -> Result<DateTime<Utc>> {
    let now = clock::now();
    Ok(outbox::audited_before(pool).await?.map_or(now, |before| before.min(now)))
}

/// Makes a backup of all of it. `settled` is a time up to which all events have reached MongoDB: what the outbox still
/// holds is later.
pub async fn create(
    vault: &Vault,
    database: &Database,
    settled: DateTime<Utc>,
    progress: &Progress,
) -> Result<Manifest> {
    let from_one_moment = Reading::one_moment(database).await?;
    let had = from_one_moment.is_some();
    let reading = from_one_moment.unwrap_or_else(Reading::as_it_comes);
    let whole = What { kind: Kind::MongoDb, since: None, needs: Vec::new(), settled };
    match run(vault, database, reading, &whole, progress).await {
        // It has lasted longer than the server keeps a moment, or the server has none after all.
        Err(error) if had && error.text.contains(WITHOUT_SNAPSHOT) => {
            tracing::warn!(%error, "A backup at one moment was not possible; it is made over a window of time.");
            run(vault, database, Reading::as_it_comes(), &whole, progress).await
        }
        made => made,
    }
}

/// Makes a backup of what has come since another one: of collections that only grow what is new, of the others all.
/// `restored` is when the newest restore was brought to its end: what it has set apart is old, and would be in no part
/// that is made later.
///
/// # Errors
/// [`Trouble::Missing`]: there is none to go on from; a whole backup is needed first.
pub async fn create_incremental(
    vault: &Vault,
    database: &Database,
    settled: DateTime<Utc>,
    restored: Option<DateTime<Utc>>,
    progress: &Progress,
) -> Result<Manifest> {
    let found = vault.list().await?;
    let good = |kind: Kind| found.iter().rev().filter_map(Found::good).find(|manifest| manifest.kind == kind);
    let full = good(Kind::MongoDb).filter(|full| restored.is_none_or(|restored| full.begun_at > restored));
    let full = full.ok_or_else(|| {
        Error::new(
            Trouble::Missing,
            "there is no whole backup of MongoDB, none since the last restore, that an incremental one could go on from; \
             run `taskflow backup create mongodb` first",
        )
    })?;
    // One that goes on from an older full backup stays with that; a new chain begins with the new one.
    let before =
        good(Kind::MongoDbIncremental).filter(|later| begins_with(&found, later, &full.id)).unwrap_or(full);
    let through = before.position.through.unwrap_or(before.begun_at);
    let what = What {
        kind: Kind::MongoDbIncremental,
        since: Some(through - CLOCKS_DIFFER),
        needs: vec![before.id.clone()],
        settled,
    };
    run(vault, database, Reading::as_it_comes(), &what, progress).await
}

/// Whether the chain of incremental backups that ends with `later` begins with the backup `full`.
fn begins_with(found: &[Found], later: &Manifest, full: &str) -> bool {
    let mut at = later;
    // A chain is no longer than what there is.
    for _ in 0..=found.len() {
        let Some(before) = at.needs.first() else { return at.id == full };
        match found.iter().find(|one| one.id == *before).and_then(Found::good) {
            Some(manifest) => at = manifest,
            None => return false,
        }
    }
    false
}

struct What {
    kind: Kind,
    /// Only events from here on.
    since: Option<DateTime<Utc>>,
    needs: Vec<String>,
    settled: DateTime<Utc>,
}

async fn run(
    vault: &Vault,
    database: &Database,
    mut reading: Reading,
    what: &What,
    progress: &Progress,
) -> Result<Manifest> {
    if refill::mark(database).await?.is_some() {
        return Err(Error::refused(
            "MongoDB holds a restore that was broken off, and half of what there should be; run that restore again first",
        ));
    }
    let begun = clock::now();
    let server = mongo::version(database).await?;
    let collections = dump::collections(database).await?;
    let mut draft = Draft::begin(vault, what.kind, progress);
    progress.begin(format!("read {}", database.name()), 0);
    let mut sums = BTreeMap::new();
    let read = async {
        for collection in &collections {
            let sum = one(&mut draft, database, &mut reading, collection, what.since, vault).await?;
            sums.insert(collection.name.clone(), sum);
        }
        Ok(())
    };
    let read: Result<()> = read.await;
    if let Err(error) = read {
        draft.discard().await;
        return Err(error);
    }
    let exact = reading.is_one_moment();
    let window = if exact {
        Vec::new()
    } else {
        vec![
            "read over a window of time (position.from to position.through): the server gives no snapshot"
                .to_owned(),
        ]
    };
    let restore = how(vault, database.name(), &draft.id);
    let facts = Facts {
        server,
        schema: mongo::migrate::newest_applied(database).await?,
        database: database.name().to_owned(),
        position: Position {
            from: what.since.or(Some(begun)),
            // All that was settled before the reading began is in it.
            through: Some(what.settled.min(begun)),
            exact,
            ..Position::default()
        },
        needs: what.needs.clone(),
        sums,
        // Documents, and about as much again for indexes.
        restored_bytes: 0,
        notes: window,
        restore,
    };
    let mut facts = facts;
    facts.restored_bytes = 2 * draft.content_bytes();
    draft.finish(facts).await
}

async fn one(
    draft: &mut Draft<'_>,
    database: &Database,
    reading: &mut Reading,
    collection: &Collection,
    since: Option<DateTime<Utc>>,
    vault: &Vault,
) -> Result<Sum> {
    let compression = vault.settings.mongodb_compression;
    let base = base(database.name(), &collection.name);
    draft.bytes(&format!("{base}.metadata.json"), compression, collection.metadata()).await?;
    let newer = since.and_then(|since| dump::newer(&collection.name, since));
    let filter = newer.unwrap_or_default();
    let mut writer = draft.file(&format!("{base}.bson"), compression)?;
    let mut sum = Summing::default();
    let mut documents = reading.read(database, &collection.name, filter).await.map_err(moment)?;
    while let Some(piece) = documents.next().await.map_err(moment)? {
        draft.progress.check()?;
        draft.progress.add(piece.bytes.len() as u64);
        piece.documents().for_each(|document| sum.add(document));
        writer.write(Bytes::from(piece.bytes)).await?;
    }
    draft.add(writer.finish().await?);
    Ok(sum.done())
}

fn moment(error: StoreError) -> Error {
    Error::from(error)
}

/// A collection's files without their endings, named as `mongodump` does.
pub(crate) fn base(database: &str, collection: &str) -> String {
    let escaped = |name: &str| {
        let mut text = String::with_capacity(name.len());
        for byte in name.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                text.push('%');
                text.push_str(&hex::of(&[byte]).to_uppercase());
            }
        }
        text
    };
    format!("{}/{}", escaped(database), escaped(collection))
}

fn how(vault: &Vault, database: &str, id: &str) -> Vec<String> {
    let mut how = vec![format!("taskflow restore {id}")];
    if vault.recipients.is_empty() && vault.settings.mongodb_compression != Compression::Zstd {
        let gzip = if vault.settings.mongodb_compression == Compression::Gzip { "--gzip " } else { "" };
        how.push(format!(
            "or without it: mongorestore {gzip}--stopOnError --nsInclude '{database}.*' FOLDER"
        ));
    } else {
        how.push(
            "or without it: decrypt (age -d) and decompress (zstd -d) each file, then mongorestore"
                .to_owned(),
        );
    }
    how
}
