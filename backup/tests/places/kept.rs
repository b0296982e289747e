//! A backup that was made before something replaced live data.

use std::sync::Arc;

use object_store::memory::InMemory;
use taskflow_backup::Progress;
use taskflow_backup::keys::Recipients;
use taskflow_backup::settings::Compression;
use taskflow_core::backup::keeping::Keep;

use super::{SMALL, make, over};

#[tokio::test]
async fn what_was_saved_before_live_data_was_replaced_is_held_for_its_days() {
    let (mut vault, _) = over(Arc::new(InMemory::new()), Recipients::default());
    let keep =
        Keep { daily: 1, weekly: 0, monthly: 0, yearly: 0, bases: 0, incremental_days: 0, safety_days: 30 };
    let saving = vault.because("before another took the place of what was live");
    let saved = make(&saving, SMALL, Compression::Zstd).await.unwrap();
    let mut later = Vec::new();
    for _ in 0..2 {
        later.push(make(&vault, SMALL, Compression::Zstd).await.unwrap().id);
    }
    // Ids of one second are in no order: which of the later ones is the newest is not the point.
    vault.settings.keep = keep;
    let removed = vault.prune(&Progress::default()).await.unwrap();
    assert!(!removed.contains(&saved.id) && removed.len() <= 2, "{removed:?}");
    let read = vault.read(&saved.id).await.unwrap();
    assert_eq!(read.reason.as_deref(), Some("before another took the place of what was live"));
    make(&vault, SMALL, Compression::Zstd).await.unwrap();
    vault.prune(&Progress::default()).await.unwrap();
    assert!(vault.read(&saved.id).await.is_ok(), "it went though it is young");
    // In a month it goes like any other.
    let verdicts = vault.plan(saved.begun_at + chrono::TimeDelta::days(31)).await.unwrap();
    assert!(verdicts.values().filter(|verdict| verdict.keeps()).count() == 1, "{verdicts:?}");
}
