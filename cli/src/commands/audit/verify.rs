//! `taskflow audit verify`: from seal to seal, through everything or what a time bounds.

use std::io::IsTerminal;
use std::process::ExitCode;

use taskflow_core::audit::copies::Trusted;
use taskflow_scheduler::audit::files::Outside;
use taskflow_scheduler::audit::verify::{Error, Report, SEALS_TOGETHER, Verifier};
use taskflow_stores::clock;
use taskflow_stores::postgres::audit_seals;

use super::{VerifyOptions, public_keys, stores};
use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            Error::File(error) => Self::failed(error.to_string()),
        }
    }
}

pub(super) async fn run(options: VerifyOptions, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let keys = public_keys(settings)?;
    let stores = stores(settings).await?;
    let outside = Outside::new(&settings.audit.seals_folder);
    let outside = outside.is_there().then_some(outside);
    let now = clock::now();
    let mut verifier = Verifier::new(stores.clone(), keys, outside, now).await?;
    let last = verifier.last().await?;
    let bounds = (options.from.unwrap_or_default(), options.to.unwrap_or(now));
    let (before, behind) = audit_seals::around(&stores.postgres, bounds.0, bounds.1).await?;
    let (from, to) = (before.unwrap_or(0), behind.unwrap_or(last).min(last));
    if last == 0 {
        return Err(Exit::failed(
            "there are no seals: the scheduler's job audit.seal makes one every minute, if it has a key \
             (`taskflow audit keygen`, `taskflow jobs show audit.seal`)",
        ));
    }
    let progress = std::io::stderr().is_terminal() && !json;
    let (mut first, mut previous): (i64, Option<Trusted>) = (from.max(1), None);
    while first <= to {
        let end = to.min(first + SEALS_TOGETHER - 1);
        for seal in verifier.seals(first, end, previous.as_ref()).await? {
            if seal.seal.number > from {
                verifier.stretch(previous.as_ref().map(|seal| &seal.seal), &seal.seal).await?;
            }
            if progress {
                eprint!(
                    "\rseal {} of {to}, {} events proved ",
                    seal.seal.number,
                    verifier.report().counts.proved
                );
            }
            previous = Some(seal);
        }
        first = end + 1;
    }
    if to == last && options.to.is_none() {
        verifier.since_newest().await?;
    }
    if progress {
        eprintln!();
    }
    let report = verifier.end();
    let code = if report.found.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) };
    if json {
        let text = serde_json::to_string(&report).map_err(|error| Exit::failed(error.to_string()))?;
        println!("{text}");
    } else {
        print(&report);
    }
    Ok(code)
}

fn print(report: &Report) {
    let Report { seals, counts, pending, findings, found, notes } = report;
    println!(
        "{seals} seals, {} batches: {} events are as they were sealed ({} of them erased, {} undone by a restore), \
         {} are gone as they may be, {} are from before there were seals, {pending} batches are on their way",
        counts.batches, counts.proved, counts.erased, counts.undone, counts.expired, counts.unsealed
    );
    notes.iter().for_each(|note| println!("note: {note}"));
    findings.iter().for_each(|finding| println!("{finding}"));
    if found.is_empty() {
        println!("nothing is wrong");
    } else {
        let kinds: Vec<String> = found.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        println!("found: {}; docs/audit.md says what to do", kinds.join(", "));
    }
}
