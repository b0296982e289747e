//! Postgres's own programs: where they are, how they log in, and what they say when they fail.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use url::Url;

use crate::error::{Error, Result, Trouble};
use crate::settings::Settings;

/// The end of what a program has said that is kept.
const SAID_MAX: usize = 4_000;

/// Runs a program that ends when its standard input does: also when we are killed, which closes it.
const GUARD: &str = r#"exec 3<&0
"$@" </dev/null 3<&- & pid=$!
{ cat <&3 >/dev/null; kill "$pid"; } 2>/dev/null & watch=$!
wait "$pid"; code=$?
kill "$watch" 2>/dev/null
exit "$code""#;

/// Where the programs are, and how they log in.
#[derive(Clone)]
pub struct Programs {
    folder: PathBuf,
    env: Vec<(&'static str, String)>,
    application: String,
}

impl Programs {
    /// Finds the programs and reads `postgres.url`.
    pub fn find(settings: &Settings, url: &str) -> Result<Self> {
        Ok(Self {
            folder: folder(&settings.programs)?,
            env: login(url)?,
            application: "taskflow backup".to_owned(),
        })
    }

    /// The same under another name towards the server.
    #[must_use]
    pub fn called(mut self, name: &str) -> Self {
        name.clone_into(&mut self.application);
        self
    }

    /// Where a program is.
    pub fn path(&self, program: &str) -> PathBuf {
        self.folder.join(program)
    }

    /// The programs' version, such as 15.
    pub async fn major(&self) -> Result<u32> {
        let said = self.start("pg_dump", &["--version".to_owned()])?.text().await?;
        major(
            said.rsplit(' ').find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default(),
        )
        .ok_or_else(|| Error::failed(format!("pg_dump tells no version: {said}")))
    }

    /// Checks that the programs know this server.
    pub async fn must_know(&self, server: &str) -> Result<()> {
        let (own, server) = (self.major().await?, major(server).unwrap_or(0));
        if own < server {
            return Err(Error::refused(format!(
                "pg_dump in {} is of version {own}, the server of version {server}: install the client programs of {server} \
                 (postgresql-client-{server}) or set backup.programs to their folder",
                self.folder.display()
            )));
        }
        Ok(())
    }

    /// Starts a program. Dropped, it is killed; if we are killed, it ends with its input or output.
    pub fn start(&self, program: &str, args: &[String]) -> Result<Running> {
        let mut command = Command::new(self.path(program));
        command.args(args);
        self.spawn(program, command)
    }

    /// Starts a program that runs for ever and neither reads nor writes: it does not outlive us.
    pub fn start_guarded(&self, program: &str, args: &[String]) -> Result<Running> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", GUARD, "sh"]).arg(self.path(program)).args(args);
        self.spawn(program, command)
    }

    fn spawn(&self, program: &str, mut command: Command) -> Result<Running> {
        command
            .env_clear()
            .env("LC_ALL", "C")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("PGAPPNAME", &self.application)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| Error::io(format!("start {}", self.path(program).display()), &error))?;
        let stderr = child.stderr.take();
        let said = tokio::spawn(async move {
            let mut said = Vec::new();
            let mut buffer = [0; 4_096];
            let Some(mut stderr) = stderr else { return String::new() };
            while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
                said.extend_from_slice(&buffer[..length]);
                if said.len() > 2 * SAID_MAX {
                    said.drain(..said.len() - SAID_MAX);
                }
            }
            let from = said.len().saturating_sub(SAID_MAX);
            String::from_utf8_lossy(&said[from..]).trim().to_owned()
        });
        Ok(Running { name: program.to_owned(), child, said })
    }
}

/// A program that runs.
pub struct Running {
    name: String,
    child: Child,
    said: JoinHandle<String>,
}

impl Running {
    pub fn stdout(&mut self) -> Result<ChildStdout> {
        self.child.stdout.take().ok_or_else(|| Error::failed(format!("{} has no output", self.name)))
    }

    pub fn stdin(&mut self) -> Result<ChildStdin> {
        self.child.stdin.take().ok_or_else(|| Error::failed(format!("{} has no input", self.name)))
    }

    /// Whether it still runs; what it says if not.
    pub async fn must_run(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let said = (&mut self.said).await.unwrap_or_default();
                Err(Error::new(meaning(&said), format!("{} ended with {status}: {said}", self.name)))
            }
            Err(error) => Err(Error::io(&self.name, &error)),
        }
    }

    /// Waits for the end, which must be a good one.
    pub async fn finish(mut self) -> Result<String> {
        drop(self.child.stdin.take());
        let status = self.child.wait().await.map_err(|error| Error::io(&self.name, &error))?;
        let said = self.said.await.unwrap_or_default();
        if status.success() {
            return Ok(said);
        }
        Err(Error::new(meaning(&said), format!("{} ended with {status}: {said}", self.name)))
    }

    /// All that it prints.
    pub async fn text(mut self) -> Result<String> {
        let mut out = String::new();
        let mut stdout = self.stdout()?;
        stdout.read_to_string(&mut out).await.map_err(|error| Error::io(&self.name, &error))?;
        self.finish().await?;
        Ok(out.trim().to_owned())
    }

    /// Feeds it. A program that has stopped reading says why at its end, so that is no error here.
    pub async fn feed(stdin: &mut ChildStdin, bytes: &[u8]) -> Result<bool> {
        match stdin.write_all(bytes).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Error::io("feed pg_restore", &error)),
        }
    }
}

/// What a program's words mean: they are the only thing that tells a full disk from a server that is away.
fn meaning(said: &str) -> Trouble {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    if has(&["No space left on device", "could not extend file"]) {
        Trouble::Full
    } else if has(&["permission denied", "must be superuser", "must be owner"]) {
        Trouble::Refused
    } else if has(&[
        "could not connect",
        "connection to server",
        "server closed the connection",
        "terminating connection",
        "the database system is",
        "could not receive data",
        "could not send data",
    ]) {
        Trouble::Away
    } else {
        Trouble::Failed
    }
}

/// The first number of a version.
pub(crate) fn major(version: &str) -> Option<u32> {
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn folder(set: &Path) -> Result<PathBuf> {
    let has = |folder: &Path| folder.join("pg_dump").is_file();
    if !set.as_os_str().is_empty() {
        return has(set).then(|| set.to_owned()).ok_or_else(|| {
            Error::refused(format!("backup.programs: there is no pg_dump in {}", set.display()))
        });
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    let common = ["/usr/bin", "/usr/local/bin", "/usr/pgsql/bin"].map(PathBuf::from);
    versions.into_iter().rev().map(|(_, folder)| folder).chain(common).find(|folder| has(folder)).ok_or_else(|| {
        Error::refused(
            "pg_dump is not installed here; install postgresql-client of the server's version or set backup.programs",
        )
    })
}

/// The URL as the programs take it: in their environment, since arguments are seen by everybody.
fn login(url: &str) -> Result<Vec<(&'static str, String)>> {
    let wrong = |why: String| {
        Error::refused(format!("postgres.url: {why}; expected postgres://user:password@host:port/database"))
    };
    let url = Url::parse(url).map_err(|error| wrong(error.to_string()))?;
    let decoded = |text: &str| percent(text).ok_or_else(|| wrong("a part of it can't be decoded".to_owned()));
    let mut env = Vec::new();
    if let Some(host) = url.host_str().filter(|host| !host.is_empty()) {
        env.push(("PGHOST", decoded(host.trim_matches(['[', ']']))?));
    }
    if let Some(port) = url.port() {
        env.push(("PGPORT", port.to_string()));
    }
    if !url.username().is_empty() {
        env.push(("PGUSER", decoded(url.username())?));
    }
    if let Some(password) = url.password() {
        env.push(("PGPASSWORD", decoded(password)?));
    }
    let database = decoded(url.path().trim_start_matches('/'))?;
    if !database.is_empty() {
        env.push(("PGDATABASE", database));
    }
    for (name, value) in url.query_pairs() {
        let variable = match name.as_ref() {
            "host" => "PGHOST",
            "port" => "PGPORT",
            "user" => "PGUSER",
            "password" => "PGPASSWORD",
            "dbname" => "PGDATABASE",
            "sslmode" | "ssl-mode" => "PGSSLMODE",
            "sslrootcert" | "ssl-root-cert" | "ssl-ca" => "PGSSLROOTCERT",
            "sslcert" | "ssl-cert" => "PGSSLCERT",
            "sslkey" | "ssl-key" => "PGSSLKEY",
            _ => continue,
        };
        env.retain(|(set, _)| *set != variable);
        env.push((variable, value.into_owned()));
    }
    Ok(env)
}

/// Decodes `%41`.
fn percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_the_programs_take_it() {
        let env =
            login("postgres://us%65r:p%40ss@db.example:6543/task%20flow?sslmode=require&application_name=x")
                .unwrap();
        let expected = [
            ("PGHOST", "db.example"),
            ("PGPORT", "6543"),
            ("PGUSER", "user"),
            ("PGPASSWORD", "p@ss"),
            ("PGDATABASE", "task flow"),
            ("PGSSLMODE", "require"),
        ];
        assert_eq!(env, expected.map(|(name, value)| (name, value.to_owned())));
        let socket = login("postgres:///taskflow?host=/run/postgresql").unwrap();
        assert!(socket.contains(&("PGHOST", "/run/postgresql".to_owned())), "{socket:?}");
        assert_eq!(login("no url").unwrap_err().trouble, Trouble::Refused);
    }
}
