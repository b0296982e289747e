//! Backups as people read them.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use taskflow_backup::Manifest;
use taskflow_backup::vault::{Found, Proof};

/// Bytes in a unit that fits.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

pub(super) fn row_json(found: &Found) -> Value {
    let manifest = found.good();
    json!({
        "id": found.id, "kind": found.kind, "takenat": found.taken_at, "state": found.state(),
        "bytes": manifest.map(Manifest::bytes),
        "through": manifest.and_then(|manifest| manifest.position.through),
        "encrypted": manifest.map(|manifest| !manifest.recipients.is_empty()),
        "needs": manifest.map(|manifest| &manifest.needs),
        "reason": manifest.and_then(|manifest| manifest.reason.as_ref()),
        "provenat": found.proof.as_ref().map(|proof| proof.at),
        "error": found.manifest.as_ref().err().map(|error| &error.text),
    })
}

pub(super) fn list(found: &[Found], now: DateTime<Utc>) {
    for one in found {
        let age = (now - one.taken_at).num_minutes();
        let age = match age {
            ..120 => format!("{age} min"),
            120..2_880 => format!("{} h", age / 60),
            _ => format!("{} d", age / 1_440),
        };
        let bytes = one.good().map_or_else(String::new, |manifest| size(manifest.bytes()));
        println!("{:<52} {age:>8} {bytes:>12}  {}", one.id, one.state());
        if let Err(error) = &one.manifest {
            println!("    {error}");
        }
    }
    if found.iter().any(|one| one.state() == "unproven") {
        println!("unproven: no drill has restored it yet (`taskflow jobs run backup.drill`)");
    }
}

/// One line about a backup that was made.
pub(super) fn made(manifest: &Manifest) -> String {
    let took = (manifest.ended_at - manifest.begun_at).num_milliseconds() as f64 / 1_000.0;
    let mut line = format!(
        "{}: {} in {} files ({} of content), {took:.1} s",
        manifest.id,
        size(manifest.bytes()),
        manifest.files.len(),
        size(manifest.content_bytes())
    );
    for note in &manifest.notes {
        line.push_str("\n    ");
        line.push_str(note);
    }
    line
}

pub(super) fn manifest(manifest: &Manifest, proof: Option<&Proof>) {
    println!("{}", manifest.id);
    println!(
        "  kind      {} of {} (server {}, schema {})",
        manifest.kind,
        manifest.database,
        manifest.server,
        manifest.schema.map_or_else(|| "?".to_owned(), |schema| schema.to_string())
    );
    println!(
        "  made      {} to {} by taskflow {}",
        time(manifest.begun_at),
        time(manifest.ended_at),
        manifest.program
    );
    let position = &manifest.position;
    if let (Some(from), Some(through)) = (position.from, position.through) {
        let how = if position.exact { "one moment" } else { "a window" };
        println!("  position  {} to {} ({how})", time(from), time(through));
    }
    if let Some(lsn) = position.lsn {
        println!("  log       {lsn}");
    }
    println!("  size      {} ({} of content)", size(manifest.bytes()), size(manifest.content_bytes()));
    match manifest.recipients.as_slice() {
        [] => println!("  encrypted no"),
        recipients => println!("  encrypted for {}", recipients.join(", ")),
    }
    match proof {
        Some(proof) => println!("  proven    {} in {:.1} s: {}", time(proof.at), proof.took_s, proof.detail),
        None => println!("  proven    no: no drill has restored it"),
    }
    if let Some(reason) = &manifest.reason {
        println!("  reason    {reason}");
    }
    for need in &manifest.needs {
        println!("  needs     {need}");
    }
    for note in &manifest.notes {
        println!("  note      {note}");
    }
    for (name, sum) in &manifest.sums {
        println!("  holds     {:>10} {name}", sum.count);
    }
    for file in &manifest.files {
        println!("  file      {:>12} {} {}", file.bytes, &file.sha256, file.path);
    }
    for line in &manifest.restore {
        println!("  restore   {line}");
    }
}
