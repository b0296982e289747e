//! The audit trail back into a database: a full backup, then those that were made since, in order.
//!
//! The database bears a mark until it is whole. A restore that died goes on behind the files that are done; each
//! document may be inserted twice.
//!
//! Of a collection that only grows, the parts of a chain overlap a little. What a part repeats is summed up before it is
//! inserted, so the sums of all parts, which their manifests tell, without what is repeated are the sum of what must be
//! there: a chain is held against checksums like a single backup. Of the other collections each part has all there was,
//! so the newest part's is the one that counts.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use mongodb::bson::RawDocumentBuf;
use taskflow_stores::mongo::dump::{self, Collection, Reading};
use taskflow_stores::mongo::refill::{self, Repeated};
use taskflow_stores::mongo::{self, Database, Document};

use super::postgres::must_know_schema;
use super::{Restored, chain, fits};
use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::manifest::{File, Kind, Manifest, Sum};
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
    // One that goes on, and one over the live trail, has looked at the room before it wrote or removed anything.
    let goes_on = refill::mark(database).await?.is_some();
    let room = fits::check(&backups, database, (!goes_on).then_some(0)).await?;
    let ids: Vec<String> = backups.iter().map(|manifest| manifest.id.clone()).collect();
    let mut done = begin(database, &ids, only).await?;
    let whole = Whole { vault, identities, database, only, backups: &backups, progress };
    let (mut described, mut expected) = (BTreeMap::new(), BTreeMap::new());
    for (place, manifest) in backups.iter().enumerate() {
        progress.begin(format!("restore {}", manifest.id), manifest.content_bytes());
        whole.one(place, manifest, &mut done, &mut described, &mut expected).await?;
    }
    if let Some(name) = only
        && !described.contains_key(name)
    {
        return Err(Error::refused(format!("{id} has no collection {name}")));
    }
    progress.begin("check what was restored", 0);
    let (counts, mut checked) = examine(&backups, database, &described, &expected, progress).await?;
    // Last: an index that expires documents would remove some of them before they were counted.
    for collection in described.values() {
        refill::make_indexes(database, collection).await?;
    }
    checked.push("every index was made".to_owned());
    checked.extend(room);
    // With one collection alone it is no trail. What the outbox still held when it was saved is not in it.
    let whole = backups.last().filter(|_| only.is_none()).map(|newest| &newest.position);
    let from = whole.and_then(|position| position.from.into_iter().chain(position.through).min());
    refill::unmark(database, from).await?;
    Ok(Restored {
        backups: ids,
        database: database.name().to_owned(),
        counts,
        checked,
        seals: None,
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
    backups: &'w [Manifest],
    progress: &'w Progress,
}

/// Whether a collection is only ever added to, so that a part of a chain has what is new of it.
fn grows(collection: &str, manifest: &Manifest) -> bool {
    dump::newer(collection, manifest.begun_at).is_some()
}

impl Whole<'_> {
    /// One backup of the chain. `expected` grows by what each collection must hold of it.
    async fn one(
        &self,
        place: usize,
        manifest: &Manifest,
        done: &mut Vec<String>,
        described: &mut BTreeMap<String, Collection>,
        expected: &mut BTreeMap<String, Summing>,
    ) -> Result<()> {
        let folder = Vault::folder(&manifest.id);
        let ids = self.backups.iter().map(|manifest| manifest.id.clone());
        let mark: Vec<String> = ids.chain(self.only.map(|only| format!("only {only}"))).collect();
        for (name, told) in &manifest.sums {
            if self.only.is_some_and(|only| only != name) {
                continue;
            }
            let later = || self.backups.iter().skip(place + 1);
            if !grows(name, manifest) && later().any(|later| later.sums.contains_key(name)) {
                continue;
            }
            let base = base(&manifest.database, name);
            let metadata = find(manifest, &format!("{base}.metadata.json"))?;
            let text =
                FileReader::begin(&self.vault.place, &folder, metadata, self.identities).whole().await?;
            let collection = Collection::from_metadata(&text)
                .map_err(|error| Error::damaged(format!("{folder}/{}: {error}", metadata.path)))?;
            refill::create(self.database, &collection).await?;
            let file = find(manifest, &format!("{base}.bson"))?;
            let key = format!("{}/{}", manifest.id, file.path);
            let overlaps = described.insert(name.clone(), collection).is_some();
            if !done.contains(&key) {
                self.fill(manifest, file, name, overlaps.then_some(key.as_str())).await?;
                done.push(key.clone());
                refill::set_mark(self.database, &mark, done).await?;
                taskflow_stores::crash::point("refilled");
            }
            let sum = expected.entry(name.clone()).or_default();
            sum.join(Summing::read(told.count, &told.sum)?);
            if overlaps {
                let noted = refill::repeated(self.database, &key).await?.unwrap_or_default();
                sum.take_out(read(&noted)?);
            }
        }
        Ok(())
    }

    /// Inserts a file's documents. With a key, earlier files may have some of them: that is noted under it.
    async fn fill(
        &self,
        manifest: &Manifest,
        file: &File,
        collection: &str,
        overlaps: Option<&str>,
    ) -> Result<()> {
        let folder = Vault::folder(&manifest.id);
        let named = |error: Error| error.during(format!("{folder}/{}", file.path));
        let mut reader = FileReader::begin(&self.vault.place, &folder, file, self.identities);
        let mut cutter = Cutter::default();
        let (mut batch, mut bytes, mut inserted) = (Vec::new(), 0, 0_u64);
        while let Some(piece) = reader.next().await? {
            self.progress.check()?;
            self.progress.add(piece.len() as u64);
            for document in cutter.cut(&piece).map_err(named)? {
                let document = raw(&document).map_err(named)?;
                bytes += document.as_bytes().len();
                batch.push(document);
                if batch.len() >= BATCH || bytes >= BATCH_BYTES {
                    self.insert(collection, std::mem::take(&mut batch), overlaps, &mut inserted).await?;
                    bytes = 0;
                }
            }
        }
        cutter.end().map_err(named)?;
        self.insert(collection, batch, overlaps, &mut inserted).await
    }

    /// Inserts documents of a file, of which `inserted` are done.
    async fn insert(
        &self,
        collection: &str,
        batch: Vec<RawDocumentBuf>,
        overlaps: Option<&str>,
        inserted: &mut u64,
    ) -> Result<()> {
        let count = batch.len() as u64;
        if let Some(key) = overlaps {
            let noted = refill::repeated(self.database, key).await?.unwrap_or_default();
            // A restore that died may have inserted what it had looked at: only what it had not is looked at now.
            let looked_at = noted.looked_at.saturating_sub(*inserted).min(count);
            let fresh = &batch[usize::try_from(looked_at).unwrap_or(usize::MAX)..];
            if !fresh.is_empty() {
                let mut sum = read(&noted)?;
                for place in refill::there(self.database, collection, fresh).await? {
                    sum.add(fresh[place].as_bytes());
                }
                let Sum { count: repeated, sum } = sum.done();
                let noted = Repeated { looked_at: *inserted + count, count: repeated, sum };
                refill::note_repeated(self.database, key, &noted).await?;
                taskflow_stores::crash::point("overlap_noted");
            }
        }
        refill::insert(self.database, collection, batch).await?;
        *inserted += count;
        Ok(())
    }
}

/// The sum of what is repeated.
fn read(noted: &Repeated) -> Result<Summing> {
    if noted.sum.is_empty() { Ok(Summing::default()) } else { Summing::read(noted.count, &noted.sum) }
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
    expected: &BTreeMap<String, Summing>,
    progress: &Progress,
) -> Result<(BTreeMap<String, u64>, Vec<String>)> {
    let mut counts = BTreeMap::new();
    let mut faults = Vec::new();
    for name in described.keys() {
        let (sum, told) = (sum(database, name, progress).await?, expected.get(name).copied());
        counts.insert(name.clone(), sum.count());
        if told != Some(sum) {
            let told = told.map_or(0, |told| told.count());
            faults.push(format!(
                "collection {name} has {} documents, or others, and not the {told} of the backup",
                sum.count()
            ));
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
    let checked = vec![
        format!(
            "{} files as their manifests say",
            backups.iter().map(|manifest| manifest.files.len()).sum::<usize>()
        ),
        format!("{} collections with {documents} documents, the same by count and checksum", counts.len()),
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
