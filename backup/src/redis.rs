//! Redis: its snapshot, where it can be reached. Everything in it can be made again (`taskflow jobs run cache.warm`); only
//! sessions can't, so whoever has no snapshot logs in anew.

use taskflow_stores::clock;
use taskflow_stores::redis::Redis;

use crate::draft::{Draft, Facts};
use crate::error::{Error, Result};
use crate::manifest::{Kind, Manifest, Position};
use crate::progress::Progress;
use crate::settings::Compression;
use crate::vault::Vault;

/// Every snapshot begins with this.
const MAGIC: &[u8] = b"REDIS";

/// Makes a backup of Redis; or says in words why there is none.
pub async fn create(vault: &Vault, redis: &Redis, progress: &Progress) -> Result<Result<Manifest, String>> {
    let begun = clock::now();
    let path = match redis.snapshot().await? {
        Ok(path) => path,
        Err(why) => return Ok(Err(why)),
    };
    let mut file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        // The server is elsewhere, or its folder is closed to us.
        Err(error) => {
            return Ok(Err(format!("its snapshot {} can't be read from here: {error}", path.display())));
        }
    };
    let written = file.metadata().await.and_then(|data| data.modified());
    let written = written.map_err(|error| Error::io(path.display(), &error))?;
    if chrono::DateTime::<chrono::Utc>::from(written) < begun - chrono::TimeDelta::seconds(5) {
        return Ok(Err(format!("{} is older than the snapshot: it is another server's", path.display())));
    }
    let mut head = [0; 5];
    tokio::io::AsyncReadExt::read_exact(&mut file, &mut head)
        .await
        .map_err(|error| Error::io(path.display(), &error))?;
    if head != MAGIC {
        return Ok(Err(format!("{} is no snapshot of Redis", path.display())));
    }
    tokio::io::AsyncSeekExt::rewind(&mut file).await.map_err(|error| Error::io(path.display(), &error))?;
    let server = redis.version().await?;
    let mut draft = Draft::begin(vault, Kind::Redis, progress);
    progress.begin("copy the snapshot of Redis", 0);
    if let Err(error) = draft.stream("dump.rdb", Compression::Zstd, &mut file).await {
        draft.discard().await;
        return Err(error);
    }
    let facts = Facts {
        server,
        position: Position { from: Some(begun), through: Some(begun), exact: true, ..Position::default() },
        restored_bytes: draft.content_bytes(),
        notes: vec!["caches are made anew by `taskflow jobs run cache.warm`; only sessions are worth restoring".to_owned()],
        restore: vec![
            "taskflow restore never writes into Redis: after a restore of Postgres its caches would lie".to_owned(),
            "to have the sessions back: stop Redis, decompress dump.rdb into its folder (with appendonly no), start it"
                .to_owned(),
        ],
        ..Facts::default()
    };
    draft.finish(facts).await.map(Ok)
}
