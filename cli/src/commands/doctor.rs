//! `taskflow doctor`: each store, whether it is reachable, fits, and is set up so that it keeps what it is given.

use std::fmt::Write;
use std::process::ExitCode;

use serde::Serialize;
use taskflow_stores::postgres::pauses::{self, Pause};
use taskflow_stores::postgres::{
    audit_seals, dead_letters, health as postgres_health, layout, restore_epochs,
};
use taskflow_stores::rabbit::topology::DEAD_LETTERS;
use taskflow_stores::{Kind, StoreError, clock, mongo, postgres};
use tokio_util::sync::CancellationToken;

use crate::connect;
use crate::exit::{Exit, FAILED};
use crate::settings::{Settings, without_password};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warning,
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    store: &'static str,
    level: Level,
    detail: String,
}

struct Findings<'s> {
    all: Vec<Finding>,
    settings: &'s Settings,
}

impl Findings<'_> {
    fn add(&mut self, store: &'static str, level: Level, detail: impl Into<String>) {
        self.all.push(Finding { store, level, detail: detail.into() });
    }

    fn broken(&mut self, store: &'static str, error: &StoreError) {
        let mut detail = format!("{}: {}", error.call, error.detail);
        if error.kind == Kind::Unavailable {
            let (setting, url) = self.address(error.store);
            let _ = write!(detail, " ({setting} is {})", without_password(url));
        }
        self.add(store, Level::Error, detail);
    }

    /// Where a store is looked for, and what sets that.
    fn address(&self, store: &str) -> (&'static str, &str) {
        let settings = self.settings;
        match store {
            "postgres" => ("postgres.url", &settings.postgres.url),
            "rabbitmq" => ("amqp.url", &settings.amqp.url),
            "mongodb" => ("mongodb.url", &settings.mongodb.url),
            _ => ("redis.url", &settings.redis.url),
        }
    }
}

pub(crate) async fn run(settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let stop = CancellationToken::new();
    let stores = connect::stores(settings, "taskflow doctor", &stop).await?;
    let mut findings = Findings { all: Vec::new(), settings };
    look_at_postgres(&stores, &mut findings).await;
    look_at_rabbitmq(&stores, &mut findings).await;
    look_at_mongodb(&stores, &mut findings).await;
    look_at_redis(&stores, &mut findings).await;
    look_at_seals(&stores, &mut findings).await;
    stop.cancel();
    let worst = findings.all.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
    if json {
        let text = serde_json::to_string(&findings.all).map_err(|error| Exit::failed(error.to_string()))?;
        println!("{text}");
    } else {
        for Finding { store, level, detail } in &findings.all {
            let mark = match level {
                Level::Ok => "ok     ",
                Level::Warning => "warning",
                Level::Error => "ERROR  ",
            };
            println!("{mark}  {store:<9} {detail}");
        }
    }
    Ok(if worst == Level::Error { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}

/// A seal is made at least once an hour.
const SEALED_WITHIN: chrono::TimeDelta = chrono::TimeDelta::minutes(90);

/// Whether the audit trail is sealed. Only `taskflow audit verify` says whether the seals are true.
async fn look_at_seals(stores: &connect::Stores, findings: &mut Findings<'_>) {
    const STORE: &str = "seals";
    match audit_seals::newest_at(&stores.postgres).await {
        Ok(Some((number, at))) if at + SEALED_WITHIN >= clock::now() => {
            findings.add(STORE, Level::Ok, format!("seal {number} of the audit trail is of {}", at.format("%F %T UTC")));
        }
        Ok(Some((number, at))) => findings.add(
            STORE,
            Level::Warning,
            format!(
                "the audit trail was last sealed at {} (seal {number}): `taskflow jobs show audit.seal`",
                at.format("%F %T UTC")
            ),
        ),
        Ok(None) => findings.add(
            STORE,
            Level::Warning,
            "the audit trail was never sealed: `taskflow audit keygen` where the scheduler runs, see docs/audit.md",
        ),
        Err(error) => findings.broken(STORE, &error),
    }
}

async fn look_at_postgres(stores: &connect::Stores, findings: &mut Findings<'_>) {
    const STORE: &str = "postgres";
    match postgres::version(&stores.postgres).await {
        Ok(version) => {
            let major: u32 =
                version.split(['.', ' ']).next().and_then(|major| major.parse().ok()).unwrap_or(0);
            let level = if major >= 15 { Level::Ok } else { Level::Warning };
            findings.add(STORE, level, format!("reachable, version {version} (15 or newer is wanted)"));
        }
        Err(error) => return findings.broken(STORE, &error),
    }
    match postgres::migrate::status(&stores.postgres).await {
        Ok(versions) => {
            let pending = versions.iter().filter(|version| !version.applied).count();
            match pending {
                0 => {
                    findings.add(
                        STORE,
                        Level::Ok,
                        format!("schema is current ({} versions)", versions.len()),
                    );
                }
                _ => findings.add(
                    STORE,
                    Level::Error,
                    format!("{pending} versions of the schema are missing: `taskflow migrate up`"),
                ),
            }
        }
        Err(error) => findings.broken(STORE, &error),
    }
    match restore_epochs::open(&stores.postgres).await {
        Ok(None) => {}
        Ok(Some(epoch)) => findings.add(STORE, Level::Error, epoch.fault()),
        Err(error) => findings.broken(STORE, &error),
    }
    match dead_letters::count_kept(&stores.postgres).await {
        Ok(0) => findings.add(STORE, Level::Ok, "no dead letters"),
        Ok(kept) => findings.add(
            STORE,
            Level::Warning,
            format!("{kept} dead letters wait for a decision: `taskflow dead-letters groups`"),
        ),
        Err(error) => findings.broken(STORE, &error),
    }
    match postgres_health::settings(&stores.postgres).await {
        Ok(settings) => {
            for (name, value, wanted, why) in settings {
                let level = if value == wanted { Level::Ok } else { Level::Error };
                let detail = if value == wanted {
                    format!("{name} = {value}")
                } else {
                    format!("{name} = {value}, must be {wanted}: {why}")
                };
                findings.add(STORE, level, detail);
            }
        }
        Err(error) => findings.broken(STORE, &error),
    }
    match postgres_health::invalid_indexes(&stores.postgres).await {
        Ok(names) if names.is_empty() => {}
        Ok(names) => findings.add(
            STORE,
            Level::Warning,
            format!(
                "indexes that were not built to their end: {}; `taskflow migrate up` builds them anew",
                names.join(", ")
            ),
        ),
        Err(error) => findings.broken(STORE, &error),
    }
    match postgres_health::missing_privileges(&stores.postgres).await {
        Ok(missing) if missing.is_empty() => findings.add(STORE, Level::Ok, "privileges on all tables"),
        Ok(missing) => findings.add(
            STORE,
            Level::Error,
            format!(
                "this role lacks privileges on: {}; run ops/roles/postgres.sql after each migration, and give the login one of its roles",
                missing.join(", ")
            ),
        ),
        Err(error) => findings.broken(STORE, &error),
    }
}

async fn look_at_rabbitmq(stores: &connect::Stores, findings: &mut Findings<'_>) {
    const STORE: &str = "rabbitmq";
    if let Err(error) = stores.publish.channel().await {
        return findings.broken(STORE, &error);
    }
    findings.add(STORE, Level::Ok, "reachable");
    if stores.publish.is_blocked() {
        findings.add(STORE, Level::Error, "it blocks publishers: a memory or disk alarm is on");
    }
    let mut ready = 0;
    let course = match layout::course(&stores.postgres, stores.rabbit.layout()).await {
        Ok(course) => course,
        Err(error) => return findings.broken(STORE, &error),
    };
    let set = stores.rabbit.layout();
    if course.is_settled() && set.to_string() != course.to.to_string() {
        let detail = format!(
            "{} partitions; amqp.partitions and amqp.low_partitions say {set}, which counts only for a fresh deployment",
            course.to
        );
        findings.add(STORE, Level::Warning, detail);
    }
    if !course.is_settled() {
        let detail = format!(
            "the number of partitions changes from {} to {} ({}): `taskflow partitions show`",
            course.from,
            course.to,
            course.phase.as_str()
        );
        findings.add(STORE, Level::Warning, detail);
    }
    let pauses = match pauses::list(&stores.postgres).await {
        Ok(pauses) => pauses,
        Err(error) => return findings.broken(STORE, &error),
    };
    for Pause { scope, reason, author, .. } in &pauses {
        let detail = format!("paused: {scope}, by {author}: {reason}; `taskflow pauses`, `taskflow resume`");
        findings.add(STORE, Level::Warning, detail);
    }
    for partition in course.declared() {
        match stores.consume.depth(&partition.queue()).await {
            Ok(depth) => {
                ready += depth.ready;
                if depth.consumers == 0 && depth.ready > 0 && course.consumed().contains(&partition) {
                    // A paused type holds back whatever partition such a command is next in.
                    let may_hold = |scope: &str| {
                        scope == "all"
                            || scope.starts_with("type:")
                            || scope.strip_prefix("partition:") == Some(&partition.to_string())
                    };
                    let why = if pauses.iter().any(|pause| may_hold(&pause.scope)) {
                        "a pause holds it back, or no worker is there"
                    } else {
                        "no worker consumes it"
                    };
                    let detail = format!("{} has {} messages: {why}", partition.queue(), depth.ready);
                    findings.add(STORE, Level::Warning, detail);
                }
            }
            Err(error) => findings.add(
                STORE,
                Level::Error,
                format!("{}: {}; a worker that is alive declares it again", partition.queue(), error.detail),
            ),
        }
    }
    findings.add(STORE, Level::Ok, format!("{ready} messages wait in the partition queues"));
    match stores.consume.depth(DEAD_LETTERS).await {
        Ok(depth) if depth.ready > 0 && depth.consumers == 0 => findings.add(
            STORE,
            Level::Warning,
            format!("{} dead letters and no worker that takes them into Postgres", depth.ready),
        ),
        Ok(_) => {}
        Err(error) => findings.broken(STORE, &error),
    }
}

async fn look_at_mongodb(stores: &connect::Stores, findings: &mut Findings<'_>) {
    const STORE: &str = "mongodb";
    match mongo::version(&stores.mongo).await {
        Ok(version) => findings.add(STORE, Level::Ok, format!("reachable, version {version}")),
        Err(error) => return findings.broken(STORE, &error),
    }
    match mongo::replica_set(&stores.mongo).await {
        Ok(Some(name)) => findings.add(STORE, Level::Ok, format!("member of the replica set {name}")),
        Ok(None) => findings.add(
            STORE,
            Level::Warning,
            "a single server: the audit trail is on one disk; production runs a replica set",
        ),
        Err(error) => findings.broken(STORE, &error),
    }
    match mongo::migrate::status(&stores.mongo).await {
        Ok(versions) => match versions.iter().filter(|version| !version.applied).count() {
            0 => findings.add(STORE, Level::Ok, format!("schema is current ({} versions)", versions.len())),
            pending => findings.add(
                STORE,
                Level::Error,
                format!("{pending} versions of the schema are missing: `taskflow migrate up`"),
            ),
        },
        Err(error) => findings.broken(STORE, &error),
    }
}

async fn look_at_redis(stores: &connect::Stores, findings: &mut Findings<'_>) {
    const STORE: &str = "redis";
    match stores.redis.version().await {
        Ok(version) => findings.add(STORE, Level::Ok, format!("reachable, version {version}")),
        Err(error) => return findings.broken(STORE, &error),
    }
    match stores.redis.cluster_state().await {
        Ok(None) => {}
        Ok(Some(state)) if !state.ok => findings.add(
            STORE,
            Level::Error,
            "the cluster does not serve every slot: a master is gone and no replica has taken its place",
        ),
        Ok(Some(state)) => {
            let alone = state.nodes < state.masters * 2;
            let level = if alone { Level::Warning } else { Level::Ok };
            let why = if alone { "; a master without a replica takes its sessions with it" } else { "" };
            let detail = format!("a cluster of {} masters, {} nodes in all{why}", state.masters, state.nodes);
            findings.add(STORE, level, detail);
        }
        Err(error) => findings.broken(STORE, &error),
    }
    match stores.redis.info("memory", "maxmemory_policy").await {
        Ok(Some(policy)) if policy.contains("allkeys") => findings.add(
            STORE,
            Level::Warning,
            format!("maxmemory-policy {policy} may evict sessions: use noeviction or volatile-lru"),
        ),
        Ok(policy) => {
            findings.add(STORE, Level::Ok, format!("maxmemory-policy {}", policy.unwrap_or_default()));
        }
        Err(error) => findings.broken(STORE, &error),
    }
    match stores.redis.info("persistence", "aof_enabled").await {
        Ok(Some(on)) if on == "1" => {
            findings.add(STORE, Level::Ok, "append-only file is on: sessions survive a restart");
        }
        Ok(_) => findings.add(STORE, Level::Warning, "append-only file is off: a restart logs everybody out"),
        Err(error) => findings.broken(STORE, &error),
    }
}
