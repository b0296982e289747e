//! `taskflow audit erase`: the order is written down first, with an event that tells of it; then the events are emptied,
//! in steps that can be repeated. An order is for what was told until it was given.

use std::process::ExitCode;

use chrono::TimeDelta;
use taskflow_core::system_event;
use taskflow_stores::clock;
use taskflow_stores::mongo::erasure;
use taskflow_stores::mongo::retention::Subject;
use taskflow_stores::postgres::audit_seals::{self, Erasure};
use taskflow_stores::postgres::{legal_holds, outbox, system_events};

use super::{EraseOptions, Whose, reason, stores};
use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// A worker's clock may be ahead of this machine's by so much: what it has told of the subject is from before the order.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(5);

pub(super) async fn run(options: EraseOptions, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let EraseOptions { whose: Whose { entity, actor }, why, author, yes } = options;
    let why = reason(&why)?;
    let (scope, subject, whose) = match (entity, actor) {
        (Some(id), _) => ("entity", id, Subject::Entity(id)),
        (None, Some(id)) => ("actor", id, Subject::Actor(id)),
        (None, None) => return Err(Exit::usage("name an --entity or an --actor")),
    };
    if !yes {
        return Err(Exit::usage("what is erased can't be brought back; say --yes if you mean it"));
    }
    let author = author.unwrap_or_else(crate::commands::pause::system_user);
    let stores = stores(settings).await?;
    let holds = legal_holds::list(&stores.postgres, false).await?;
    if let Some(hold) = holds.iter().find(|hold| hold.subject == subject) {
        return Err(Exit::failed(format!(
            "hold {} stands on {subject}: {}; nothing of it may be erased before the hold is released",
            hold.id, hold.why
        )));
    }
    let (id, now) = (clock::new_id(), clock::now());
    let newest = erasure::newest(&stores.mongo, whose).await?.filter(|newest| *newest < now + CLOCKS_DIFFER);
    let at = newest.map_or(now, |newest| newest.max(now));
    let order = Erasure { id, scope, subject, why, author: &author, at };
    let event = system_event::data_erased(id, &author, scope, subject, why, at);
    system_events::with_event(&stores.postgres, &event, async |connection| {
        audit_seals::order_erasure(connection, &order).await
    })
    .await?;
    let (mut erased, mut unsealed) = (0, 0);
    loop {
        let step = erasure::step(&stores.mongo, whose, at, clock::now()).await?;
        erased += step.erased;
        unsealed += step.unsealed;
        if !step.more {
            break;
        }
    }
    audit_seals::erased(&stores.postgres, id, erased + unsealed, clock::now()).await?;
    // What a batch has told and MongoDB has not yet would come with all its data; so does what was told meanwhile.
    let waiting = outbox::backlog(&stores.postgres).await?.0 > 0
        || system_events::tells_of(&stores.postgres, subject).await?
        || erasure::newest(&stores.mongo, whose).await?.is_some();
    if json {
        let told =
            serde_json::json!({ "id": id, "erased": erased, "unsealed": unsealed, "waiting": waiting });
        println!("{told}");
    } else {
        println!(
            "order {id}: {erased} events are erased, and {unsealed} from before there were seals are emptied"
        );
    }
    if waiting {
        eprintln!(
            "taskflow: some events are younger than the order, or on their way to MongoDB and may be about {subject}; \
             run this again when taskflow_outbox_pending is 0"
        );
        return Ok(ExitCode::from(FAILED));
    }
    Ok(ExitCode::SUCCESS)
}
