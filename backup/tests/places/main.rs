//! Files through places that break: an object store that fails at any request, in memory and in a folder; bytes that
//! change, files that are cut off or missing, wrong keys, a full disk.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

mod buckets;
mod journal;
mod kept;
mod moving;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, UploadPart,
};
use proptest::prelude::*;
use taskflow_backup::draft::{Draft, Facts};
use taskflow_backup::keys::{Identities, Recipients};
use taskflow_backup::place::Place;
use taskflow_backup::read::FileReader;
use taskflow_backup::settings::Compression;
use taskflow_backup::{Error, Kind, Manifest, Progress, Result, Settings, Trouble, Vault, vault};

/// A store that fails when it was asked so often.
#[derive(Debug)]
struct Breaking {
    inner: Arc<dyn ObjectStore>,
    left: Arc<AtomicI64>,
}

impl Breaking {
    fn ask(&self) -> object_store::Result<()> {
        ask(&self.left)
    }
}

fn ask(left: &AtomicI64) -> object_store::Result<()> {
    if left.fetch_sub(1, Ordering::SeqCst) > 0 {
        return Ok(());
    }
    Err(object_store::Error::Generic { store: "test", source: "the network is gone".into() })
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("breaking")
    }
}

#[derive(Debug)]
struct BreakingUpload {
    inner: Box<dyn MultipartUpload>,
    left: Arc<AtomicI64>,
}

#[async_trait]
impl MultipartUpload for BreakingUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        match ask(&self.left) {
            Ok(()) => self.inner.put_part(data),
            Err(error) => Box::pin(async { Err(error) }),
        }
    }

    async fn complete(&mut self) -> object_store::Result<PutResult> {
        ask(&self.left)?;
        self.inner.complete().await
    }

    async fn abort(&mut self) -> object_store::Result<()> {
        ask(&self.left)?;
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for Breaking {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.ask()?;
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.ask()?;
        let inner = self.inner.put_multipart_opts(path, options).await?;
        Ok(Box::new(BreakingUpload { inner, left: Arc::clone(&self.left) }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.ask()?;
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.ask()?;
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let left = Arc::clone(&self.left);
        let asked = paths.map(move |path| ask(&left).and(path)).boxed();
        self.inner.delete_stream(asked)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        match self.ask() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures_util::stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.ask()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.ask()?;
        self.inner.copy_opts(from, to, options).await
    }
}

/// Backups in a store, with the count of requests that it still answers.
fn over(inner: Arc<dyn ObjectStore>, recipients: Recipients) -> (Vault, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let store = Arc::new(Breaking { inner, left: Arc::clone(&left) });
    let place = Place::with_store("test", store);
    (Vault { settings: Settings::default(), place, second: None, recipients, reason: None }, left)
}

/// An age key: its file, and who it belongs to.
fn key(folder: &tempfile::TempDir, name: &str) -> (Identities, Recipients) {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    let file = folder.path().join(name);
    std::fs::write(&file, format!("# a key\n{}\n", identity.to_string().expose_secret())).unwrap();
    let settings = Settings { recipients: vec![identity.to_public().to_string()], ..Settings::default() };
    (Identities::from_file(&file).unwrap(), Recipients::read(&settings).unwrap())
}

/// Bytes that do not compress.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

const SMALL: &[u8] = b"a small file, in one request";

/// A backup of two files; the large one takes several parts.
async fn make(vault: &Vault, large: &[u8], compression: Compression) -> Result<Manifest> {
    let mut draft = Draft::begin(vault, Kind::MongoDb, &Progress::default());
    let made = async {
        draft.bytes("t/small", compression, SMALL.to_vec()).await?;
        draft.stream("t/large", compression, &mut &*large).await
    };
    match made.await {
        Ok(_) => draft.finish(Facts::default()).await,
        Err(error) => {
            draft.discard().await;
            Err(error)
        }
    }
}

async fn content(vault: &Vault, manifest: &Manifest, index: usize, keys: &Identities) -> Result<Vec<u8>> {
    FileReader::begin(&vault.place, &Vault::folder(&manifest.id), &manifest.files[index], keys).whole().await
}

#[tokio::test]
async fn what_goes_in_comes_out_however_it_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, recipients) = key(&folder, "key");
    let large = noise(17 << 20, 7);
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for recipients in [Recipients::default(), recipients.clone()] {
            let (vault, _) = over(Arc::new(InMemory::new()), recipients);
            let manifest = make(&vault, &large, compression).await.unwrap();
            assert_eq!(content(&vault, &manifest, 0, &keys).await.unwrap(), SMALL);
            assert!(content(&vault, &manifest, 1, &keys).await.unwrap() == large, "{compression:?}");
            vault.verify(&manifest, None, &Progress::default()).await.unwrap();
            vault.verify(&manifest, Some(&keys), &Progress::default()).await.unwrap();
            assert_eq!(vault.read(&manifest.id).await.unwrap().files, manifest.files);
        }
    }
}

#[tokio::test]
async fn a_store_that_fails_at_any_request_leaves_a_whole_backup_or_none() {
    let large = noise(9 << 20, 3);
    let folder = tempfile::tempdir().unwrap();
    let local =
        || -> Arc<dyn ObjectStore> { Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap()) };
    for inner in [Arc::new(InMemory::new()) as Arc<dyn ObjectStore>, local()] {
        let mut whole = 0;
        for requests in 0..200 {
            let (vault, left) = over(Arc::clone(&inner), Recipients::default());
            left.store(requests, Ordering::SeqCst);
            let made = make(&vault, &large, Compression::Zstd).await;
            left.store(i64::MAX, Ordering::SeqCst);
            let found = vault.list().await.unwrap();
            let good = found.iter().filter(|found| found.good().is_some()).count();
            match made {
                Ok(manifest) => {
                    whole += 1;
                    vault
                        .verify(&manifest, Some(&Identities::default()), &Progress::default())
                        .await
                        .unwrap();
                }
                Err(error) => {
                    assert_eq!(error.trouble, Trouble::Away, "{error}");
                    assert!(error.text.contains("the network is gone"), "{error}");
                }
            }
            assert_eq!(good, whole, "a broken backup is taken for whole");
            if whole == 2 {
                break;
            }
        }
        assert_eq!(whole, 2, "with enough requests it must succeed");
    }
}

#[tokio::test]
async fn reading_from_a_store_that_fails_is_never_taken_for_the_end() {
    let large = noise(9 << 20, 5);
    let (vault, left) = over(Arc::new(InMemory::new()), Recipients::default());
    let manifest = make(&vault, &large, Compression::Zstd).await.unwrap();
    left.store(0, Ordering::SeqCst);
    let error = content(&vault, &manifest, 1, &Identities::default()).await.unwrap_err();
    assert_eq!(error.trouble, Trouble::Away);
    assert_eq!(vault.list().await.unwrap_err().trouble, Trouble::Away);
    assert_eq!(vault.prune(&Progress::default()).await.unwrap_err().trouble, Trouble::Away);
}

#[tokio::test]
async fn a_prune_that_is_broken_off_at_any_request_leaves_nothing_half_that_looks_whole() {
    for requests in 0..60 {
        let (mut vault, left) = over(Arc::new(InMemory::new()), Recipients::default());
        vault.settings.keep = taskflow_core::backup::keeping::Keep {
            daily: 1,
            weekly: 0,
            monthly: 0,
            yearly: 0,
            bases: 0,
            incremental_days: 0,
            safety_days: 0,
        };
        for _ in 0..3 {
            make(&vault, SMALL, Compression::Zstd).await.unwrap();
        }
        left.store(requests, Ordering::SeqCst);
        let pruned = vault.prune(&Progress::default()).await;
        left.store(i64::MAX, Ordering::SeqCst);
        let found = vault.list().await.unwrap();
        let good: Vec<&Manifest> = found.iter().filter_map(vault::Found::good).collect();
        assert!(!good.is_empty(), "the last good one is gone");
        for manifest in &good {
            vault.verify(manifest, Some(&Identities::default()), &Progress::default()).await.unwrap();
        }
        if let Ok(removed) = pruned {
            assert_eq!((good.len(), removed.len()), (1, 2));
            return;
        }
    }
    panic!("with enough requests it must succeed");
}

/// An id tells the second only.
#[tokio::test]
async fn backups_of_one_second_are_listed_as_they_were_made() {
    let (vault, _) = over(Arc::new(InMemory::new()), Recipients::default());
    let mut made = Vec::new();
    for _ in 0..12 {
        made.push(make(&vault, SMALL, Compression::None).await.unwrap().id);
    }
    let listed: Vec<String> = vault.list().await.unwrap().into_iter().map(|found| found.id).collect();
    assert_eq!(listed, made);
    assert_eq!(vault.newest(Kind::MongoDb).await.unwrap().map(|newest| newest.id), made.pop());
}

#[tokio::test]
async fn a_copy_that_is_broken_off_is_made_whole_by_the_next_one() {
    let large = noise(9 << 20, 9);
    let (mut vault, _) = over(Arc::new(InMemory::new()), Recipients::default());
    let (second, left) = over(Arc::new(InMemory::new()), Recipients::default());
    vault.second = Some(second.place.clone());
    let manifest = make(&vault, &large, Compression::Zstd).await.unwrap();
    let lacks = vault.not_copied(manifest.ended_at + chrono::TimeDelta::seconds(1)).await.unwrap();
    assert_eq!(lacks, [(manifest.id.clone(), "test".to_owned())]);
    assert!(vault.not_copied(manifest.ended_at).await.unwrap().is_empty(), "it may be on its way");
    for requests in 0..60 {
        left.store(requests, Ordering::SeqCst);
        let copied = vault.copy(&Progress::default()).await;
        left.store(i64::MAX, Ordering::SeqCst);
        let good = second.list().await.unwrap().iter().filter(|found| found.good().is_some()).count();
        // The log of writes comes behind it.
        assert!(good == 1 || copied.is_err(), "it is said to be copied and is not");
        if good == 1 {
            second.verify(&manifest, Some(&Identities::default()), &Progress::default()).await.unwrap();
        }
        if copied.is_ok() {
            assert!(vault.copy(&Progress::default()).await.unwrap().is_empty(), "copied twice");
            assert!(vault.not_copied(chrono::DateTime::<chrono::Utc>::MAX_UTC).await.unwrap().is_empty());
            return;
        }
    }
    panic!("with enough requests it must succeed");
}

#[tokio::test]
async fn damage_is_named_with_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let (keys, recipients) = key(&folder, "key");
    let (others, _) = key(&folder, "other");
    for (recipients, right) in [(Recipients::default(), Identities::default()), (recipients, keys)] {
        let place = folder.path().join(format!("place{}", recipients.names().len()));
        let settings = Settings { destination: place.display().to_string(), ..Settings::default() };
        let mut vault = Vault::open(&settings).unwrap();
        vault.recipients = recipients;
        let manifest = make(&vault, &noise(300_000, 11), Compression::Zstd).await.unwrap();
        let file = &manifest.files[1];
        let path = place.join(Vault::folder(&manifest.id)).join(&file.path);
        let bytes = std::fs::read(&path).unwrap();
        let check = async |trouble: Trouble, words: &[&str]| {
            for keys in [None, Some(&right)] {
                let error = vault.verify(&manifest, keys, &Progress::default()).await.unwrap_err();
                assert_eq!(error.trouble, trouble, "{error}");
                assert!(
                    error.text.contains(&file.path) && words.iter().all(|word| error.text.contains(word)),
                    "{error}"
                );
            }
            assert!(content(&vault, &manifest, 1, &right).await.is_err());
        };
        // One bit, anywhere.
        for place in [0, 30, 150, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 4;
            std::fs::write(&path, flipped).unwrap();
            check(Trouble::Damaged, &["SHA-256"]).await;
        }
        for length in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            check(Trouble::Damaged, &["cut off"]).await;
        }
        std::fs::remove_file(&path).unwrap();
        check(Trouble::Missing, &["is not there"]).await;
        std::fs::write(&path, &bytes).unwrap();
        vault.verify(&manifest, Some(&right), &Progress::default()).await.unwrap();
        if !vault.recipients.is_empty() {
            for (wrong, word) in
                [(&others, "none of the identities"), (&Identities::default(), "backup.identity_path")]
            {
                let error = vault.verify(&manifest, Some(wrong), &Progress::default()).await.unwrap_err();
                assert_eq!(error.trouble, Trouble::Key, "{error}");
                assert!(error.text.contains(&manifest.files[0].path) && error.text.contains(word), "{error}");
            }
        }
        // A manifest of a later version, one that was changed, and none.
        let path = place.join(Vault::folder(&manifest.id)).join("manifest.json");
        let text = std::fs::read_to_string(&path).unwrap();
        for (other, trouble) in [
            (text.replace("\"format\": 1", "\"format\": 7"), Trouble::Newer),
            (text.replace("\"mongodb\"", "\"redis\""), Trouble::Damaged),
            (text[..text.len() / 2].to_owned(), Trouble::Damaged),
        ] {
            std::fs::write(&path, other).unwrap();
            let error = vault.read(&manifest.id).await.unwrap_err();
            assert_eq!(error.trouble, trouble, "{error}");
            assert!(error.text.contains("manifest.json"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error: Error = vault.read(&manifest.id).await.unwrap_err();
        assert_eq!(error.trouble, Trouble::Missing, "{error}");
        assert_eq!(vault.list().await.unwrap()[0].state(), "not whole");
    }
}

/// A disk that is full in the middle of a file; takes root.
#[tokio::test]
async fn a_full_disk_is_called_that_and_leaves_nothing() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |program: &str, args: &[&str]| {
        assert!(
            std::process::Command::new(program).args(args).arg(folder.path()).status().unwrap().success()
        );
    };
    run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs"]);
    let settings = Settings { destination: folder.path().display().to_string(), ..Settings::default() };
    let vault = Vault::open(&settings).unwrap();
    let small = make(&vault, &noise(1 << 20, 1), Compression::Zstd).await;
    let full = make(&vault, &noise(64 << 20, 2), Compression::Zstd).await;
    let found = vault.list().await;
    let left: usize = walk(folder.path());
    run("umount", &["--lazy"]);
    assert_eq!(full.unwrap_err().trouble, Trouble::Full);
    assert_eq!(found.unwrap().len(), 1, "what failed shows");
    small.unwrap();
    assert!(left < 3 << 20, "{left} bytes are left of what failed");
}

/// Bytes of all files below a folder.
fn walk(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let size = |entry: std::fs::DirEntry| {
        if entry.path().is_dir() {
            walk(&entry.path())
        } else {
            entry.metadata().map_or(0, |data| data.len() as usize)
        }
    };
    entries.map(size).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_bytes_in_any_pieces_come_out_as_they_went_in(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3_000), 0..30),
        compression in prop::sample::select(vec![Compression::None, Compression::Gzip, Compression::Zstd]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (vault, _) = over(Arc::new(InMemory::new()), Recipients::default());
            let mut draft = Draft::begin(&vault, Kind::Redis, &Progress::default());
            let mut writer = draft.file("any", compression).unwrap();
            for piece in &pieces {
                writer.write(Bytes::from(piece.clone())).await.unwrap();
            }
            draft.add(writer.finish().await.unwrap());
            let manifest = draft.finish(Facts::default()).await.unwrap();
            assert_eq!(content(&vault, &manifest, 0, &Identities::default()).await.unwrap(), pieces.concat());
        });
    }
}
