//! Postgres on files that were restored: a server that nobody but us can reach, on a socket in a closed folder. It
//! replays the log that lies beside its files, and is stopped again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::process::{Process, Spec, tail};
use crate::{postgres, user};

const USER: &str = "postgres";
/// A part of the socket's name only.
const PORT: u16 = 5432;

/// A server that runs on restored files. Dropped, it is killed.
pub struct Recovered {
    process: Option<Process>,
    /// Socket, log and rules for logging in; removed at the end.
    folder: PathBuf,
}

impl Recovered {
    /// Starts a server on a cluster's files, which become its user's when we are root. `folder` is made for the socket,
    /// and must not be there; its path must be short, or the socket can't be made.
    ///
    /// # Errors
    /// There is no `postgres` here, it is of another version than the files, or the files are in use.
    pub async fn start(data: &Path, folder: &Path) -> Result<Self> {
        must_fit(data)?;
        // A server that died with its machine left this; nobody else can use files that were restored just now.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        user::own_dir(folder, USER)?;
        user::own_file(&folder.join("hba"), USER, "local all all trust\n")?;
        let config = data.join("postgresql.conf");
        if !config.exists() {
            // Where a distribution keeps it elsewhere, it is no part of a base backup.
            std::fs::write(&config, "# the settings were kept elsewhere\n")
                .context("write postgresql.conf")?;
        }
        user::own_tree(data, USER)?;
        let hba = folder.join("hba").display().to_string();
        let socket = folder.display().to_string();
        let settings = [
            format!("port={PORT}"),
            "listen_addresses=".into(),
            format!("unix_socket_directories={socket}"),
            format!("hba_file={hba}"),
            "archive_mode=off".into(),
            // No standby reaches it, and what is written into it at the end must not wait for one.
            "synchronous_standby_names=".into(),
            "default_transaction_read_only=off".into(),
            // Its limits may be smaller than those of the server that wrote the log.
            "hot_standby=off".into(),
            "shared_preload_libraries=".into(),
            "shared_buffers=128MB".into(),
            "ssl=off".into(),
            "logging_collector=off".into(),
        ];
        let mut args = vec!["-D".to_owned(), data.display().to_string()];
        args.extend(settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]));
        let spec = Spec {
            program: postgres::program("postgres")?,
            args,
            env: vec![("HOME", folder.display().to_string())],
            dir: folder.to_owned(),
            names: &["postgres"],
            log: folder.join("log"),
            pid_file: folder.join("pid"),
            user: USER,
            ports: Vec::new(),
            stop: Signal::SIGINT,
        };
        let process = Process::start(spec).await?;
        Ok(Self { process: Some(process), folder: folder.to_owned() })
    }

    /// Whether the server that is installed here runs files of a version, such as 15, as far as its path tells.
    ///
    /// # Errors
    /// It is of another version, or there is none.
    pub fn must_run_files_of(major: u32) -> Result<()> {
        must_run(&postgres::program("postgres")?, major)
    }

    /// The folder of its socket: the host that clients name.
    pub fn socket(&self) -> &Path {
        &self.folder
    }

    pub fn port(&self) -> u16 {
        PORT
    }

    /// Whether it still runs; what it has said last if not.
    ///
    /// # Errors
    /// It has ended.
    pub fn must_run(&self) -> Result<()> {
        if self.process.as_ref().is_some_and(Process::is_running) {
            return Ok(());
        }
        bail!("postgres on the restored files has ended; it said last:\n{}", tail(&self.folder.join("log")))
    }

    /// Stops it in order and removes its folder; the files are a cluster that can be started by anybody.
    pub async fn stop(mut self) {
        if let Some(process) = self.process.take() {
            process.stop().await;
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Recovered {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            drop(process);
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// The files of one version are no other version's.
fn must_fit(data: &Path) -> Result<()> {
    let files = std::fs::read_to_string(data.join("PG_VERSION"))
        .with_context(|| format!("{} holds no cluster of Postgres", data.display()))?;
    files.trim().parse().map_or(Ok(()), Recovered::must_run_files_of)
}

/// Where the version does not show in the program's path, the server itself says it when it is started.
fn must_run(program: &Path, files: u32) -> Result<()> {
    let home =
        program.parent().and_then(Path::parent).and_then(Path::file_name).and_then(|name| name.to_str());
    match home.and_then(|version| version.parse::<u32>().ok()) {
        Some(version) if version != files => bail!(
            "the files are of Postgres {files}, and {} is the newest here; install postgresql-{files}",
            program.display()
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_another_version_are_refused() {
        let program = Path::new("/usr/lib/postgresql/15/bin/postgres");
        must_run(program, 15).expect("its own");
        let error = must_run(program, 14).expect_err("an older one's").to_string();
        assert!(error.contains("install postgresql-14"), "{error}");
        must_run(Path::new("/usr/local/bin/postgres"), 14).expect("it does not show");
    }
}
