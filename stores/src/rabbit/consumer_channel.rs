//! The channel of a consumer, which goes wherever its owner does.
//!
//! The client library ties a consumer's end to the handle that it gives out. Who gives up before there is one, in the
//! middle of `basic.consume`, leaves a consumer that nobody reads: the broker fills its prefetch and waits for
//! acknowledgements for as long as the connection lasts, and whoever has the queue next waits for it to leave.

use std::ops::Deref;
use std::time::Duration;

use futures_util::FutureExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::failed;
use super::link::Link;
use crate::StoreError;

/// A channel with one consumer, closed when it is dropped, at whatever point. It has to be dropped before the consumer:
/// keep the two in a struct or a tuple, in this order. Closed first, the consumer is not cancelled, which would give what
/// it holds back out of order.
pub(super) struct ConsumerChannel(Channel);

impl ConsumerChannel {
    pub(super) async fn open(link: &Link, prefetch: u16) -> Result<Self, StoreError> {
        let channel = Self(link.channel().await?);
        let qos = channel.basic_qos(prefetch, BasicQosOptions::default());
        qos.await.map_err(failed("set the prefetch"))?;
        Ok(channel)
    }

    /// Begins to consume. `call` is what an error calls it.
    pub(super) async fn consume(
        &self,
        queue: &str,
        options: BasicConsumeOptions,
        call: &'static str,
    ) -> Result<Consumer, StoreError> {
        let consumer = self.basic_consume(queue.into(), "".into(), options, FieldTable::default());
        consumer.await.map_err(failed(call))
    }

    pub(super) fn is_open(&self) -> bool {
        self.status().connected()
    }

    /// Closes it: what was not acknowledged goes back to the queue. `false` if the broker does not say so in time.
    pub(super) async fn close(&self, patience: Duration) -> bool {
        tokio::time::timeout(patience, self.0.close(200, "bye".into())).await.is_ok()
    }
}

impl Deref for ConsumerChannel {
    type Target = Channel;

    fn deref(&self) -> &Channel {
        &self.0
    }
}

impl Drop for ConsumerChannel {
    /// The first look at the close writes it; nobody waits for the answer.
    fn drop(&mut self) {
        let _ = self.0.close(200, "bye".into()).now_or_never();
    }
}
