//! MongoDB: the database in the directory format of `mongodump`, read by the driver.

pub mod documents;
pub mod dump;
