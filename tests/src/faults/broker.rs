//! RabbitMQ: killed, restarted, stopped; alarms, a full queue, a missing queue; what operators and time-outs close.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lapin::options::QueueDeleteOptions;
use sqlx::Connection;
use taskflow_core::partition::Partition;
use taskflow_servers::Kind::RabbitMq;
use taskflow_stores::rabbit::topology;
use tokio::time::sleep;

use super::{Fault, act, nothing};
use crate::harness::Harness;
use crate::wait;

pub static FAULTS: &[Fault] = &[
    Fault::new("broker: restart", act!(stop), act!(start)).servers().stands().refuses().hold(1.0, 10.0),
    Fault::new("broker: kill -9", act!(kill), act!(start)).servers().stands().refuses(),
    Fault::new("broker: hangs (SIGSTOP)", act!(pause), act!(resume))
        .servers()
        .stands()
        .refuses()
        .hold(3.0, 30.0),
    Fault::new("broker: all connections closed by the operator", act!(close_connections), act!(nothing))
        .hold(0.0, 0.0),
    Fault::new("broker: channels killed inside the broker", act!(kill_channels), act!(nothing))
        .servers()
        .hold(0.0, 0.0),
    Fault::new("broker: the queues' processes killed", act!(kill_queues), act!(nothing)).hold(0.0, 0.0),
    Fault::new("broker: memory alarm", act!(memory_alarm), act!(memory_well)).servers().refuses(),
    Fault::new("broker: disk alarm", act!(disk_alarm), act!(disk_well)).servers().refuses(),
    Fault::new("broker: full queues", act!(fill_queues), act!(empty_queues)).stands(),
    Fault::new("broker: a queue deleted (empty) and declared again", act!(delete_queue), act!(declared)),
    Fault::new("broker: acknowledgement time-out", act!(ack_timeout), act!(no_ack_timeout))
        .servers()
        .hold(4.0, 20.0),
];

async fn stop(h: &mut Harness<'_>) -> Result<()> {
    h.server(RabbitMq, async |server| server.stop().await).await;
    Ok(())
}

async fn kill(h: &mut Harness<'_>) -> Result<()> {
    h.server(RabbitMq, async |server| server.kill().await).await;
    Ok(())
}

async fn start(h: &mut Harness<'_>) -> Result<()> {
    h.server(RabbitMq, async |server| server.restart().await).await
}

async fn pause(h: &mut Harness<'_>) -> Result<()> {
    h.server(RabbitMq, async |server| server.pause()).await;
    Ok(())
}

async fn resume(h: &mut Harness<'_>) -> Result<()> {
    h.server(RabbitMq, async |server| server.resume()).await;
    Ok(())
}

async fn close_connections(h: &mut Harness<'_>) -> Result<()> {
    let vhost = h.vhost().to_owned();
    for _ in 0..2 {
        h.rabbitmqctl(&["close_all_connections", "--vhost", &vhost, "maintenance"]).await?;
    }
    Ok(())
}

async fn kill_channels(h: &mut Harness<'_>) -> Result<()> {
    let killed = h.rabbitmqctl(&["eval", "length([exit(C, kill) || C <- rabbit_channel:list()])."]).await?;
    ensure!(killed.trim() != "0", "there was no channel");
    Ok(())
}

async fn kill_queues(h: &mut Harness<'_>) -> Result<()> {
    // A quorum queue's process is registered under its virtual host's and its own name.
    let name = format!("{}_{}", h.vhost(), topology::COMMANDS);
    let order = format!(
        "length([exit(whereis(N), kill) || N <- registered(), lists:prefix(\"{name}\", atom_to_list(N))])."
    );
    let killed = h.rabbitmqctl(&["eval", &order]).await?;
    ensure!(killed.trim() != "0", "there is no process called {name}");
    Ok(())
}

async fn memory_alarm(h: &mut Harness<'_>) -> Result<()> {
    h.rabbitmqctl(&["set_vm_memory_high_watermark", "0.0000001"]).await.map(drop)
}

async fn memory_well(h: &mut Harness<'_>) -> Result<()> {
    h.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await.map(drop)
}

async fn disk_alarm(h: &mut Harness<'_>) -> Result<()> {
    h.rabbitmqctl(&["set_disk_free_limit", "100000000000000"]).await.map(drop)
}

async fn disk_well(h: &mut Harness<'_>) -> Result<()> {
    h.rabbitmqctl(&["set_disk_free_limit", "1GB"]).await.map(drop)
}

/// Nobody consumes, and few messages fit in.
async fn fill_queues(h: &mut Harness<'_>) -> Result<()> {
    while !h.workers.is_empty() {
        h.take_worker()?.kill().await?;
    }
    let vhost = h.vhost().to_owned();
    let pattern = format!("^{}", topology::COMMANDS);
    let limit = r#"{"max-length":20}"#;
    h.rabbitmqctl(&["set_policy", "-p", &vhost, "--apply-to", "queues", "small", &pattern, limit]).await?;
    let load = h.load()?;
    let mut last = load.accepted();
    wait::until("no queue takes any more", async || {
        sleep(Duration::from_millis(500)).await;
        let now = load.accepted();
        Ok(std::mem::replace(&mut last, now) == now)
    })
    .await
}

async fn empty_queues(h: &mut Harness<'_>) -> Result<()> {
    let vhost = h.vhost().to_owned();
    h.rabbitmqctl(&["clear_policy", "-p", &vhost, "small"]).await?;
    h.start_worker()?;
    h.start_worker()
}

/// What is in a queue goes with it, by the operator's own hand; so the operator waits until it is empty, and the
/// load begins again when it is gone.
async fn delete_queue(h: &mut Harness<'_>) -> Result<()> {
    h.load()?.pause().await?;
    let index = h.dice.below(u64::from(h.site.rabbit.partitions)) as u16;
    let queue = Partition { low: false, index, alternate: false }.queue();
    let accepted = h.load()?.accepted() as i64;
    wait::until("everything is applied", async || {
        Ok(h.site.count("SELECT count(*) FROM receipts").await? >= accepted)
    })
    .await?;
    let channel = h.site.link.channel().await?;
    channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await?;
    h.load()?.resume();
    Ok(())
}

/// Nobody but the program declares it again: a worker that finds it gone, or the API whose messages come back.
async fn declared(h: &mut Harness<'_>) -> Result<()> {
    for partition in h.site.partitions().await? {
        wait::until("the queue is there again, and consumed", async || {
            Ok(h.site.link.find(&partition.queue()).await?.is_some_and(|depth| depth.consumers > 0))
        })
        .await?;
    }
    wait::until("somebody says that it was gone, and has bound it", async || {
        Ok(h.cluster.log_tails(usize::MAX).contains("What was in it is lost"))
    })
    .await
}

/// The broker waits a second for acknowledgements and looks twice a second; then Postgres makes the workers wait.
async fn ack_timeout(h: &mut Harness<'_>) -> Result<()> {
    set_ack_timeout(h, 1_000, 500).await?;
    // Channels learn of it when they are made.
    let vhost = h.vhost().to_owned();
    h.rabbitmqctl(&["close_all_connections", "--vhost", &vhost, "new time-outs"]).await?;
    let before = h.heads().await?;
    wait::until("consumers are back", async || {
        Ok(h.heads().await?.iter().zip(&before).all(|(a, b)| a.1 > b.1))
    })
    .await?;
    let mut session = h.session().await?;
    sqlx::raw_sql("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").execute(&mut session).await?;
    h.kept.push(Box::new((session, h.cluster.log_lines("worker"))));
    Ok(())
}

async fn no_ack_timeout(h: &mut Harness<'_>) -> Result<()> {
    // Half an hour and a minute are the broker's own.
    set_ack_timeout(h, 1_800_000, 60_000).await?;
    let kept = h.kept.pop().context("no session is kept")?;
    let Ok(kept) = kept.downcast::<(sqlx::PgConnection, usize)>() else { bail!("something else is kept") };
    let (session, lines) = *kept;
    session.close().await?;
    // A worker learns of it when its batch is done and it acknowledges.
    wait::until("a worker has met the time-out", async || Ok(h.cluster.log_lines("worker") > lines)).await
}

async fn set_ack_timeout(h: &Harness<'_>, timeout_ms: u32, tick_ms: u32) -> Result<()> {
    let order = format!(
        "application:set_env(rabbit, consumer_timeout, {timeout_ms}), \
         application:set_env(rabbit, channel_tick_interval, {tick_ms})."
    );
    h.rabbitmqctl(&["eval", &order]).await.map(drop)
}
