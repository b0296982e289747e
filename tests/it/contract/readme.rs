//! The README's own commands, run as a new user would, so that they can't rot.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_servers::Ports;
use taskflow_tests::{Result, wait};
use tokio::process::Command;

use crate::{PROGRAM, with_own_servers};

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_own_servers(
        "the README's commands work on a fresh `taskflow dev`, and it starts again with its data",
        readme,
    )]
}

/// The shell blocks that are marked as tested.
fn blocks() -> Result<Vec<String>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?;
    let text = std::fs::read_to_string(root.join("README.md"))?;
    let blocks = text.split("<!-- tested -->\n```sh\n").skip(1);
    Ok(blocks.filter_map(|block| block.split("\n```").next().map(str::to_owned)).collect())
}

async fn readme() -> Result {
    let blocks = blocks()?;
    ensure!(blocks.len() >= 3, "only {} blocks of the README are tested", blocks.len());
    // With a space, as people's folders have them.
    let folder = tempfile::Builder::new().prefix("taskflow readme ").tempdir_in("/tmp")?;
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let address = taskflow_tests::free_address()?;
    let first_port = Ports::free()?.postgres;

    let metrics = taskflow_tests::free_address()?;
    let addresses = [("TASKFLOW_HTTP__LISTEN", address.as_str()), ("TASKFLOW_METRICS__LISTEN", &metrics)];
    let mut dev = start(folder.path(), &addresses, first_port).await?;
    // As they stand, one after the other, but for the ports.
    let script = blocks.join("\n").replace("127.0.0.1:8080", &address).replace("127.0.0.1:9103", &metrics);
    let run = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(folder.path())
        .env("PATH", path(folder.path())?)
        .output()
        .await?;
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    ensure!(run.status.success(), "{script}\nended with {}:\n{said}", run.status);
    ensure!(said.contains("2 accepted, 0 refused") && said.contains("\"status\":\"applied\""), "{said}");
    // Killed, it leaves its servers behind; the next start deals with them and has kept the data.
    dev.kill().await?;
    let mut again = start(folder.path(), &addresses, first_port).await?;
    let log = std::fs::read_to_string(folder.path().join("dev.log"))?;
    ensure!(log.contains("0 users and 0 tasks are new"), "it did not keep its data:\n{log}");
    let pid = nix::unistd::Pid::from_raw(again.id().context("it has ended")?.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    let status = tokio::time::timeout(Duration::from_secs(60), again.wait()).await??;
    ensure!(status.success(), "Ctrl-C ended it with {status}");
    for port in first_port..first_port + 4 {
        ensure!(
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(),
            "port {port} is still open"
        );
    }
    Ok(())
}

/// The program under the name that users know.
fn path(folder: &Path) -> Result<String> {
    let bin = folder.join("path");
    std::fs::create_dir_all(&bin)?;
    let link = bin.join("taskflow");
    if !link.exists() {
        std::os::unix::fs::symlink(PROGRAM, &link)?;
    }
    #[expect(clippy::disallowed_methods, reason = "the test passes its own PATH on")]
    let path = std::env::var("PATH")?;
    Ok(format!("{}:{path}", bin.display()))
}

async fn start(folder: &Path, addresses: &[(&str, &str)], first_port: u16) -> Result<tokio::process::Child> {
    let log = std::fs::File::create(folder.join("dev.log"))?;
    let child = Command::new(PROGRAM)
        .args(["dev", "--first-port", &first_port.to_string()])
        .current_dir(folder)
        .envs(addresses.iter().copied())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    wait::until("`taskflow dev` is up", async || {
        let log = std::fs::read_to_string(folder.join("dev.log"))?;
        ensure!(log.contains("TaskFlow is up"), "{log}");
        Ok(true)
    })
    .await?;
    Ok(child)
}
