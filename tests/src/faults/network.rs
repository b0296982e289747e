//! The network between the program and its stores: slow, losing packets, cut, half-open, deaf in one direction.

use std::time::Duration;

use anyhow::Result;
use taskflow_servers::Kind::{self, MongoDb, Postgres, RabbitMq, Redis};

use super::{Fault, act, nothing};
use crate::harness::Harness;
use crate::proxy::Flow;

const ALL: &[Kind] = &Kind::ALL;

pub static FAULTS: &[Fault] = &[
    Fault::new("network: 20 ms to every store", act!(slow), act!(well)).wired(ALL).applies().takes(),
    Fault::new("network: one packet of fifty lost", act!(lossy), act!(well)).wired(ALL).applies().takes(),
    Fault::new("network: all connections cut, again and again", act!(cut), act!(nothing))
        .wired(ALL)
        .hold(0.0, 0.0),
    Fault::new("network: slow MongoDB (0.5 s)", act!(very_slow), act!(well))
        .wired(&[MongoDb])
        .applies()
        .takes(),
    Fault::new("network: slow Redis (0.5 s)", act!(very_slow), act!(well)).wired(&[Redis]).applies().takes(),
    Fault::new("network: slow Postgres (0.1 s)", act!(rather_slow), act!(well))
        .wired(&[Postgres])
        .applies()
        .takes(),
    Fault::new("network: one worker of three is cut off from all stores", act!(silence), act!(well))
        .prepared(act!(outlying_worker))
        .applies()
        .takes()
        .one_worker(),
    Fault::new("network: one worker of three is cut off from Postgres", act!(silent_postgres), act!(well))
        .prepared(act!(outlying_worker))
        .applies()
        .takes()
        .one_worker(),
    Fault::new("network: one worker of three is cut off from the broker", act!(silent_broker), act!(well))
        .prepared(act!(outlying_worker))
        .applies()
        .takes()
        .one_worker(),
    Fault::new("network: silence from Postgres", act!(silence), act!(well))
        .wired(&[Postgres])
        .stands()
        .takes()
        .hold(3.0, 60.0),
    Fault::new("network: silence from the broker", act!(silence), act!(well))
        .wired(&[RabbitMq])
        .stands()
        .hold(3.0, 60.0),
    Fault::new("network: silence from MongoDB", act!(silence), act!(well))
        .wired(&[MongoDb])
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 60.0),
    Fault::new("network: silence from Redis", act!(silence), act!(well))
        .wired(&[Redis])
        .applies()
        .takes()
        .falls_behind()
        .hold(3.0, 60.0),
    Fault::new("network: confirms that never come", act!(deaf), act!(well_again))
        .wired(&[RabbitMq])
        .hold(3.0, 30.0),
    Fault::new("network: half-open connections to Postgres", act!(forget), act!(nothing))
        .wired(&[Postgres])
        .hold(0.0, 0.0)
        .half_open(),
    Fault::new("network: half-open connections to the broker", act!(forget), act!(nothing))
        .wired(&[RabbitMq])
        .hold(0.0, 0.0)
        .half_open(),
    Fault::new("network: half-open connections to MongoDB", act!(forget), act!(nothing))
        .wired(&[MongoDb])
        .hold(0.0, 0.0),
    Fault::new("network: half-open connections to Redis", act!(forget), act!(nothing))
        .wired(&[Redis])
        .hold(0.0, 0.0),
];

impl Fault {
    /// It lasts longer than its lease, and than the broker's patience with it.
    const fn one_worker(self) -> Self {
        Self { hold: (6.0, 40.0), within: Duration::from_secs(10), ..self }
    }

    /// Nobody is told, so time-outs have to run out first.
    const fn half_open(self) -> Self {
        Self { within: Duration::from_secs(60), ..self }
    }
}

fn behave(h: &Harness<'_>, there: Flow, back: Flow) {
    h.wires.iter().for_each(|(_, wire)| wire.behave(there, back));
}

async fn well(h: &mut Harness<'_>) -> Result<()> {
    behave(h, Flow::default(), Flow::default());
    Ok(())
}

async fn slow(h: &mut Harness<'_>) -> Result<()> {
    let half = Flow { delay: Duration::from_millis(10), ..Flow::default() };
    behave(h, half, half);
    Ok(())
}

async fn lossy(h: &mut Harness<'_>) -> Result<()> {
    // Linux sends a lost packet again after 200 ms at the soonest.
    let lossy = Flow { one_lost_of: 50, again: Duration::from_millis(200), ..Flow::default() };
    behave(h, lossy, lossy);
    Ok(())
}

/// The one wire that the fault asks for.
async fn very_slow(h: &mut Harness<'_>) -> Result<()> {
    behave(h, Flow { delay: Duration::from_millis(500), ..Flow::default() }, Flow::default());
    Ok(())
}

async fn rather_slow(h: &mut Harness<'_>) -> Result<()> {
    behave(h, Flow { delay: Duration::from_millis(100), ..Flow::default() }, Flow::default());
    Ok(())
}

/// A worker beside the two others, the only one with wires to the stores.
async fn outlying_worker(h: &mut Harness<'_>) -> Result<()> {
    let of_all = h.env.len();
    for kind in ALL {
        h.lay_wire(*kind).await?;
    }
    let own = h.env.split_off(of_all);
    let own: Vec<(&str, &str)> = own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    h.start_worker_with(&own)
}

async fn silent_postgres(h: &mut Harness<'_>) -> Result<()> {
    silence_from(h, Postgres)
}

async fn silent_broker(h: &mut Harness<'_>) -> Result<()> {
    silence_from(h, RabbitMq)
}

fn silence_from(h: &Harness<'_>, kind: Kind) -> Result<()> {
    let silent = Flow { silent: true, ..Flow::default() };
    h.wire(kind)?.behave(silent, silent);
    Ok(())
}

async fn cut(h: &mut Harness<'_>) -> Result<()> {
    for _ in 0..if h.long { 50 } else { 5 } {
        h.wires.iter().for_each(|(_, wire)| wire.cut());
        let pause = h.dice.below(600);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}

async fn silence(h: &mut Harness<'_>) -> Result<()> {
    let silent = Flow { silent: true, ..Flow::default() };
    behave(h, silent, silent);
    Ok(())
}

/// What is published arrives; no answer comes back. When the wire is well again the old connections are gone.
async fn deaf(h: &mut Harness<'_>) -> Result<()> {
    behave(h, Flow::default(), Flow { silent: true, ..Flow::default() });
    Ok(())
}

async fn well_again(h: &mut Harness<'_>) -> Result<()> {
    h.wires.iter().for_each(|(_, wire)| wire.cut());
    well(h).await
}

async fn forget(h: &mut Harness<'_>) -> Result<()> {
    h.wires.iter().for_each(|(_, wire)| wire.forget());
    Ok(())
}
