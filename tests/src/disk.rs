//! Small disks for servers: file systems in memory, which only root can mount, and which can be filled.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Enough for a new Postgres with its log of writes, and soon full.
const SIZE: &str = "size=600m";
const BALLAST: &str = "ballast";

/// Whether this user can mount one.
pub fn possible() -> bool {
    nix::unistd::Uid::effective().is_root()
}

pub(crate) fn mount(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", SIZE, "tmpfs"]).arg(folder).output()?;
    ensure!(
        mounted.status.success(),
        "a small disk can't be mounted (it takes root): {}",
        String::from_utf8_lossy(&mounted.stderr)
    );
    Ok(())
}

pub(crate) fn unmount(folder: &Path) {
    // What is no mount point is left as it is.
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    if mounts.lines().any(|line| line.split(' ').nth(1) == folder.to_str()) {
        let _ = Command::new("umount").arg("--lazy").arg(folder).output();
    }
}

/// Fills the disk that a folder lies on, to the last byte.
pub fn fill(folder: &Path) -> Result<()> {
    let mut ballast = File::create(folder.join(BALLAST)).context("make the ballast")?;
    let mut piece = vec![0; 1 << 20];
    while !piece.is_empty() {
        if ballast.write_all(&piece).is_err() {
            piece.truncate(piece.len() / 2);
        }
    }
    Ok(())
}

/// Makes room again.
pub fn clear(folder: &Path) -> Result<()> {
    std::fs::remove_file(folder.join(BALLAST)).context("remove the ballast")
}
