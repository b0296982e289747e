//! The audit trail back into a database: a full backup, then those that were made since, in order.
//!
//! The database bears a mark until it is whole. A restore that died goes on behind the files that are done; each
//! document may be inserted twice.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use mongodb::bson::RawDocumentBuf;
use taskflow_stores::mongo::dump::{self, Collection, Reading};
use taskflow_stores::mongo::{self, Database, Document, refill};

use super::postgres::must_know_schema;
use super::{Restored, chain};
use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::manifest::{File, Kind, Manifest};
use crate::mongo::documents::{Cutter, Summing};
use crate::mongo::dump::base;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::vault::Vault;

/// Documents inserted at once, and their bytes.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 8 << 20;

/// Restores a backup, with all that it needs, into a database that is empty or bears the mark of the same restore.
/// `only` names the one collection to restore.
pub async fn restore(
    vault: &Vault,
    identities: &Identities,
    id: &str,
    database: &Database,
    only: Option<&str>,
    progress: &Progress,
) -> Result<Restored> {
    let started = Instant::now();
    let backups = chain::read(vault, id).await?;
    for manifest in &backups {
        if !matches!(manifest.kind, Kind::MongoDb | Kind::MongoDbIncremental) {
            return Err(Error::refused(format!(
                "{} is a backup of {}, not of MongoDB",
                manifest.id, manifest.kind
            )));
        }
        must_know_schema("MongoDB", manifest, mongo::migrate::newest())?;
        vault.verify(manifest, Some(identities), progress).await?;
    }
    let ids: Vec<String> = backups.iter().map(|manifest| manifest.id.clone()).collect();
    let mut done = begin(database, &ids, only).await?;
    let whole = Whole { vault, identities, database, only, progress };
    let mut described = BTreeMap::new();
    for manifest in &backups {
        progress.begin(format!("restore {}", manifest.id), manifest.content_bytes());
        whole.one(manifest, &ids, &mut done, &mut described).await?;
    }
    if let Some(name) = only
        && !described.contains_key(name)
    {
        return Err(Error::refused(format!("{id} has no collection {name}")));
    }
    progress.begin("check what was restored", 0);
    let (counts, mut checked) = examine(&backups, database, &described, progress).await?;
    // Last: an index that expires documents would remove some of them before they were counted.
    for collection in described.values() {
        refill::make_indexes(database, collection).await?;
    }
    checked.push("every index was made".to_owned());
    refill::unmark(database).await?;
    Ok(Restored {
        backups: ids,
        database: database.name().to_owned(),
        counts,
        checked,
        took_s: started.elapsed().as_secs_f64(),
    })
}

/// Marks the database as not whole, or finds how far the same restore has got.
async fn begin(database: &Database, ids: &[String], only: Option<&str>) -> Result<Vec<String>> {
    // With one collection alone, it is another restore.
    let name: Vec<String> = ids.iter().cloned().chain(only.map(|only| format!("only {only}"))).collect();
    match refill::mark(database).await? {
        Some((theirs, done)) if theirs == name => {
            tracing::info!(
                database = database.name(),
                files = done.len(),
                "A restore goes on where it was broken off."
            );
            Ok(done)
        }
        Some((theirs, _)) => Err(Error::refused(format!(
            "the database {} holds an unfinished restore of {}; go on with that, drop the database, or choose another with --into",
            database.name(),
            theirs.join(", ")
        ))),
        None => {
            let names = refill::names(database).await?;
            if let Some(first) = names.first() {
                return Err(Error::refused(format!(
                    "the database {} is not empty (it has the collection {first}); choose another with --into",
                    database.name()
                )));
            }
            refill::set_mark(database, &name, &[]).await?;
            Ok(Vec::new())
        }
    }
}

struct Whole<'w> {
    vault: &'w Vault,
    identities: &'w Identities,
    database: &'w Database,
    only: Option<&'w str>,
    progress: &'w Progress,
}

impl Whole<'_> {
    /// One backup of the chain.
    async fn one(
        &self,
        manifest: &Manifest,
        ids: &[String],
        done: &mut Vec<String>,
        described: &mut BTreeMap<String, Collection>,
    ) -> Result<()> {
        let folder = Vault::folder(&manifest.id);
        let mark: Vec<String> =
            ids.iter().cloned().chain(self.only.map(|only| format!("only {only}"))).collect();
        for name in manifest.sums.keys().filter(|name| self.only.is_none_or(|only| only == *name)) {
            let base = base(&manifest.database, name);
            let metadata = find(manifest, &format!("{base}.metadata.json"))?;
            let text =
                FileReader::begin(&self.vault.place, &folder, metadata, self.identities).whole().await?;
            let collection = Collection::from_metadata(&text)
                .map_err(|error| Error::damaged(format!("{folder}/{}: {error}", metadata.path)))?;
            refill::create(self.database, &collection).await?;
            described.insert(name.clone(), collection);
            let file = find(manifest, &format!("{base}.bson"))?;
            let key = format!("{}/{}", manifest.id, file.path);
            if done.contains(&key) {
                continue;
            }
            self.fill(manifest, file, name).await?;
            done.push(key);
            refill::set_mark(self.database, &mark, done).await?;
            taskflow_stores::crash::point("refilled");
        }
        Ok(())
    }

    async fn fill(&self, manifest: &Manifest, file: &File, collection: &str) -> Result<()> {
        let folder = Vault::folder(&manifest.id);
        let named = |error: Error| error.during(format!("{folder}/{}", file.path));
        let mut reader = FileReader::begin(&self.vault.place, &folder, file, self.identities);
        let mut cutter = Cutter::default();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        // Of what is only ever added to, an incremental backup has what is new; of the rest, what came later counts.
        let grows = dump::newer(collection, manifest.begun_at).is_some();
        let replaces = manifest.kind == Kind::MongoDbIncremental && !grows;
        while let Some(piece) = reader.next().await? {
            self.progress.check()?;
            self.progress.add(piece.len() as u64);
            for document in cutter.cut(&piece).map_err(named)? {
                let document = raw(&document).map_err(named)?;
                if replaces {
                    refill::replace(self.database, collection, document).await?;
                    continue;
                }
                bytes += document.as_bytes().len();
                batch.push(document);
                if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                    refill::insert(self.database, collection, std::mem::take(&mut batch)).await?;
                    bytes = 0;
                }
            }
        }
        cutter.end().map_err(named)?;
        refill::insert(self.database, collection, batch).await?;
        Ok(())
    }
}

fn raw(document: &Bytes) -> Result<RawDocumentBuf> {
    RawDocumentBuf::from_bytes(document.to_vec())
        .map_err(|error| Error::damaged(format!("a document can't be read: {error}")))
}

fn find<'m>(manifest: &'m Manifest, name: &str) -> Result<&'m File> {
    let of = |file: &&File| {
        file.path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.']))
    };
    manifest.files.iter().find(of).ok_or_else(|| Error::damaged(format!("{} has no {name}", manifest.id)))
}

/// Holds what was restored against the manifests.
async fn examine(
    backups: &[Manifest],
    database: &Database,
    described: &BTreeMap<String, Collection>,
    progress: &Progress,
) -> Result<(BTreeMap<String, u64>, Vec<String>)> {
    let mut counts = BTreeMap::new();
    let mut faults = Vec::new();
    for name in described.keys() {
        let sum = sum(database, name, progress).await?;
        counts.insert(name.clone(), sum.count());
        let of = |manifest: &Manifest| manifest.sums.get(name).cloned();
        match backups {
            [one] if of(one).is_some_and(|told| told != sum.done()) => {
                let told = of(one).map_or(0, |told| told.count);
                faults.push(format!(
                    "collection {name} has {} documents, or others, and not the {told} of the backup",
                    sum.count()
                ));
            }
            [_] => {}
            // Parts overlap, so only bounds are known: no fewer than the largest, no more than all together.
            several => {
                let told: Vec<u64> = several.iter().filter_map(of).map(|sum| sum.count).collect();
                let (least, most) = (told.iter().copied().max().unwrap_or(0), told.iter().sum());
                if !(least..=most).contains(&sum.count()) {
                    faults.push(format!(
                        "collection {name} has {} documents and not {least} to {most}",
                        sum.count()
                    ));
                }
            }
        }
    }
    if !faults.is_empty() {
        let ids: Vec<&str> = backups.iter().map(|manifest| manifest.id.as_str()).collect();
        return Err(Error::damaged(format!(
            "{}: what was restored is not what was saved: {}",
            ids.join(", "),
            faults.join("; ")
        )));
    }
    let documents: u64 = counts.values().sum();
    let how = if backups.len() == 1 {
        "the same by count and checksum"
    } else {
        "as many as the backups together have"
    };
    let checked = vec![
        format!(
            "{} files as their manifests say",
            backups.iter().map(|manifest| manifest.files.len()).sum::<usize>()
        ),
        format!("{} collections with {documents} documents, {how}", counts.len()),
    ];
    Ok((counts, checked))
}

/// What a collection holds.
pub async fn sum(database: &Database, collection: &str, progress: &Progress) -> Result<Summing> {
    let mut reading = Reading::as_it_comes();
    let mut sum = Summing::default();
    let mut documents = reading.read(database, collection, Document::new()).await?;
    while let Some(piece) = documents.next().await? {
        progress.check()?;
        progress.add(piece.bytes.len() as u64);
        piece.documents().for_each(|document| sum.add(document));
    }
    Ok(sum)
}
