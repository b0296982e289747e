//! All backups of one installation: the two places, and what lies in them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use taskflow_core::backup::keeping::{self, Item, Verdict};
use taskflow_stores::clock;

use crate::error::{Error, Result, Trouble};
use crate::journal;
use crate::keys::{Identities, Recipients};
use crate::manifest::{self, File, Kind, Manifest};
use crate::place::Place;
use crate::postgres::archive;
use crate::progress::Progress;
use crate::read;
use crate::settings::{Compression, Settings};
use crate::write::Form;

/// The folder of the backups; each has a folder of its own, named by its id.
pub const FOLDER: &str = "backups";
/// What a drill leaves beside the manifest.
const PROOF: &str = "proven.json";
/// Manifests read at a time.
const AT_ONCE: usize = 8;

/// What a drill has found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proof {
    pub at: DateTime<Utc>,
    /// Seconds from the first byte to the end of the checks.
    pub took_s: f64,
    pub detail: String,
}

/// A backup as it lies there.
#[derive(Debug, Clone)]
pub struct Found {
    pub id: String,
    pub kind: Kind,
    pub taken_at: DateTime<Utc>,
    /// `Ok(None)`: it is not whole.
    pub manifest: Result<Option<Manifest>>,
    pub proof: Option<Proof>,
}

impl Found {
    pub fn good(&self) -> Option<&Manifest> {
        self.manifest.as_ref().ok().and_then(Option::as_ref)
    }

    /// As exactly as is known.
    fn begun_at(&self) -> DateTime<Utc> {
        self.good().map_or(self.taken_at, |manifest| manifest.begun_at)
    }

    /// In a word.
    pub fn state(&self) -> &'static str {
        match &self.manifest {
            Ok(Some(_)) if self.proof.is_some() => "proven",
            Ok(Some(_)) => "unproven",
            Ok(None) => "not whole",
            Err(error) if error.trouble == Trouble::Newer => "of a newer version",
            Err(_) => "damaged",
        }
    }
}

/// The backups, and how new ones are written.
#[derive(Clone)]
pub struct Vault {
    pub settings: Settings,
    pub place: Place,
    pub second: Option<Place>,
    pub recipients: Recipients,
    /// What the manifests of new backups say about why they are made; by the plan if nothing.
    pub reason: Option<String>,
}

impl Vault {
    /// Opens the places that the settings name.
    pub fn open(settings: &Settings) -> Result<Self> {
        Ok(Self {
            place: Place::first(settings)?,
            second: Place::second(settings)?,
            recipients: Recipients::read(settings)?,
            settings: settings.clone(),
            reason: None,
        })
    }

    /// The same for backups that are made for a reason of their own, which the rules for keeping heed.
    #[must_use]
    pub fn because(&self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self.clone() }
    }

    pub(crate) fn form(&self, compression: Compression) -> Form {
        let recipients = self.recipients.clone();
        Form { compression, level: self.settings.compression_level, recipients, checksum: false }
    }

    /// For files that no manifest speaks of: their checksums go with them.
    pub(crate) fn unlisted_form(&self) -> Form {
        Form { checksum: true, ..self.form(Compression::Zstd) }
    }

    /// The keys that the settings name.
    pub fn identities(&self) -> Result<Identities> {
        Identities::read(&self.settings)
    }

    /// A backup's folder.
    pub fn folder(id: &str) -> String {
        format!("{FOLDER}/{id}")
    }

    /// Each place by itself, as if there were no other: what is removed from one follows from what lies in it.
    pub fn each_place(&self) -> impl Iterator<Item = Self> {
        let second = self.second.clone().map(|place| Self { place, second: None, ..self.clone() });
        std::iter::once(Self { second: None, ..self.clone() }).chain(second)
    }

    /// Every backup, the oldest first.
    pub async fn list(&self) -> Result<Vec<Found>> {
        list(&self.place).await
    }

    /// One backup.
    ///
    /// # Errors
    /// There is none of this id, or it is not whole.
    pub async fn read(&self, id: &str) -> Result<Manifest> {
        read_manifest(&self.place, id).await?.ok_or_else(|| {
            Error::new(
                Trouble::Missing,
                format!(
                    "{}/{} has no {}: there is no such backup, or it is not whole",
                    self.place.name(),
                    Self::folder(id),
                    manifest::NAME
                ),
            )
        })
    }

    /// The newest whole backup of a kind.
    pub async fn newest(&self, kind: Kind) -> Result<Option<Manifest>> {
        self.newest_of(kind, |_| true).await
    }

    /// The newest whole backup of a kind that is wanted.
    pub async fn newest_of(
        &self,
        kind: Kind,
        wanted: impl Fn(&Manifest) -> bool,
    ) -> Result<Option<Manifest>> {
        let found = list_of(&self.place, |one| one == kind).await?;
        let whole = found.into_iter().rev().filter_map(|found| found.manifest.ok().flatten());
        Ok(whole.into_iter().find(wanted))
    }

    /// Holds every file of a backup against its manifest: sizes and digests; with identities, what is in them too.
    pub async fn verify(
        &self,
        manifest: &Manifest,
        identities: Option<&Identities>,
        progress: &Progress,
    ) -> Result<()> {
        let bytes = if identities.is_some() { manifest.content_bytes() } else { manifest.bytes() };
        progress.begin(format!("verify {}", manifest.id), bytes);
        let folder = Self::folder(&manifest.id);
        for file in &manifest.files {
            read::check(&self.place, &folder, file, identities, progress).await?;
        }
        Ok(())
    }

    /// Notes that a drill has restored a backup.
    pub async fn prove(&self, id: &str, proof: &Proof) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(proof).map_err(|error| Error::failed(error.to_string()))?;
        self.place.put(&format!("{}/{PROOF}", Self::folder(id)), bytes).await
    }

    /// What the rules say about each backup, with why.
    pub async fn plan(&self, now: DateTime<Utc>) -> Result<BTreeMap<String, Verdict>> {
        Ok(keeping::decide(&items(&self.list().await?), &self.settings.keep, now))
    }

    /// Removes what the rules no longer keep, in both places; returns their ids.
    pub async fn prune(&self, progress: &Progress) -> Result<Vec<String>> {
        let now = clock::now();
        let mut removed = Vec::new();
        for Self { place, settings, .. } in self.each_place() {
            // The last good one of a place stays, whatever the other has.
            let verdicts = keeping::decide(&items(&list(&place).await?), &settings.keep, now);
            // What needs another goes before it: ids begin with their time.
            for (id, _) in verdicts.iter().rev().filter(|(_, verdict)| !verdict.keeps()) {
                progress.check()?;
                place.remove_folder(&Self::folder(id), manifest::NAME).await?;
                taskflow_stores::crash::point("backup_pruned");
                tracing::info!(id, place = place.name(), "A backup that no rule keeps is removed.");
                removed.push(id.clone());
            }
        }
        removed.sort();
        removed.dedup();
        Ok(removed)
    }

    /// What is whole, still kept and from before a time, and is not whole in the second place: its id, and that place's name.
    pub async fn not_copied(&self, before: DateTime<Utc>) -> Result<Vec<(String, String)>> {
        let Some(second) = &self.second else { return Ok(Vec::new()) };
        let lacking = self.lacking(second).await?;
        let old = lacking.into_iter().filter(|manifest| manifest.ended_at < before);
        Ok(old.map(|manifest| (manifest.id, second.name().to_owned())).collect())
    }

    /// What is whole and still kept, and is not whole in another place.
    async fn lacking(&self, second: &Place) -> Result<Vec<Manifest>> {
        let there: Vec<String> = list(second)
            .await?
            .into_iter()
            .filter(|found| found.good().is_some())
            .map(|found| found.id)
            .collect();
        let verdicts = self.plan(clock::now()).await?;
        let mut found = self.list().await?;
        found.retain(|one| !there.contains(&one.id) && verdicts.get(&one.id).is_some_and(Verdict::keeps));
        Ok(found.into_iter().filter_map(|one| one.manifest.ok().flatten()).collect())
    }

    /// Copies what is whole and still kept to the second place, where it lacks; returns the ids of what was copied.
    pub async fn copy(&self, progress: &Progress) -> Result<Vec<String>> {
        let Some(second) = &self.second else { return Ok(Vec::new()) };
        let mut copied = Vec::new();
        for manifest in self.lacking(second).await? {
            let folder = Self::folder(&manifest.id);
            progress.begin(format!("copy {} to {}", manifest.id, second.name()), manifest.bytes());
            for file in &manifest.files {
                crate::copy::file(&self.place, second, &folder, file, progress).await?;
            }
            // A prune may have taken them for what was never whole.
            let there = second.files(&folder).await?;
            let has = |file: &File| there.iter().any(|one| one.name == file.path && one.bytes == file.bytes);
            if let Some(gone) = manifest.files.iter().find(|file| !has(file)) {
                return Err(Error::new(
                    Trouble::Missing,
                    format!(
                        "{}/{folder}/{}: the copy has gone again; the next run makes it anew",
                        second.name(),
                        gone.path
                    ),
                ));
            }
            second.put(&format!("{folder}/{}", manifest::NAME), manifest.to_bytes()?).await?;
            copied.push(manifest.id);
        }
        self.copy_proofs(second).await?;
        for (what, folder) in [("log of writes", archive::FOLDER), ("journal", journal::FOLDER)] {
            progress.begin(format!("copy the {what} to {}", second.name()), 0);
            crate::copy::log(&self.place, second, folder, progress).await?;
        }
        Ok(copied)
    }

    /// What a drill has proven is proven in the second place too: both keep it for longer.
    async fn copy_proofs(&self, second: &Place) -> Result<()> {
        let theirs = list(second).await?;
        for found in list(&self.place).await?.iter().filter(|found| found.proof.is_some()) {
            let lacks =
                |their: &&Found| their.id == found.id && their.good().is_some() && their.proof.is_none();
            let path = format!("{}/{PROOF}", Self::folder(&found.id));
            if theirs.iter().any(|their| lacks(&their))
                && let Some(proof) = self.place.find(&path).await?
            {
                second.put(&path, proof.into()).await?;
            }
        }
        Ok(())
    }
}

/// As the rules see them.
fn items(found: &[Found]) -> Vec<Item> {
    let item = |found: &Found| Item {
        id: found.id.clone(),
        kind: found.kind.to_string(),
        count: found.kind.count(),
        taken_at: found.begun_at(),
        // What a later version wrote is whole as far as we can tell, and not ours to remove.
        good: match &found.manifest {
            Ok(manifest) => manifest.is_some(),
            Err(error) => error.trouble == Trouble::Newer,
        },
        proven: found.proof.is_some(),
        safety: found.good().is_some_and(|manifest| manifest.reason.is_some()),
        needs: found.good().map(|manifest| manifest.needs.clone()).unwrap_or_default(),
    };
    found.iter().map(item).collect()
}

async fn read_manifest(place: &Place, id: &str) -> Result<Option<Manifest>> {
    let path = format!("{}/{}", Vault::folder(id), manifest::NAME);
    place.find(&path).await?.map(|bytes| Manifest::from_bytes(id, &bytes)).transpose()
}

/// Every backup of a place, the oldest first.
pub async fn list(place: &Place) -> Result<Vec<Found>> {
    list_of(place, |_| true).await
}

/// The same of some kinds: nothing is read of the others.
async fn list_of(place: &Place, wanted: impl Fn(Kind) -> bool) -> Result<Vec<Found>> {
    let known = place.folders(FOLDER).await?.into_iter().filter_map(|id| {
        let (taken_at, kind) = manifest::read_id(&id)?;
        wanted(kind).then_some((id, taken_at, kind))
    });
    let look = |(id, taken_at, kind): (String, DateTime<Utc>, Kind)| async move {
        let manifest = match read_manifest(place, &id).await {
            // A place that does not answer is no damaged backup.
            Err(error) if error.may_pass() => return Err(error),
            other => other,
        };
        let proof = place.find(&format!("{}/{PROOF}", Vault::folder(&id))).await?;
        let proof = proof.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Found { id, kind, taken_at, manifest, proof })
    };
    let mut found: Vec<Found> =
        futures_util::stream::iter(known.map(look)).buffered(AT_ONCE).try_collect().await?;
    // Ids tell seconds; of two backups of one second only the manifests know which came first.
    found.sort_by(|a, b| (a.begun_at(), &a.id).cmp(&(b.begun_at(), &b.id)));
    Ok(found)
}
