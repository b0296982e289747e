//! One maker a key: whoever lacks an answer that somebody is making already waits for that one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use taskflow_core::window::Position;
use taskflow_stores::redis::document::Document;

use crate::problem::Problem;

/// How long making an answer may take: longer than Postgres lets a statement by default.
const LONGEST: Duration = Duration::from_secs(120);

type Made = Result<Arc<Document>, Problem>;
type Flight = Shared<BoxFuture<'static, Made>>;

#[derive(Default, Clone)]
pub(crate) struct Flights(Arc<Mutex<HashMap<String, Flight>>>);

/// Takes a flight off the board when it has ended, however it ended.
struct Landing {
    flights: Flights,
    key: String,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.flights.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Flights {
    /// An answer that has seen position `need` at least, which was the present after the caller had asked. A flight that
    /// began before that may be too old: then the next one is waited for.
    pub(crate) async fn fly(
        &self,
        key: &str,
        need: Position,
        make: impl Future<Output = Made> + Send + 'static,
    ) -> Made {
        let mut make = Some(make);
        loop {
            let Some((flight, own)) = self.board(key, &mut make) else {
                return Err(Problem::unavailable("the answer could not be made"));
            };
            match flight.await {
                Ok(document) if !own && document.position < need => {}
                made => return made,
            }
        }
    }

    /// The flight that is on its way, or else one's own.
    fn board(
        &self,
        key: &str,
        make: &mut Option<impl Future<Output = Made> + Send + 'static>,
    ) -> Option<(Flight, bool)> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key) {
            return Some((flight.clone(), false));
        }
        let (make, landing) = (make.take()?, Landing { flights: self.clone(), key: key.to_owned() });
        // A task of its own: the one who asked first may go away, the others still wait.
        let task = tokio::spawn(async move {
            let _landing = landing;
            // With an end: all who ask for the same wait for it, and whoever makes it has one of a few places.
            tokio::time::timeout(LONGEST, make)
                .await
                .unwrap_or_else(|_| Err(Problem::unavailable("the answer took too long to make")))
        });
        let flight = async move {
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "Making an answer failed.");
                Err(Problem::unavailable("the answer could not be made"))
            })
        };
        let flight = flight.boxed().shared();
        flights.insert(key.to_owned(), flight.clone());
        Some((flight, true))
    }
}
