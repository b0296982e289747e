//! As root each server runs as a user of its own; otherwise all run as who started them.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};
use tokio::process::Command;

/// What a server may see of our environment. The rest is not its business, and some of it would change it: `PGHOST`,
/// `RABBITMQ_NODENAME`, `ERL_FLAGS`.
#[expect(clippy::disallowed_methods, reason = "what the servers inherit is no setting of ours")]
fn inherited() -> impl Iterator<Item = (&'static str, String)> {
    ["PATH", "LD_LIBRARY_PATH", "TZ"].into_iter().filter_map(|name| Some((name, std::env::var(name).ok()?)))
}

/// The user that a server runs as: its own when we are root, else ours (`None`).
pub(crate) fn user(name: &str) -> Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let user = User::from_name(name)?;
    user.map(Some)
        .with_context(|| format!("there is no user {name}; Debian's package of the server makes it"))
}

/// Makes a folder that everybody may enter, with those above it that are missing, whatever the umask says.
pub(crate) fn make_open_dir(dir: &Path) -> Result<()> {
    let missing: Vec<&Path> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    for path in missing {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755))?;
    }
    Ok(())
}

/// Makes a folder that belongs to a server's user, and that nobody else reads: it holds passwords and data.
pub(crate) fn own_dir(dir: &Path, name: &str) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("make the folder {}", dir.display()))?;
    own(dir, name, 0o700)?;
    user(name)?.map_or(Ok(()), |user| must_reach(dir, &user))
}

/// Writes a file that only a server's user reads.
pub(crate) fn own_file(file: &Path, name: &str, text: &str) -> Result<()> {
    // Made anew, so that an older one's permissions don't show the text for a moment.
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("replace {}", file.display()));
        }
        _ => {}
    }
    crate::secret::write_private(file, text)?;
    own(file, name, 0o600)
}

/// Gives a folder with all that is in it to a server's user; only that user reads it.
pub(crate) fn own_tree(dir: &Path, name: &str) -> Result<()> {
    own(dir, name, 0o700)?;
    user(name)?.map_or(Ok(()), |user| must_reach(dir, &user))?;
    let Some(user) = user(name)? else { return Ok(()) };
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("look at {}", dir.display()))? {
            let entry = entry?;
            std::os::unix::fs::lchown(entry.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .with_context(|| format!("give {} to the user {name}", entry.path().display()))?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    Ok(())
}

fn own(path: &Path, name: &str, mode: u32) -> Result<()> {
    let change = || -> Result<()> {
        if let Some(user) = user(name)? {
            chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
        }
        Ok(std::fs::set_permissions(path, PermissionsExt::from_mode(mode))?)
    };
    change().with_context(|| {
        format!(
            "give {} to the user that {name} runs as (was it made by root? then remove it)",
            path.display()
        )
    })
}

/// A folder below one that its user may not enter fails later in words that nobody understands.
fn must_reach(dir: &Path, user: &User) -> Result<()> {
    for parent in dir.ancestors().skip(1) {
        if !may_enter(parent, user)? {
            bail!(
                "the user {} can't reach {}: {closed} is closed to it, and as root each server runs as a user of its \
                 own; choose a data folder elsewhere (under /var/lib or /tmp), open it with `chmod o+x {closed}`, \
                 or run this as an ordinary user",
                user.name,
                dir.display(),
                closed = parent.display(),
            );
        }
    }
    Ok(())
}

/// The first class that fits decides, as in the kernel. Other groups of the user don't count: the servers get none.
fn may_enter(dir: &Path, user: &User) -> Result<bool> {
    let data = std::fs::metadata(dir).with_context(|| format!("look at {}", dir.display()))?;
    let bit = if data.uid() == user.uid.as_raw() {
        0o100
    } else if data.gid() == user.gid.as_raw() {
        0o010
    } else {
        0o001
    };
    Ok(data.mode() & bit != 0)
}

/// Whether a server's user may run a program where it lies.
pub(crate) fn may_run(program: &Path, name: &str) -> Result<bool> {
    let Some(user) = user(name)? else { return Ok(true) };
    let program = program.canonicalize()?;
    for path in program.ancestors() {
        if !may_enter(path, &user)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A command that runs as a server's user.
pub(crate) fn command(program: &Path, name: &str) -> Result<Command> {
    let mut command = Command::new(program);
    command.env_clear().envs(inherited());
    if let Some(user) = user(name)? {
        // This also drops root's further groups.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.stdin(Stdio::null()).env("LC_ALL", "C.UTF-8");
    Ok(command)
}

/// Runs a command to its end; an error has what it printed. Dropped half-way, the command is killed.
pub(crate) async fn run(command: &mut Command, what: &str) -> Result<String> {
    let output = command.kill_on_drop(true).output().await.with_context(|| format!("run {what}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    bail!("{what} failed: {text}{}", String::from_utf8_lossy(&output.stderr))
}
