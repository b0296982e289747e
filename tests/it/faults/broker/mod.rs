//! What the broker does with messages that are given back, and what a client of it meets. The rules of
//! `stores/src/rabbit/consume.rs` and `publish.rs` rest on this; try it on every version of the broker that is named.

mod connection;
mod order;
mod support;

use libtest_mimic::Trial;
use taskflow_tests::Result;

use self::support::Outcome;
use crate::{with_vhost, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_vhost("broker: a release gives back in order", async |url| {
            lift(order::a_release_gives_back_in_order(&url).await)
        }),
        with_vhost("broker: a dropped subscription gives back in order", async |url| {
            lift(order::a_dropped_subscription_gives_back_in_order(&url).await)
        }),
        with_vhost("broker: a subscription that is given up leaves no consumer", async |url| {
            lift(order::a_subscription_that_is_given_up_leaves_no_consumer(&url).await)
        }),
        with_vhost("broker: a cut wire gives back in order", async |url| {
            lift(order::a_cut_wire_gives_back_in_order(&url).await)
        }),
        with_vhost("broker: a silent holder gives back in order", async |url| {
            lift(order::a_silent_holder_gives_back_in_order(&url).await)
        }),
        with_vhost("broker: a closed connection gives back in order", async |url| {
            lift(order::a_closed_connection_gives_back_in_order(&url).await)
        }),
        with_vhost("broker: a successor waits for the holder", async |url| {
            lift(order::a_successor_waits_for_the_holder(&url).await)
        }),
        with_vhost("broker trap: a waiting consumer breaks the order", async |url| {
            lift(order::a_waiting_consumer_breaks_the_order(&url).await)
        }),
        with_vhost("broker trap: a smaller prefetch breaks the order", async |url| {
            lift(order::a_smaller_prefetch_breaks_the_order(&url).await)
        }),
        with_vhost("broker trap: a cancel breaks the order", async |url| {
            lift(order::a_cancel_breaks_the_order(&url).await)
        }),
        with_vhost("broker: what is there is taken at once", async |url| {
            lift(order::what_is_there_is_taken_at_once(&url).await)
        }),
        with_vhost("broker: what no queue takes is told apart", async |url| {
            lift(connection::what_no_queue_takes_is_told_apart(&url).await)
        }),
        with_vhost("broker: a full queue refuses", async |url| {
            lift(connection::a_full_queue_refuses(&url).await)
        }),
        with_vhost("broker: a closed channel is made anew", async |url| {
            lift(connection::a_closed_channel_is_made_anew(&url).await)
        }),
        with_vhost("broker: a wrong slot ends in the dead letters", async |url| {
            lift(connection::a_wrong_slot_ends_in_the_dead_letters(&url).await)
        }),
        with_vhost("broker: any message can be buried", async |url| {
            lift(connection::any_message_can_be_buried(&url).await)
        }),
        with_vhost("broker: a frozen wire is noticed", async |url| {
            lift(connection::a_frozen_wire_is_noticed(&url).await)
        }),
        with_vhost("broker: a broken wire loses nothing", async |url| {
            lift(connection::a_broken_wire_loses_nothing(&url).await)
        }),
        with_world("broker: a restart loses nothing", async |world| {
            let url = world.vhost().await?;
            let restart = async || {
                let mut servers = world.servers.lock().await;
                servers.rabbitmq.kill().await;
                servers.rabbitmq.restart().await.map_err(|error| format!("{error:#}").into())
            };
            lift(connection::a_restarted_broker_loses_nothing(&url, restart).await)
        }),
        with_world("broker: an alarm refuses publishers at once", async |world| {
            let url = world.vhost().await?;
            let alarm = async |on| {
                let mark = if on { "0.0000001" } else { "0.4" };
                let servers = world.servers.lock().await;
                let set = servers.rabbitmq.rabbitmqctl(&["set_vm_memory_high_watermark", mark]).await;
                set.map(drop).map_err(|error| format!("{error:#}").into())
            };
            lift(connection::an_alarm_refuses_at_once(&url, alarm).await)
        }),
    ]
}

fn lift(outcome: Outcome) -> Result {
    outcome.map_err(|error| anyhow::anyhow!("{error}"))
}
