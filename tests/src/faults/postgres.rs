//! Postgres: killed, restarted, stopped; sessions ended, locks held, conflicts, no connections, no disk.

use std::time::Duration;

use anyhow::{Result, ensure};
use sqlx::{Connection, PgConnection};
use taskflow_servers::Kind::Postgres;
use tokio::time::{Instant, sleep};

use super::{Fault, act, nothing};
use crate::disk;
use crate::harness::Harness;
use crate::wait;

pub static FAULTS: &[Fault] = &[
    Fault::new("postgres: restart", act!(stop), act!(start)).servers().stands().hold(1.0, 10.0),
    Fault::new("postgres: kill -9", act!(kill), act!(start)).servers().stands().takes(),
    Fault::new("postgres: hangs (SIGSTOP)", act!(pause), act!(resume)).servers().stands().hold(3.0, 60.0),
    Fault::new("postgres: all sessions ended, again and again", act!(end_sessions), act!(nothing))
        .hold(0.0, 0.0),
    Fault::new("postgres: a lock on the table of tasks", act!(lock_tasks), act!(let_go))
        .stands()
        .takes()
        .hold(3.0, 40.0),
    // After a while partitions go on around the commands that the rows are for.
    Fault::new("postgres: an idle transaction that holds rows", act!(hold_rows), act!(free_rows))
        .takes()
        .hold(3.0, 150.0),
    Fault::new("postgres: serialization failures", act!(serializable), act!(read_committed)).hold(3.0, 20.0),
    Fault::new("postgres: out of connections", act!(take_connections), act!(let_go))
        .servers()
        .stands()
        .hold(3.0, 30.0),
    Fault::new("postgres: disk full", act!(fill_disk), act!(clear_disk))
        .small_disk(&[Postgres])
        .stands()
        .hold(3.0, 20.0),
];

async fn stop(h: &mut Harness<'_>) -> Result<()> {
    h.server(Postgres, async |server| server.stop().await).await;
    Ok(())
}

async fn kill(h: &mut Harness<'_>) -> Result<()> {
    h.server(Postgres, async |server| server.kill().await).await;
    Ok(())
}

async fn start(h: &mut Harness<'_>) -> Result<()> {
    h.server(Postgres, async |server| server.restart().await).await
}

async fn pause(h: &mut Harness<'_>) -> Result<()> {
    h.server(Postgres, async |server| server.pause()).await;
    Ok(())
}

async fn resume(h: &mut Harness<'_>) -> Result<()> {
    h.server(Postgres, async |server| server.resume()).await;
    Ok(())
}

/// Ends the sessions of the program.
const END: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name NOT IN ('fault', 'taskflow test')";

async fn end_sessions(h: &mut Harness<'_>) -> Result<()> {
    let mut session = h.session().await?;
    let mut ended = 0;
    let start = Instant::now();
    let lasts = Duration::from_secs(if h.long { 15 } else { 2 });
    while start.elapsed() < lasts {
        ended += sqlx::query_scalar::<_, i64>(END).fetch_one(&mut session).await?;
        sleep(Duration::from_millis(100)).await;
    }
    ensure!(ended > 0, "there was no session to end");
    Ok(())
}

async fn lock_tasks(h: &mut Harness<'_>) -> Result<()> {
    hold(h, "BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").await
}

/// Some of the rows that every batch changes: each partition's newest tasks.
async fn hold_rows(h: &mut Harness<'_>) -> Result<()> {
    hold(h, "BEGIN; SELECT 1 FROM tasks ORDER BY updated_at DESC LIMIT 20 FOR UPDATE").await
}

/// Somebody still waits for them: otherwise the fault would be none.
async fn free_rows(h: &mut Harness<'_>) -> Result<()> {
    let waits = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event IN ('transactionid', 'tuple')";
    let site = h.site;
    wait::until("somebody waits for the rows", async || Ok(site.count(waits).await? > 0)).await?;
    let_go(h).await
}

/// Does something in a transaction and leaves it open.
async fn hold(h: &mut Harness<'_>, sql: &'static str) -> Result<()> {
    let mut session = h.session().await?;
    sqlx::raw_sql(sql).execute(&mut session).await?;
    h.kept.push(Box::new(session));
    Ok(())
}

async fn let_go(h: &mut Harness<'_>) -> Result<()> {
    for kept in std::mem::take(&mut h.kept) {
        match kept.downcast::<PgConnection>() {
            Ok(session) => session.close().await?,
            Err(other) => h.kept.push(other),
        }
    }
    Ok(())
}

async fn serializable(h: &mut Harness<'_>) -> Result<()> {
    isolation(h, "SET default_transaction_isolation = 'serializable'").await
}

async fn read_committed(h: &mut Harness<'_>) -> Result<()> {
    isolation(h, "RESET default_transaction_isolation").await
}

/// New sessions begin with it, so the old ones are ended.
async fn isolation(h: &Harness<'_>, change: &str) -> Result<()> {
    let database = h.site.postgres.connect_options().get_database().unwrap_or_default().to_owned();
    h.site.sql(&format!("ALTER DATABASE {database} {change}")).await?;
    let mut session = h.session().await?;
    sqlx::query(END).execute(&mut session).await?;
    Ok(session.close().await?)
}

/// Takes every connection that the server has, also those of the program. One of ours stays for looking.
async fn take_connections(h: &mut Harness<'_>) -> Result<()> {
    let mut first = h.session().await?;
    let start = Instant::now();
    let mut full = false;
    while start.elapsed() < Duration::from_secs(90) {
        match h.session().await {
            Ok(session) => h.kept.push(Box::new(session)),
            Err(_) => {
                full = true;
                if sqlx::query_scalar::<_, i64>(END).fetch_one(&mut first).await? == 0 {
                    break;
                }
            }
        }
    }
    ensure!(full, "the server has more connections than can be taken");
    h.kept.push(Box::new(first));
    Ok(())
}

async fn fill_disk(h: &mut Harness<'_>) -> Result<()> {
    let folder = h.world.folder_of(Postgres);
    // Until the room that it has laid by is used up as well.
    disk::fill(&folder)?;
    let before = h.heads().await?;
    wait::until("Postgres has no room", async || {
        let applied = tokio::time::timeout(Duration::from_secs(2), h.heads()).await;
        sleep(Duration::from_millis(300)).await;
        let now = tokio::time::timeout(Duration::from_secs(2), h.heads()).await;
        Ok(match (applied, now) {
            (Ok(Ok(then)), Ok(Ok(now))) => then == now && now != before,
            _ => true,
        })
    })
    .await
}

async fn clear_disk(h: &mut Harness<'_>) -> Result<()> {
    disk::clear(&h.world.folder_of(Postgres))?;
    // Without room for its log Postgres stops; whoever makes room starts it.
    h.server(Postgres, async |server| {
        if tokio::time::timeout(Duration::from_secs(5), server.wait_ready())
            .await
            .is_ok_and(|ready| ready.is_ok())
        {
            Ok(())
        } else {
            server.restart().await
        }
    })
    .await
}
