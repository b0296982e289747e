//! A place where backups lie: a folder, or a bucket of an object store. What is written shows under its name only when
//! it is whole.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload};
use url::Url;

use crate::error::{Error, Result, Trouble};
use crate::settings::Settings;

/// What is read as a whole is no larger: manifests and notes.
const SMALL_MAX: u64 = 64 << 20;

/// A file that lies in a place.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Below the folder that was looked at.
    pub name: String,
    pub bytes: u64,
    /// When it was written, by the place's clock.
    pub at: DateTime<Utc>,
}

/// Where backups lie.
#[derive(Clone)]
pub struct Place {
    store: Arc<dyn ObjectStore>,
    root: Path,
    /// As the settings have it.
    name: String,
    folder: Option<PathBuf>,
}

impl Place {
    /// Opens `backup.destination`.
    pub fn first(settings: &Settings) -> Result<Self> {
        if !settings.is_on() {
            return Err(Error::refused(
                "backup.destination is not set, so there are no backups; set it to a folder or a bucket (docs/recovery.md)",
            ));
        }
        Self::open(&settings.destination, &settings.options)
    }

    /// Opens `backup.second`, if there is one.
    pub fn second(settings: &Settings) -> Result<Option<Self>> {
        if settings.second.is_empty() {
            return Ok(None);
        }
        Self::open(&settings.second, &settings.second_options).map(Some)
    }

    /// Opens a folder or a bucket.
    pub fn open(name: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        match Url::parse(name) {
            Ok(url) if url.scheme() == "file" => {
                let folder = url
                    .to_file_path()
                    .map_err(|()| Error::refused(format!("{name}: expected file:///an/absolute/path")))?;
                Self::folder(&folder)
            }
            Ok(url) => Self::bucket(&url, options),
            Err(_) => Self::folder(FilePath::new(name)),
        }
    }

    fn folder(folder: &FilePath) -> Result<Self> {
        if !folder.is_dir() {
            // Only the last step of the path: where a disk is not mounted, the path is longer, and the backups would
            // fill the disk below.
            let mut make = std::fs::DirBuilder::new();
            make.mode(0o700).create(folder).map_err(|error| {
                Error::io(format!("make the folder {} (is its disk mounted?)", folder.display()), &error)
            })?;
        }
        let name = folder.display().to_string();
        let store = LocalFileSystem::new_with_prefix(folder).map_err(|error| trouble(&name, "", &error))?;
        let store = store.with_fsync(true).with_automatic_cleanup(true);
        let folder = folder.canonicalize().map_err(|error| Error::io(&name, &error))?;
        Ok(Self { store: Arc::new(store), root: Path::default(), name, folder: Some(folder) })
    }

    fn bucket(url: &Url, options: &BTreeMap<String, String>) -> Result<Self> {
        let name = url.to_string();
        if !["s3", "s3a", "gs", "az", "azure", "abfs", "abfss"].contains(&url.scheme()) {
            return Err(Error::refused(format!(
                "{name}: {}:// is none of s3://, gs://, az://; a folder is named without any",
                url.scheme()
            )));
        }
        if let Some(unknown) = options.keys().find(|option| !is_option(url.scheme(), option)) {
            return Err(Error::refused(format!(
                "{name}: {unknown:?} is no option of this store's client (backup.options or backup.second_options); \
                 docs/recovery.md says which there are"
            )));
        }
        // Clients of object stores take the process's provider of TLS; whoever was first has chosen the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (store, root) = object_store::parse_url_opts(url, options.clone())
            .map_err(|error| trouble(&name, "", &error).during("open the place of the backups"))?;
        Ok(Self { store: store.into(), root, name, folder: None })
    }

    /// Any object store, under any name.
    pub fn with_store(name: &str, store: Arc<dyn ObjectStore>) -> Self {
        Self { store, root: Path::default(), name: name.to_owned(), folder: None }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder, where it is one.
    pub fn local(&self) -> Option<&FilePath> {
        self.folder.as_deref()
    }

    pub(crate) fn path(&self, path: &str) -> Result<Path> {
        let below = Path::parse(path)
            .map_err(|error| Error::damaged(format!("{path:?} is no name of a file in a backup: {error}")))?;
        Ok(self.root.parts().chain(below.parts()).collect())
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// What an error of the store means.
    pub(crate) fn failed(&self, path: &str) -> impl Fn(object_store::Error) -> Error + use<> {
        let (name, path) = (self.name.clone(), path.to_owned());
        move |error| trouble(&name, &path, &error)
    }

    /// Writes a small file; one that is there is replaced.
    pub async fn put(&self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let payload = PutPayload::from(bytes);
        self.store.put(&self.path(path)?, payload).await.map_err(self.failed(path))?;
        Ok(())
    }

    /// Reads a small file.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        let found = self.store.get(&self.path(path)?).await.map_err(self.failed(path))?;
        if found.meta.size > SMALL_MAX {
            return Err(Error::damaged(format!(
                "{}/{path} has {} bytes; that is no manifest",
                self.name, found.meta.size
            )));
        }
        found.bytes().await.map_err(self.failed(path))
    }

    /// The same, or nothing where there is none.
    pub async fn find(&self, path: &str) -> Result<Option<Bytes>> {
        match self.get(path).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.trouble == Trouble::Missing => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes of a file.
    pub async fn size(&self, path: &str) -> Result<u64> {
        Ok(self.store.head(&self.path(path)?).await.map_err(self.failed(path))?.size)
    }

    /// Names of the folders below a folder.
    pub async fn folders(&self, path: &str) -> Result<Vec<String>> {
        let found =
            self.store.list_with_delimiter(Some(&self.path(path)?)).await.map_err(self.failed(path))?;
        let names = found.common_prefixes.iter().filter_map(|prefix| Some(prefix.filename()?.to_owned()));
        let mut names: Vec<String> = names.collect();
        // What was broken off leaves a folder without a file that shows.
        if let Some(folder) = &self.folder {
            let entries = std::fs::read_dir(folder.join(path)).into_iter().flatten().flatten();
            names.extend(
                entries
                    .filter(|entry| entry.path().is_dir())
                    .filter_map(|entry| entry.file_name().into_string().ok()),
            );
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Every file below a folder.
    pub async fn files(&self, path: &str) -> Result<Vec<Listed>> {
        let prefix = self.path(path)?;
        let found: Vec<ObjectMeta> =
            self.store.list(Some(&prefix)).try_collect().await.map_err(self.failed(path))?;
        let listed = |meta: &ObjectMeta| {
            let below: Vec<String> =
                meta.location.prefix_match(&prefix)?.map(|part| part.as_ref().to_owned()).collect();
            Some(Listed { name: below.join("/"), bytes: meta.size, at: meta.last_modified })
        };
        Ok(found.iter().filter_map(listed).collect())
    }

    /// Removes a file; one that is gone is no error.
    pub async fn remove(&self, path: &str) -> Result<()> {
        match self.store.delete(&self.path(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed(path)(error)),
        }
    }

    /// Removes a folder: `first` before everything else, so that what is half removed is never taken for whole.
    pub async fn remove_folder(&self, path: &str, first: &str) -> Result<()> {
        self.remove(&format!("{path}/{first}")).await?;
        let prefix = self.path(path)?;
        let found: Vec<ObjectMeta> =
            self.store.list(Some(&prefix)).try_collect().await.map_err(self.failed(path))?;
        let locations = futures_util::stream::iter(found.into_iter().map(|meta| Ok(meta.location))).boxed();
        let mut removed = self.store.delete_stream(locations);
        while let Some(one) = removed.next().await {
            match one {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(self.failed(path)(error)),
            }
        }
        // Parts of a file that was broken off show nowhere else.
        if let Some(folder) = &self.folder {
            let folder = folder.join(path);
            if folder.is_dir() {
                tokio::fs::remove_dir_all(&folder)
                    .await
                    .map_err(|error| Error::io(format!("remove {}", folder.display()), &error))?;
            }
        }
        Ok(())
    }
}

/// Whether the client of a cloud's object store knows an option: it passes over others without a word.
fn is_option(scheme: &str, option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    match scheme {
        "s3" | "s3a" => option.parse::<AmazonS3ConfigKey>().is_ok(),
        "gs" => option.parse::<GoogleConfigKey>().is_ok(),
        _ => option.parse::<AzureConfigKey>().is_ok(),
    }
}

fn trouble(name: &str, path: &str, error: &object_store::Error) -> Error {
    use object_store::Error as E;
    let at = if path.is_empty() { name.to_owned() } else { format!("{name}/{path}") };
    match error {
        E::NotFound { .. } => Error::new(Trouble::Missing, format!("{at} is not there")),
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => Error::new(
            Trouble::Refused,
            format!("{at}: {}; check the rights and the keys in backup.options", told(error)),
        ),
        E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } | E::NotSupported { .. } => {
            Error::new(Trouble::Refused, format!("{at}: {}", told(error)))
        }
        _ => match source_of(error) {
            Some(io) => Error::io(at, io),
            None => {
                let told = told(error);
                // A list's error has the server's status in its words only.
                if ["401", "403", "404"]
                    .iter()
                    .any(|status| told.contains(&format!("status code: {status} ")))
                {
                    let way = "check the bucket's name, the rights and the keys in backup.options";
                    return Error::new(Trouble::Refused, format!("{at}: {told}; {way}"));
                }
                Error::new(Trouble::Away, format!("{at}: {told}"))
            }
        },
    }
}

/// The system's own error, however deep it lies.
fn source_of(error: &object_store::Error) -> Option<&std::io::Error> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(one) = next {
        if let Some(io) = one.downcast_ref::<std::io::Error>() {
            return Some(io);
        }
        next = one.source();
    }
    None
}

/// An error with its causes, each said once.
fn told(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(one) = next {
        let more = one.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = one.source();
    }
    text
}
