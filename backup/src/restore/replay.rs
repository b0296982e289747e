//! Postgres replays the log on restored files, up to a target, and is left running for a look.

use std::path::Path;
use std::time::Duration;

use taskflow_servers::Recovered;
use taskflow_stores::Kind;
use taskflow_stores::postgres::backup::{Facts, Moment};
use taskflow_stores::postgres::{self, PgPool, wal};

use super::cluster::Target;
use crate::error::{Error, Result};
use crate::postgres::timeline::History;
use crate::progress::Progress;

const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What Postgres says when the log ends before its target; it has no other way to say so.
pub(super) const TOO_EARLY: &str = "recovery ended before configured recovery target was reached";

/// Who looks at the restored cluster, and into which of its databases.
pub(super) struct Login<'l> {
    pub user: &'l str,
    pub database: &'l str,
}

/// Starts a server on the files, and waits until it has replayed the log that lies in `log`.
pub(super) async fn replay(
    data: &Path,
    log: &Path,
    target: &Target,
    history: &History,
    login: &Login<'_>,
    progress: &Progress,
) -> Result<(Recovered, PgPool, Facts)> {
    forget(data)?;
    aim(data, log, target, history)?;
    let unique = taskflow_stores::clock::new_id().simple();
    let socket = std::env::temp_dir().join(format!("taskflow-pg-{unique}"));
    let failed = |error: anyhow::Error| Error::failed(format!("{error:#}"));
    let server = Recovered::start(data, &socket).await.map_err(failed)?;
    let (user, database, port) = (login.user, login.database, server.port());
    let settings = postgres::Settings {
        url: format!("postgres://{user}@localhost:{port}/{database}?host={}", socket.display()),
        connections_max: 2,
        acquire_timeout_ms: 2_000,
        statement_timeout_ms: 0,
        ..postgres::Settings::default()
    };
    let pool = postgres::connect(&settings, "taskflow restore")?;
    match ready(&server, &pool, progress).await {
        Ok(facts) => Ok((server, pool, facts)),
        Err(error) => {
            pool.close().await;
            server.stop().await;
            Err(error)
        }
    }
}

const BEGIN: &str = "# taskflow restore: begin\n";
const END: &str = "# taskflow restore: end\n";

/// Tells Postgres where the log is and where to stop.
fn aim(data: &Path, log: &Path, target: &Target, history: &History) -> Result<()> {
    let quoted = |text: &str| text.replace('\'', "''");
    let stop = match target {
        Target::Newest => String::new(),
        Target::Time(at) => {
            // As Postgres reads it before it knows any zone's name, `Z` included.
            let at = at.format("%Y-%m-%d %H:%M:%S%.6f+00");
            format!("recovery_target_time = '{at}'\nrecovery_target_inclusive = on")
        }
        Target::Lsn(lsn) => format!("recovery_target_lsn = '{lsn}'\nrecovery_target_inclusive = off"),
        Target::Point(name) => format!("recovery_target_name = '{}'", quoted(name)),
        Target::Before { transaction, .. } => {
            format!("recovery_target_xid = '{}'\nrecovery_target_inclusive = off", quoted(transaction))
        }
    };
    // By its number: Postgres itself takes the newest one of which it finds the history, and stays on an abandoned one
    // where it finds none.
    let timeline = if history.is_alone() { "current".to_owned() } else { history.timeline.to_string() };
    let log = quoted(&log.display().to_string());
    let lines = format!(
        "restore_command = 'cp \"{log}/%f\" \"%p\"'\n{stop}\nrecovery_target_timeline = '{timeline}'\n\
         recovery_target_action = 'promote'\n"
    );
    let file = data.join("postgresql.auto.conf");
    let failed = |error: std::io::Error| Error::io(file.display(), &error);
    let before = std::fs::read_to_string(&file).unwrap_or_default();
    std::fs::write(&file, format!("{before}{BEGIN}{lines}{END}")).map_err(failed)?;
    std::fs::write(data.join("recovery.signal"), "").map_err(failed)
}

/// Takes what [`aim`] wrote out again: the next start must replay nothing.
pub(super) fn forget(data: &Path) -> Result<()> {
    let file = data.join("postgresql.auto.conf");
    let failed = |error: std::io::Error| Error::io(file.display(), &error);
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else { return Ok(()) };
    let left = format!("{}{}", &text[..begin], &text[end + END.len()..]);
    std::fs::write(&file, left).map_err(failed)
}

/// Waits until the log is replayed and the server works.
async fn ready(server: &Recovered, pool: &PgPool, progress: &Progress) -> Result<Facts> {
    loop {
        progress.check()?;
        server.must_run().map_err(|error| Error::failed(format!("{error:#}")))?;
        match wal::in_recovery(pool).await {
            Ok(false) => {
                let mut moment = Moment::begin(pool).await?;
                let facts = moment.facts().await;
                moment.end().await;
                return Ok(facts?);
            }
            Ok(true) => {}
            // It lets nobody in yet.
            Err(error) if error.kind == Kind::Unavailable => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
