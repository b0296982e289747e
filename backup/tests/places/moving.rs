//! The log of writes goes on while it is copied to the second place.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use taskflow_backup::keys::Recipients;
use taskflow_backup::place::Place;
use taskflow_backup::{Progress, Settings, Vault};

use super::over;

const POSITION: &str = "wal/7/position.json";
const FIRST: &str = "wal/7/000000010000000000000001.zst";
const SECOND: &str = "wal/7/000000010000000000000002.zst";
const SECOND_BEGUN: &str = "wal/7/000000010000000000000002.partial.zst";
const THIRD_BEGUN: &str = "wal/7/000000010000000000000003.partial.zst";

/// A store in which the log goes on as soon as its first piece is read: the next one becomes whole, another begins.
#[derive(Debug)]
struct Moving {
    inner: InMemory,
    moved: AtomicBool,
}

impl Moving {
    async fn go_on(&self) -> object_store::Result<()> {
        if self.moved.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        for (path, text) in [(SECOND, "two"), (THIRD_BEGUN, "thr"), (POSITION, "in the third")] {
            self.inner.put(&Path::from(path), PutPayload::from(text)).await?;
        }
        self.inner.delete(&Path::from(SECOND_BEGUN)).await
    }
}

impl fmt::Display for Moving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("moving")
    }
}

#[async_trait]
impl ObjectStore for Moving {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        if path.as_ref() == FIRST {
            self.go_on().await?;
        }
        self.inner.get_opts(path, options).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.inner.get_ranges(path, ranges).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_copy_of_the_log_claims_no_more_than_it_has() {
    let inner = InMemory::new();
    for (path, text) in [(FIRST, "one"), (SECOND_BEGUN, "tw"), (POSITION, "in the second")] {
        inner.put(&Path::from(path), PutPayload::from(text)).await.unwrap();
    }
    let place = Place::with_store("moving", Arc::new(Moving { inner, moved: AtomicBool::new(false) }));
    let (second, _) = over(Arc::new(InMemory::new()), Recipients::default());
    let vault = Vault {
        settings: Settings::default(),
        place,
        second: Some(second.place.clone()),
        recipients: Recipients::default(),
        reason: None,
    };
    let there = async |path: &str| {
        second.place.find(path).await.unwrap().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    vault.copy(&Progress::default()).await.unwrap();
    // It has what it says: the piece that has become whole meanwhile came under its new name.
    assert_eq!(there(POSITION).await.as_deref(), Some("in the second"));
    assert_eq!(there(FIRST).await.as_deref(), Some("one"));
    assert_eq!(there(SECOND).await.as_deref(), Some("two"));
    assert_eq!(there(THIRD_BEGUN).await, None);
    // A piece that was replaced by one of the same size, while it was copied, is copied again.
    vault.copy(&Progress::default()).await.unwrap();
    vault.place.put(THIRD_BEGUN, b"THR".to_vec()).await.unwrap();
    second.place.put(THIRD_BEGUN, b"thr".to_vec()).await.unwrap();
    vault.copy(&Progress::default()).await.unwrap();
    assert_eq!(there(POSITION).await.as_deref(), Some("in the third"));
    assert_eq!(there(SECOND).await.as_deref(), Some("two"));
    assert_eq!(there(SECOND_BEGUN).await, None);
    assert_eq!(there(THIRD_BEGUN).await.as_deref(), Some("THR"));
}
