//! The domain of TaskFlow: what a command is, what it does, and what is said about it.
//!
//! Nothing here does I/O, waits, or reads a clock: time, ids and retention are arguments. So every rule can be
//! tested by properties, and a batch of commands gives the same result as the commands one by one.
//!
//! The way of a command through this crate: [`envelope`] turns bytes into a [`command::Command`]; [`batch`] says
//! what must be loaded for a batch ([`batch::needs`]) and folds it ([`batch::fold`]) over the loaded
//! [`state::State`] through [`decide`]; out come [`receipt::Receipt`]s, changed entities and [`event::Event`]s.

pub mod api_key;
pub mod audit;
pub mod backup;
pub mod batch;
pub mod cache_key;
pub mod cache_tag;
pub mod canary;
pub mod change;
pub mod command;
pub mod dead_letter;
pub mod decide;
pub mod early;
pub mod envelope;
pub mod etag;
pub mod event;
pub mod fault;
pub mod heat;
pub mod hex;
mod item;
pub mod job;
pub mod metric;
pub mod partition;
pub mod pause;
pub mod permission;
pub mod receipt;
pub mod retention;
pub mod schema;
pub mod slot;
pub mod state;
pub mod stream;
pub mod system_event;
mod task;
pub mod task_page;
mod user;
pub mod wait;
pub mod window;

pub use batch::{Folded, Item, fold, needs};
pub use command::{Body, Command};
pub use event::Event;
pub use fault::Fault;
pub use receipt::{Code, Outcome, Receipt};
pub use state::{State, Task, User};
