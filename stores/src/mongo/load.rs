//! How busy MongoDB is, for upkeep that gives way.

use mongodb::Database;
use mongodb::bson::{Bson, Document, doc};

use super::upkeep::{Answer, ask};
use crate::StoreError;

/// What a look at the server shows.
#[derive(Debug, Clone, PartialEq)]
pub enum Load {
    /// So many operations work or wait for their turn.
    Clients(i64),
    /// The server does not tell: why.
    Unknown(String),
}

/// Looks how busy the server is.
pub async fn read(database: &Database) -> Result<Load, StoreError> {
    // What costs the server most to tell is of no use here.
    let command = doc! {
        "serverStatus": 1, "globalLock": 1, "metrics": 0, "wiredTiger": 0, "locks": 0, "tcmalloc": 0, "repl": 0,
    };
    let answer = ask(&database.client().database("admin"), "look how busy the server is", command).await?;
    Ok(match answer {
        Answer::Done(status) => of(&status),
        Answer::Refused(words) => Load::Unknown(words),
    })
}

/// The readers and writers at work, which count the server's own threads not, and the queue of those who wait.
fn of(status: &Document) -> Load {
    let number = |part: &str, name: &str| {
        let part = status.get_document("globalLock").ok()?.get_document(part).ok()?;
        match part.get(name)? {
            Bson::Int32(number) => Some(i64::from(*number)),
            Bson::Int64(number) => Some(*number),
            Bson::Double(number) => Some(*number as i64),
            _ => None,
        }
    };
    let working = number("activeClients", "readers").zip(number("activeClients", "writers"));
    let waiting = number("currentQueue", "total");
    match (working, waiting) {
        (None, None) => Load::Unknown("its serverStatus has no globalLock figures".to_owned()),
        // A server may tell the one and not the other.
        (working, waiting) => {
            let working = working.map_or(0, |(readers, writers)| readers + writers);
            Load::Clients(working + waiting.unwrap_or(0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_tell_is_not_taken_for_an_idle_one() {
        let whole = doc! { "globalLock": {
            "activeClients": { "total": 9_i64, "readers": 2_i32, "writers": 3_i64 },
            "currentQueue": { "total": 4_i32, "readers": 4, "writers": 0 },
        } };
        assert_eq!(of(&whole), Load::Clients(9));
        let half = doc! { "globalLock": { "currentQueue": { "total": 4.0 } } };
        assert_eq!(of(&half), Load::Clients(4));
        for lacks in [doc! {}, doc! { "globalLock": {} }, doc! { "globalLock": { "activeClients": 3 } }] {
            assert!(matches!(of(&lacks), Load::Unknown(why) if why.contains("globalLock")), "{lacks}");
        }
    }
}
