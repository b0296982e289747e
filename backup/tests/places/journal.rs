//! The journal: what killed workers had taken, and the second place's copy.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, TimeDelta};
use object_store::memory::InMemory;
use taskflow_backup::keys::{Identities, Recipients};
use taskflow_backup::{Progress, Vault, journal};
use taskflow_core::backup::journal::Record;
use taskflow_stores::spool::Spool;
use tokio_util::sync::CancellationToken;

use super::over;

fn record(nth: i64) -> Record<'static> {
    Record {
        at: DateTime::from_timestamp(1_790_000_000 + nth, 0).unwrap(),
        accepted_at: None,
        low: nth == 1,
        body: format!("command {nth}").into_bytes().into(),
    }
}

fn bytes(nths: std::ops::RangeInclusive<i64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    nths.for_each(|nth| record(nth).encode(&mut bytes));
    bytes
}

/// With what waits on this machine in a folder of the test's own.
fn working_in(vault: &mut Vault, folder: &tempfile::TempDir) {
    folder.path().clone_into(&mut vault.settings.work_dir);
    vault.settings.journal_every_ms = 100;
}

/// A worker that takes nothing any more and ends when nothing waits on its machine.
async fn carry_on(vault: &Vault, spool: Spool) {
    let left = CancellationToken::new();
    let end = async {
        while waiting(vault) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        left.cancel();
    };
    tokio::join!(journal::write(vault, Arc::new(spool), &left), end);
}

/// Parts that are not in the journal yet.
fn waiting(vault: &Vault) -> usize {
    let owners = std::fs::read_dir(journal::spool_dir(&vault.settings)).unwrap().flatten();
    let files = owners.filter_map(|owner| std::fs::read_dir(owner.path()).ok()).flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|ending| ending == "part")).count()
}

async fn journal_of(vault: &Vault) -> Vec<Record<'static>> {
    let keys = Identities::default();
    let mut reader = journal::Reader::begin(vault, &keys, record(0).at).await.unwrap();
    let mut found = Vec::new();
    while let Some(record) = reader.next(&Progress::default()).await.unwrap() {
        found.push(record);
    }
    found
}

#[tokio::test]
async fn what_killed_workers_had_taken_is_in_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let (mut vault, left) = over(Arc::new(InMemory::new()), Recipients::default());
    working_in(&mut vault, &folder);
    let killed = journal::spool(&vault.settings).unwrap();
    killed.append(&bytes(1..=3)).unwrap();
    killed.close().unwrap();
    // In the middle of a record, as it would be if the machine stopped there.
    killed.append(&bytes(4..=5)[..bytes(4..=4).len() + 9]).unwrap();
    drop(killed);
    assert!(journal::lacks_what_ended_workers_left(&vault.settings).unwrap());
    // The place is away: nothing is lost by trying.
    for requests in [0, 1, 2, 3] {
        let next = journal::spool(&vault.settings).unwrap();
        next.append(&bytes(10 + requests..=10 + requests)).unwrap();
        left.store(requests, Ordering::SeqCst);
        // Killed too, after a try.
        let _ = tokio::time::timeout(Duration::from_millis(300), carry_on(&vault, next)).await;
        left.store(i64::MAX, Ordering::SeqCst);
    }
    carry_on(&vault, journal::spool(&vault.settings).unwrap()).await;
    assert!(!journal::lacks_what_ended_workers_left(&vault.settings).unwrap());
    let expected: Vec<_> = (1..=4).chain(10..=13).map(record).collect();
    assert_eq!(journal_of(&vault).await, expected);
    assert_eq!(
        std::fs::read_dir(journal::spool_dir(&vault.settings)).unwrap().count(),
        0,
        "something is left"
    );
}

#[tokio::test]
async fn the_second_place_has_the_journal_though_the_first_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (mut vault, _) = over(Arc::new(InMemory::new()), Recipients::default());
    let (second, _) = over(Arc::new(InMemory::new()), Recipients::default());
    working_in(&mut vault, &folder);
    vault.second = Some(second.place.clone());
    let keep = async |vault: &Vault, nth: i64| {
        let spool = journal::spool(&vault.settings).unwrap();
        spool.append(&bytes(nth..=nth)).unwrap();
        carry_on(vault, spool).await;
        vault.copy(&Progress::default()).await.unwrap();
    };
    keep(&vault, 1).await;
    // A new, empty disk in the first one's stead: what was copied from the old one stays.
    vault.place = over(Arc::new(InMemory::new()), Recipients::default()).0.place;
    keep(&vault, 2).await;
    assert_eq!(journal_of(&second).await, [record(1), record(2)]);

    let kept = TimeDelta::hours(vault.settings.journal_hours.into());
    assert_eq!(journal::prune(&vault, record(1).at + kept).await.unwrap(), 0);
    assert_eq!(journal::prune(&vault, record(2).at + kept).await.unwrap(), 1);
    // One in each place.
    assert_eq!(journal::prune(&vault, record(3).at + kept).await.unwrap(), 2);
}

/// The one file of the journal.
fn file_of(folder: &std::path::Path) -> std::path::PathBuf {
    let owner = std::fs::read_dir(folder.join(journal::FOLDER)).unwrap().next().unwrap().unwrap().path();
    std::fs::read_dir(owner).unwrap().next().unwrap().unwrap().path()
}

#[tokio::test]
async fn a_file_that_is_not_as_it_was_written_is_named_before_a_command_of_it_is_read() {
    let (place, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = taskflow_backup::Settings {
        destination: place.path().display().to_string(),
        work_dir: work.path().to_owned(),
        journal_every_ms: 100,
        ..Default::default()
    };
    let vault = Vault::open(&settings).unwrap();
    let spool = journal::spool(&settings).unwrap();
    spool.append(&bytes(1..=40)).unwrap();
    carry_on(&vault, spool).await;
    let keys = Identities::default();
    let verify = async || {
        journal::verify(&vault, &keys, record(0).at, &Progress::default()).await.map_err(|error| error.text)
    };
    let path = file_of(place.path());
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    let good = std::fs::read(&path).unwrap();
    verify().await.unwrap();
    assert_eq!(journal_of(&vault).await.len(), 40);
    // Any bit: it is named, or it is one that says nothing about the content.
    for place in 0..good.len() {
        let mut flipped = good.clone();
        flipped[place] ^= 1;
        std::fs::write(&path, flipped).unwrap();
        match verify().await {
            Err(error) => assert!(error.contains(&name), "byte {place}: {error}"),
            Ok(()) => assert_eq!(journal_of(&vault).await.len(), 40, "byte {place}"),
        }
    }
    for length in [0, 1, good.len() / 2, good.len() - 70] {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = verify().await.unwrap_err();
        assert!(error.contains(&name), "{length} bytes: {error}");
    }
    // Other content that the compression has no doubts about.
    let frame = &good[good.len() - 64..];
    let other = zstd::encode_all(bytes(1..=39).as_slice(), 3).unwrap();
    std::fs::write(&path, [&other, frame].concat()).unwrap();
    let error = verify().await.unwrap_err();
    assert!(error.contains(&name) && error.contains("SHA-256"), "{error}");
    // As an earlier version wrote it: without a checksum.
    std::fs::write(&path, &other).unwrap();
    verify().await.unwrap();
    assert_eq!(journal_of(&vault).await.len(), 39);
    // Whoever reads zstd by hand gets the content and nothing else.
    std::fs::write(&path, &good).unwrap();
    assert_eq!(zstd::decode_all(good.as_slice()).unwrap(), bytes(1..=40));
}
