//! The broker's objects as the database says they are. Two stores meet here, since every role needs it: at its start,
//! and when somebody has deleted what must be there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskflow_core::metric;
use taskflow_core::partition::Course;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::postgres::PgPool;
use crate::postgres::{layout, silence};
use crate::rabbit::link::Link;
use crate::rabbit::{Settings, topology};
use crate::{StoreError, crash, observe};

/// The longest that either store may take. While the broker is at it nobody takes a step of a change.
const LONGEST: Duration = Duration::from_secs(60);
/// Between two times that the same objects are declared again.
const REST: Duration = Duration::from_secs(1);

/// Declares what the database says there is; a fresh one takes the settings.
///
/// # Errors
/// [`crate::Kind::Bug`] when an object exists in another form, or the database's schema is not current.
pub async fn declare(postgres: &PgPool, link: &Link, settings: &Settings) -> Result<Course, StoreError> {
    let hold = Box::pin(layout::hold(postgres, settings.layout()));
    let hold = silence::within(LONGEST, "hold the partitions as they are", hold).await?;
    let declared = tokio::time::timeout(LONGEST, topology::declare(link, settings, &hold.course));
    let late = |_| Err(StoreError::unavailable("rabbitmq", "declare the queues", "no answer in time"));
    declared.await.unwrap_or_else(late)?;
    Ok(hold.course)
}

/// Says once if the settings name other numbers than this deployment has.
pub fn compare(settings: &Settings, course: &Course) {
    let (set, there) = (settings.layout(), course.to);
    if set.normal.partitions != there.normal.partitions || set.low.partitions != there.low.partitions {
        tracing::warn!(
            settings = %set, deployment = %there,
            "amqp.partitions and amqp.low_partitions are only for a fresh deployment; this one has other numbers, which count. `taskflow partitions set` changes them."
        );
    }
}

/// Declares again what somebody has deleted while the system runs. Clones share it.
#[derive(Clone, Default)]
pub struct Mender(Arc<Inner>);

#[derive(Default)]
struct Inner {
    wanted: Notify,
    /// What is missing, as whoever met it says.
    missing: Mutex<Option<String>>,
}

impl Mender {
    /// Says that something is missing. It is declared again soon; nobody waits for it here.
    pub fn missing(&self, what: &str) {
        self.missed().get_or_insert_with(|| what.to_owned());
        self.0.wanted.notify_one();
    }

    /// Declares when it is wanted, until `stop`.
    pub async fn run(&self, postgres: &PgPool, link: &Link, settings: &Settings, stop: &CancellationToken) {
        loop {
            crash::point("mender");
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.0.wanted.notified() => {}
            }
            let what = self.missed().clone().unwrap_or_default();
            match declare(postgres, link, settings).await {
                Ok(_) => {
                    self.missed().take();
                    observe::counter(&metric::DECLARED_AGAIN, &[]).increment(1);
                    tracing::error!(
                        missing = what,
                        "Something was deleted on the broker; it is declared again. What was in it is lost."
                    );
                }
                Err(error) => {
                    tracing::warn!(missing = what, %error, "What is missing on the broker can't be declared yet.");
                    self.0.wanted.notify_one();
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(REST) => {}
            }
        }
    }

    fn missed(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.0.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
