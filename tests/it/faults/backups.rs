//! Backups and restores that are broken off, and backups that are not what they were: nothing half-made is ever taken for
//! whole, and every error names its file.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use taskflow_tests::backups::{Backups, documents, has_database, must_be_alike, own, rows, text};
use taskflow_tests::dice::Dice;
use taskflow_tests::promise::Stream;
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a backup that is damaged anywhere is refused by name, and nothing is restored", damaged),
        with_site("backups, restores and prunes that are killed leave nothing half that looks whole", killed),
    ]
}

pub(super) async fn filled(site: &Site) -> Result {
    let cluster = cluster(site)?;
    let worker = cluster.worker()?;
    Stream::start(site, 8, 30).end().await?;
    wait::until("every event is there", async || {
        let receipts = site.count("SELECT coalesce(sum(events), 0)::bigint FROM receipts").await?;
        Ok(receipts >= 240 && site.events().await?.len() as i64 >= receipts)
    })
    .await?;
    worker.stop().await
}

async fn damaged(site: Arc<Site>) -> Result {
    filled(&site).await?;
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let (dump, trail) = (backups.create("postgres").await?, backups.create("mongodb").await?);
    let events = format!("{}/event_logs.bson.zst", own(&site));
    for (id, file) in [(&dump, "database.dump.zst"), (&trail, events.as_str())] {
        let path = backups.path(id).join(file);
        let good = std::fs::read(&path)?;
        let refuse = async |word: &str| -> Result {
            let (code, said) = backups.refused(&["restore", id, "--into", "half"], &[]).await?;
            ensure!(code == Some(1) && said.contains(file) && said.contains(word), "{code:?} {said}");
            ensure!(!has_database(&site, "half").await?, "{word}: a database is there");
            ensure!(!has_database(&site, "half__restoring").await?, "{word}: half a database is there");
            ensure!(documents(&site, "half").await?.is_empty(), "{word}: collections are there");
            let (code, said) = backups.refused(&["backup", "verify", id], &[]).await?;
            ensure!(code == Some(1) && said.contains(file), "{code:?} {said}");
            Ok(())
        };
        let mut flipped = good.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 16;
        std::fs::write(&path, flipped)?;
        refuse("SHA-256").await?;
        std::fs::write(&path, &good[..good.len() - 7])?;
        refuse("cut off").await?;
        std::fs::remove_file(&path)?;
        refuse("is not there").await?;
        std::fs::write(&path, good)?;
        // A manifest of a version that is not there yet.
        let path = backups.path(id).join("manifest.json");
        let good = std::fs::read_to_string(&path)?;
        for (other, word) in [
            (good.replace("\"format\": 1", "\"format\": 2"), "form 2"),
            (good.replace("\"begun_at\"", "\"begun_it\""), "manifest.json"),
            (good[..good.len() - 100].to_owned(), "manifest.json"),
        ] {
            ensure!(other != good, "{word}: it is the same");
            std::fs::write(&path, other)?;
            let (code, said) = backups.refused(&["restore", id, "--into", "half"], &[]).await?;
            ensure!(code == Some(1) && said.contains(word) && said.contains(id.as_str()), "{code:?} {said}");
        }
        let room = ("restored_bytes", json!(1_u64 << 60), "make room");
        let mut unfit = vec![("server", json!("99.1.0"), "99.1.0")];
        // MongoDB's server may not tell how much room it has.
        unfit.extend((*id == dump).then_some(room));
        for (field, value, word) in unfit {
            std::fs::write(&path, sealed_with(&good, field, &value)?)?;
            let (code, said) = backups.refused(&["restore", id, "--into", "half"], &[]).await?;
            ensure!(code == Some(1) && said.contains(word), "{code:?} {said}");
            ensure!(!has_database(&site, "half__restoring").await?, "{word}: half a database is there");
            ensure!(documents(&site, "half").await?.is_empty(), "{word}: collections are there");
        }
        std::fs::write(&path, good)?;
    }
    // As it was, it is restored.
    backups.ask(&["restore", &dump, &trail, "--into", &format!("{}_r", own(&site))]).await?;
    Ok(())
}

/// A manifest with another value, and with the SHA-256 that it would bear then: over itself, with none and without white
/// space.
fn sealed_with(manifest: &str, field: &str, value: &Value) -> Result<String> {
    let known: Value = serde_json::from_str(manifest)?;
    let mut is_text = false;
    let compact: String = manifest
        .chars()
        .filter(|&char| {
            is_text ^= char == '"';
            is_text || !char.is_ascii_whitespace()
        })
        .collect();
    let with = |text: &str, field: &str, from: &Value, to: &Value| -> Result<String> {
        let [from, to] = [from, to].map(|value| format!("\"{field}\":{value}"));
        ensure!(text.matches(&from).count() == 1, "{from} is not there once: {text}");
        Ok(text.replace(&from, &to))
    };
    let unsealed = with(&compact, "seal", &known["seal"], &json!(""))?;
    let changed = with(&unsealed, field, &known[field], value)?;
    let seal =
        Sha256::digest(&changed).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    with(&changed, "seal", &json!(""), &json!(seal))
}

/// When a command is killed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum At<'a> {
    /// At a step.
    Step(&'a str),
    /// After so many milliseconds, if it has not ended by then.
    After(u64),
}

/// Runs a command and kills it at a step, or after a time by chance; true if it was killed.
pub(super) async fn die(backups: &Backups<'_>, args: &[&str], at: At<'_>) -> Result<bool> {
    let mut env = backups.env();
    let point;
    if let At::Step(name) = at {
        point = format!("{name}:1");
        env.push(("TASKFLOW_CRASH_AT", &point));
    }
    let mut command = backups.cluster.command(args, &env);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let child = command.spawn()?;
    if let At::After(after_ms) = at {
        let pid = Pid::from_raw(child.id().context("it has ended")?.cast_signed());
        tokio::time::sleep(std::time::Duration::from_millis(after_ms)).await;
        // It may be done already.
        let _ = kill(pid, Signal::SIGKILL);
    }
    let ended = child.wait_with_output().await?;
    let killed = ended.status.signal() == Some(9);
    ensure!(killed || ended.status.success(), "{args:?}: {}", text(&ended));
    ensure!(killed || matches!(at, At::After(_)), "{args:?} went by its step {at:?}");
    Ok(killed)
}

/// Whole backups by now; what is not whole must say so.
pub(super) async fn whole(backups: &Backups<'_>) -> Result<Vec<String>> {
    let listed = backups.ask(&["backup", "list"]).await?;
    let all = listed.as_array().context("no list")?;
    let mut ids = Vec::new();
    for one in all {
        let id = one["id"].as_str().context("no id")?.to_owned();
        match one["state"].as_str() {
            Some("unproven") => {
                backups.ask(&["backup", "verify", &id]).await?;
                ids.push(id);
            }
            state => ensure!(state == Some("not whole"), "{one}"),
        }
    }
    Ok(ids)
}

async fn killed(site: Arc<Site>) -> Result {
    filled(&site).await?;
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let (dump, trail) = (backups.create("postgres").await?, backups.create("mongodb").await?);
    // Backups.
    let mut good = 2;
    let mut dice = Dice::new(7);
    for kind in ["postgres", "mongodb"] {
        good = creates(&backups, kind, good, &mut dice).await?;
    }
    // Prunes: what has gone is gone, what is there is whole.
    let few = Backups::new(&cluster).with("KEEP__DAILY", "1").with("KEEP__WEEKLY", "0");
    let few = few.with("KEEP__MONTHLY", "0").with("KEEP__YEARLY", "0");
    backups.create("postgres").await?;
    backups.create("mongodb").await?;
    die(&few, &["backup", "prune"], At::Step("backup_pruned")).await?;
    let left = whole(&few).await?;
    ensure!(left.len() >= 2, "{left:?}");
    few.ask(&["backup", "prune"]).await?;
    let left = whole(&few).await?;
    ensure!(left.len() == 2 && !left.contains(&dump) && !left.contains(&trail), "{left:?}");
    let dump = left.iter().find(|id| id.contains("-postgres-")).context("no dump")?;
    let trail = left.iter().find(|id| id.contains("-mongodb-")).context("no trail")?;
    restores(&site, &backups, dump, trail, &mut dice).await?;
    // What was never whole is left alone for two days, and removed then.
    let old = Path::new(&backups.folder).join("backups/20200101T000000Z-postgres-00000000");
    std::fs::create_dir_all(&old)?;
    std::fs::write(old.join("database.dump.zst#1"), b"half")?;
    few.ask(&["backup", "prune"]).await?;
    ensure!(!old.exists(), "what was broken off years ago is still there");
    // Last: the newest of a chain keeps all that it needs.
    let good = whole(&backups).await?.len();
    creates(&backups, "mongodb-incremental", good, &mut dice).await.map(|_| ())
}

/// Backups of a kind that are killed at any time; returns how many are whole then, of the `good` before.
async fn creates(backups: &Backups<'_>, kind: &str, mut good: usize, dice: &mut Dice) -> Result<usize> {
    die(backups, &["backup", "create", kind], At::Step("backup_sealing")).await?;
    ensure!(whole(backups).await?.len() == good, "a backup without its manifest counts");
    for _ in 0..4 {
        let killed = die(backups, &["backup", "create", kind], At::After(dice.below(400))).await?;
        let now = whole(backups).await?.len();
        ensure!(now == good || now == good + 1, "{now} backups after {good}");
        ensure!(killed || now == good + 1, "it said that it is done");
        good = now;
    }
    Ok(good)
}

async fn restores(site: &Site, backups: &Backups<'_>, dump: &str, trail: &str, dice: &mut Dice) -> Result {
    let live = own(site);
    let into = format!("{live}_k");
    die(backups, &["restore", dump, "--into", &into], At::Step("restored")).await?;
    ensure!(!has_database(site, &into).await?, "half a database has the name of a whole one");
    ensure!(has_database(site, &format!("{into}__restoring")).await?, "it was killed too late");
    backups.ask(&["restore", dump, "--into", &into]).await?;
    must_be_alike(&rows(site, &live).await?, &rows(site, &into).await?)?;
    ensure!(!has_database(site, &format!("{into}__restoring")).await?, "the half one is still there");
    for round in 0..4 {
        let into = format!("{live}_k{round}");
        if die(backups, &["restore", dump, "--into", &into], At::After(100 + dice.below(900))).await?
            && !has_database(site, &into).await?
        {
            backups.ask(&["restore", dump, "--into", &into]).await?;
        }
        must_be_alike(&rows(site, &live).await?, &rows(site, &into).await?)?;
    }
    // MongoDB's goes on where it was.
    let mark = async |into: &str| -> Result<bool> {
        Ok(documents(site, into).await?.contains_key("taskflow_restore"))
    };
    die(backups, &["restore", trail, "--into", &into], At::Step("refilled")).await?;
    ensure!(mark(&into).await?, "half a trail bears no mark");
    let (code, said) =
        backups.refused(&["restore", trail, "--into", &into, "--collection", "event_logs"], &[]).await?;
    ensure!(code == Some(2) && said.contains("unfinished restore"), "{said}");
    backups.ask(&["restore", trail, "--into", &into]).await?;
    must_be_alike(&documents(site, &live).await?, &documents(site, &into).await?)?;
    for round in 0..4 {
        let into = format!("{live}_k{round}");
        die(backups, &["restore", trail, "--into", &into], At::After(50 + dice.below(500))).await?;
        if mark(&into).await? || documents(site, &into).await?.is_empty() {
            backups.ask(&["restore", trail, "--into", &into]).await?;
        }
        must_be_alike(&documents(site, &live).await?, &documents(site, &into).await?)?;
    }
    Ok(())
}
