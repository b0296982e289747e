//! Backups of the four stores, and the way back.
//!
//! A backup is a folder in a [`place`] (a folder of this machine or a bucket) with a [`manifest`], which is written last:
//! without one a backup is not whole. [`vault`] is all of them. Files are [written](write) and [read](read) as streams:
//! compressed, encrypted where there are recipients, hashed before and after, in bounded memory whatever their size.
//! [`postgres`], [`mongo`] and [`redis`] make backups, [`restore`] brings them back, [`drill`] tries that.

mod checksum;
mod copy;
pub mod draft;
pub mod drill;
pub mod error;
pub mod journal;
pub mod keys;
pub mod manifest;
pub mod mongo;
pub mod place;
pub mod postgres;
pub mod progress;
pub mod read;
pub mod redis;
pub mod restore;
pub mod settings;
pub mod vault;
pub mod write;

pub use error::{Error, Result, Trouble};
pub use manifest::{Kind, Manifest};
pub use progress::Progress;
pub use settings::Settings;
pub use vault::Vault;
