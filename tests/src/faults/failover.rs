//! Postgres with a standby that takes the primary's place, and its address, when the primary is gone.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use taskflow_servers::Kind::Postgres;
use taskflow_servers::Ports;
use tokio::process::{Child, Command};

use super::{Fault, act};
use crate::harness::Harness;
use crate::wait;

pub static FAULTS: &[Fault] =
    &[Fault::new("postgres: the primary dies, the standby takes over", act!(lose_primary), act!(promote))
        .prepared(act!(add_standby))
        .spoils()
        .stands()
        .hold(1.0, 5.0)];

/// A standby beside the world's own server.
struct Standby {
    programs: PathBuf,
    data: PathBuf,
    port: u16,
    password: String,
    process: Option<Child>,
}

impl Standby {
    /// One of Postgres's programs, as the user that owns the data.
    fn command(&self, program: &str) -> Result<Command> {
        let parent = self.data.parent().unwrap_or(&self.data);
        let mut command = as_owner(&self.programs.join(program), parent)?;
        command.current_dir("/").env("PGPASSWORD", &self.password).kill_on_drop(true);
        Ok(command)
    }

    async fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let Output { status, stderr, .. } = self.command(program)?.args(args).output().await?;
        ensure!(status.success(), "{program}: {}", String::from_utf8_lossy(&stderr));
        Ok(())
    }

    fn start(&mut self, port: u16) -> Result<()> {
        let data = self.data.display().to_string();
        let log = std::fs::File::create(self.data.with_extension("log"))?;
        let settings =
            [format!("port={port}"), "listen_addresses=127.0.0.1".into(), "unix_socket_directories=".into()];
        let settings = settings.iter().flat_map(|setting| ["-c", setting.as_str()]);
        let mut command = self.command("postgres")?;
        command
            .args(["-D", &data, "-c", "max_connections=300"])
            .args(settings)
            .stdout(std::process::Stdio::null());
        self.process = Some(command.stderr(log).spawn()?);
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        let data = self.data.display().to_string();
        self.run("pg_ctl", &["stop", "-D", &data, "-m", "fast", "-w"]).await?;
        if let Some(mut process) = self.process.take() {
            process.wait().await?;
        }
        Ok(())
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        // What was left running is stopped in its own way: killed, the parent would leave its children.
        if self.process.is_some()
            && let Ok(mut command) = self.command("pg_ctl")
        {
            let stop = command.as_std_mut().args(["stop", "-m", "immediate", "-D"]).arg(&self.data);
            let _ = stop.output();
        }
    }
}

/// A program that runs as the owner of a folder: of a server's data, the server's own user.
pub(super) fn as_owner(program: &Path, folder: &Path) -> Result<Command> {
    let owner = std::fs::metadata(folder).with_context(|| format!("look at {}", folder.display()))?;
    let mut command = Command::new(program);
    command.uid(owner.uid()).gid(owner.gid());
    Ok(command)
}

/// A copy of the primary that follows it; from then on a commit waits until the copy has it.
async fn add_standby(h: &mut Harness<'_>) -> Result<()> {
    let pid = h.server(Postgres, async |server| server.pid()).await.context("Postgres does not run")?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let options = h.site.postgres.connect_options();
    let url = h.site.env.iter().find(|(name, _)| name.ends_with("POSTGRES__URL")).context("no address")?;
    let password = url.1.split(['@', ':']).nth(2).context("no password")?.to_owned();
    let mut standby = Standby {
        programs: program.parent().map(Path::to_owned).context("no folder of programs")?,
        data: h.world.folder_of(Postgres).join("standby"),
        port: options.get_port(),
        password,
        process: None,
    };
    let (data, port) = (standby.data.display().to_string(), standby.port.to_string());
    let address = ["-h", "127.0.0.1", "-p", &port, "-U", "taskflow"];
    let copy = [&address[..], &["-D", &data, "-R", "-X", "stream", "-c", "fast"]].concat();
    standby.run("pg_basebackup", &copy).await?;
    standby.start(Ports::one()?)?;
    h.kept.push(Box::new(standby));
    wait::until("the standby follows", async || {
        Ok(h.site.count("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'").await? == 1)
    })
    .await?;
    h.site.sql("ALTER SYSTEM SET synchronous_standby_names = '*'").await?;
    h.site.sql("SELECT pg_reload_conf()").await?;
    wait::until("commits wait for the standby", async || {
        Ok(h.site.count("SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'").await? == 1)
    })
    .await
}

async fn lose_primary(h: &mut Harness<'_>) -> Result<()> {
    h.server(Postgres, async |server| server.kill().await).await;
    Ok(())
}

/// As with an address that moves: the standby is primary now, and where the other one was.
async fn promote(h: &mut Harness<'_>) -> Result<()> {
    let standby = h.kept.iter_mut().find_map(|kept| kept.downcast_mut::<Standby>()).context("no standby")?;
    standby.stop().await?;
    standby.start(standby.port)?;
    let (data, site) = (standby.data.display().to_string(), h.site);
    wait::until("it can be promoted", async || {
        let promoted = standby.run("pg_ctl", &["promote", "-D", &data, "-w"]).await;
        promoted.map(|()| true)
    })
    .await?;
    // Nobody follows the new primary: its commits must not wait.
    let alone = async || {
        site.sql("ALTER SYSTEM RESET synchronous_standby_names").await?;
        site.sql("SELECT pg_reload_conf()").await?;
        Ok(site.count("SELECT count(*) WHERE NOT pg_is_in_recovery()").await? == 1)
    };
    let alone = tokio::time::timeout(Duration::from_secs(60), wait::until("it takes writes", alone));
    alone.await.context("the new primary takes no writes")?
}
