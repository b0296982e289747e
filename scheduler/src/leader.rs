//! Who leads: takes the lead when it is free, works while it lasts, gives it back.

use std::time::Duration;

use taskflow_core::metric;
use taskflow_stores::postgres::leader;
use taskflow_stores::postgres::silence;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, crash, observe};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::emptied;
use crate::engine::Engine;
use crate::led;

/// Stands by or leads, until `stop`.
pub(crate) async fn run(engine: &Engine, stop: &CancellationToken) {
    let complaints = Seldom::new();
    let gauge = observe::gauge(&metric::SCHEDULER_LEADS, &[]);
    gauge.set(0.0);
    while !stop.is_cancelled() {
        let asked = Instant::now();
        match take(engine).await {
            Ok(Some(epoch)) => {
                tracing::info!(epoch, host = engine.host, "This scheduler leads.");
                gauge.set(1.0);
                crash::point("led");
                tokio::select! {
                    () = engine.lead(epoch, asked + engine.lease(), stop) => {}
                    never = emptied::watch(engine) => match never {},
                }
                gauge.set(0.0);
                led::hide();
                let left = leader::leave(&engine.stores.postgres, engine.holder, epoch);
                if let Err(error) = silence::within(engine.lease(), "leave the scheduler's lead", left).await
                {
                    tracing::debug!(%error, "The lead could not be given back; it runs out.");
                }
            }
            Ok(None) => {}
            Err(error) => {
                if complaints.due().is_some() {
                    tracing::warn!(%error, "The scheduler can't reach Postgres; it tries on.");
                }
            }
        }
        let pause = stand_by(engine.lease());
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn take(engine: &Engine) -> Result<Option<i64>, StoreError> {
    let lease_ms = engine.lease().as_millis() as i64;
    let taken = leader::take(&engine.stores.postgres, engine.holder, &engine.host, lease_ms);
    silence::within(engine.lease(), "take the scheduler's lead", taken).await
}

/// Time between two tries to take the lead: several in a lease, and never in step with others.
fn stand_by(lease: Duration) -> Duration {
    (lease / 5).min(Duration::from_secs(1)).mul_f64(rand::random_range(0.6..=1.0))
}
