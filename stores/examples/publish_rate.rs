//! How fast one task publishes with confirms, and what a lone publish takes.
//!
//! `cargo run --release -p taskflow-stores --example publish_rate -- amqp://user:password@host:port/vhost [count]`
//! The virtual host should be one for tests: the messages stay in its partition queues.

use std::error::Error;
use std::time::Instant;

use taskflow_core::partition::Course;
use taskflow_stores::rabbit::Settings;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use taskflow_stores::rabbit::topology::{self, SLOTS};
use tokio_util::sync::CancellationToken;

const BODY: usize = 400;
const GROUP: usize = 500;

fn message(number: usize) -> Message {
    let slot = (number % 256) as u8;
    Message {
        exchange: SLOTS.into(),
        routing_key: format!("{slot:02x}").into(),
        body: vec![b'x'; BODY],
        properties: lapin::BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type("application/cloudevents+json".into())
            .with_message_id(format!("00000000-0000-0000-0000-{number:012}").into()),
        mandatory: true,
        lane: slot,
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("give the address of a broker")?;
    let count: usize = arguments.next().map_or(Ok(200_000), |count| count.parse())?;
    let settings = Settings { url, ..Settings::default() };
    let stop = CancellationToken::new();
    let link = Link::start(&settings, "publish_rate", stop.clone())?;
    let start = Instant::now();
    topology::declare(&link, &settings, &Course::settled(1, settings.layout())).await?;
    println!("declared in {:?}", start.elapsed());
    let start = Instant::now();
    topology::declare(&link, &settings, &Course::settled(1, settings.layout())).await?;
    println!("declared again in {:?}", start.elapsed());
    let publisher = Publisher::new(link.clone(), &settings);
    let mut lone = Vec::new();
    for number in 0..200 {
        let start = Instant::now();
        publisher.publish(message(number)).await?;
        lone.push(start.elapsed());
    }
    lone.sort();
    println!("a lone publish: p50 {:?}, p99 {:?}", lone[100], lone[198]);

    for window in [1, 4] {
        let start = Instant::now();
        let mut groups = std::collections::VecDeque::new();
        let mut number = 0;
        while number < count || !groups.is_empty() {
            if number < count {
                let mut group = Vec::with_capacity(GROUP);
                for _ in 0..GROUP {
                    group.push(publisher.send(message(number)).await?);
                    number += 1;
                }
                groups.push_back(group);
            }
            if groups.len() >= window || number >= count {
                for pending in groups.pop_front().unwrap_or_default() {
                    pending.confirmed().await?;
                }
            }
        }
        let took = start.elapsed();
        println!(
            "{count} in groups of {GROUP}, {window} on their way: {:.0}/s",
            count as f64 / took.as_secs_f64()
        );
    }
    stop.cancel();
    Ok(())
}
