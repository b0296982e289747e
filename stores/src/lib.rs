//! The four stores of TaskFlow, one folder each: connection, health, and the statements, each a function that says
//! in the domain's words what it does. Beside them, what every role needs to live with stores that fail: back-off, tasks
//! that are started again, log lines that are not repeated, metrics, the clock.
//!
//! Stores do not know each other: joining two of them is a role's business, but for [`declare`], which all roles need.
//! What an error means for whoever called is decided in one place, [`error`].

pub mod backoff;
pub mod clock;
pub mod crash;
pub mod declare;
pub mod error;
pub mod mongo;
pub mod observe;
pub mod postgres;
pub mod rabbit;
pub mod redis;
pub mod runtime_pulse;
pub mod seldom;
pub mod share;
pub mod spool;
pub mod supervise;
pub mod vitals;

pub use error::{Kind, StoreError};
