//! The seals of the audit trail: what is sealed can be verified and proved, whatever is bent is found and named.

mod aged;
mod bent;
mod busy;
mod restored;
mod roles;
mod undone;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use taskflow_stores::mongo::erasure;
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_stores::mongo::retention::Subject;
use taskflow_tests::commands::{ADMIN, HASH, USER, command, command_of, id, ndjson};
use taskflow_tests::{Cluster, Process, Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    let mut tests = vec![
        with_site(
            "audit: what commands did is sealed, and another one's script agrees with its proof",
            proved,
        ),
        with_site("audit: what events tell of a person is erased, and the trail is whole", erased),
        with_site("audit: events from before there were seals are told as such", before),
        with_site("audit: lists of leaves go when all their events are gone", pruned),
        with_site("audit: without a key nothing is sealed, and the job says what to do", keyless),
    ];
    tests.extend(aged::tests());
    tests.extend(bent::tests());
    tests.extend(busy::tests());
    tests.extend(restored::tests());
    tests.extend(roles::tests());
    tests.extend(undone::tests());
    tests
}

/// Seals what a site has, whoever has written it, and verifies it: everything is proved. The worker finishes before that:
/// it may not have got all the partitions of one that was killed yet.
pub(crate) async fn is_whole(site: &Site, worker: Process) -> Result {
    site.until_nothing_is_on_its_way().await?;
    worker.stop().await?;
    let sealed = Sealed::of(site, crate::cluster(site)?, None).await?;
    let events = sealed.events().count_documents(doc! {}).await?;
    sealed.seal().await?;
    let report = sealed.is_whole().await?;
    ensure!(report["proved"] == events && report["pending"] == 0, "{events} events: {report}");
    sealed.stop().await
}

/// A site at work, with keys.
struct Sealed<'s> {
    site: &'s Site,
    cluster: Cluster<'s>,
    scheduler: Process,
    /// How worker and API reach Postgres, if not as everybody does.
    app: Option<String>,
}

impl<'s> Sealed<'s> {
    /// Starts a worker, an API and a scheduler, lets commands be applied, and seals. The worker and the API have left.
    async fn start(site: &'s Site, commands: &[Value]) -> Result<Self> {
        let sealed = Self::without_events(site, None).await?;
        sealed.apply(commands).await?;
        sealed.seal().await?;
        Ok(sealed)
    }

    /// The same without commands. `scheduler` is how the scheduler reaches Postgres, if not as everybody does.
    async fn without_events(site: &'s Site, scheduler: Option<&str>) -> Result<Self> {
        Self::of(site, cluster(site)?, scheduler).await
    }

    async fn of(site: &'s Site, cluster: Cluster<'s>, scheduler: Option<&str>) -> Result<Self> {
        // Every minute is too seldom for a test, and too often for one that bends what is sealed.
        let off = ["audit.seal", "audit.verify", "retention.events"]
            .map(|job| format!("[scheduler.jobs.\"{job}\"]\ncron = \"0 0 0 1 1 *\"\n"));
        cluster.write_settings(&off.concat())?;
        ok(&cluster, &["audit", "keygen"]).await?;
        let scheduler = cluster.spawn("scheduler", postgres_at(scheduler).as_slice())?;
        let known = "SELECT count(*) FROM job_schedules WHERE job LIKE 'audit.%'";
        wait::until("a scheduler leads", async || Ok(site.count(known).await? == 2)).await?;
        Ok(Self { site, cluster, scheduler, app: None })
    }

    async fn apply(&self, commands: &[Value]) -> Result {
        self.apply_with(commands, &[]).await
    }

    /// The same, by a worker with further settings.
    async fn apply_with(&self, commands: &[Value], more: &[(&'static str, &str)]) -> Result {
        let app = self.app.as_deref();
        let worker = self.cluster.spawn("worker", &[postgres_at(app).as_slice(), more].concat())?;
        let (api, client) = self.cluster.api_with(postgres_at(app).as_slice()).await?;
        let (status, answer) = client.admin().await?.send("application/x-ndjson", ndjson(commands)).await?;
        ensure!(status == 202, "{answer}");
        self.site.until_told(commands).await?;
        api.stop().await?;
        worker.stop().await
    }

    async fn seal(&self) -> Result<i64> {
        let run = run(&self.cluster, "audit.seal").await?;
        run["figures"]["seal"].as_i64().with_context(|| run.to_string())
    }

    /// What `taskflow audit verify` finds.
    async fn verify(&self) -> Result<Value> {
        let output = self.cluster.run(&["audit", "verify", "--json"], &[]).await?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}", String::from_utf8_lossy(&output.stderr)))?;
        let nothing = report["found"].as_object().is_some_and(serde_json::Map::is_empty);
        ensure!(output.status.success() == nothing, "the exit code says otherwise: {report}");
        Ok(report)
    }

    /// Verifies; nothing must be wrong.
    async fn is_whole(&self) -> Result<Value> {
        let report = self.verify().await?;
        ensure!(report["found"] == json!({}), "{report}");
        Ok(report)
    }

    async fn stop(self) -> Result {
        self.scheduler.stop().await
    }

    fn events(&self) -> mongodb::Collection<Document> {
        self.site.mongo.collection(COLLECTION)
    }
}

fn postgres_at(url: Option<&str>) -> Vec<(&'static str, &str)> {
    url.map(|url| ("TASKFLOW_POSTGRES__URL", url)).into_iter().collect()
}

/// Runs a job to its end, whatever that is; its row in the ledger.
async fn run(cluster: &Cluster<'_>, job: &str) -> Result<Value> {
    let output = cluster.run(&["jobs", "run", job, "--json"], &[]).await?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{job}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs a command that must succeed; what it said.
async fn ok(cluster: &Cluster<'_>, args: &[&str]) -> Result<String> {
    let output = cluster.run(args, &[]).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// Commands of both users; of most batches several events.
fn commands() -> Vec<Value> {
    let user = id();
    let data = json!({ "email": format!("{user}@example.org"), "passwordhash": HASH, "profile": { "size": 1.5, "huge": u64::MAX, "text": "\u{1}é\"\\ \u{1f980}" } });
    let tasks = (0..40).map(|number| {
        let actor = if number % 2 == 0 { ADMIN } else { USER };
        command_of(
            actor,
            "task.create",
            id(),
            json!({ "title": format!("Task {number}"), "description": "a\nb" }),
        )
    });
    [command("user.register", user, data)].into_iter().chain(tasks).collect()
}

async fn proved(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    let report = sealed.is_whole().await?;
    let events = sealed.events().count_documents(doc! {}).await?;
    ensure!(report["proved"] == events && events >= 41, "{events} events: {report}");
    ensure!(report["pending"] == 0 && report["unsealed"] == 0, "{report}");
    // Nothing has happened since: no seal is needed. Then something has.
    let number = sealed.seal().await?;
    ensure!(sealed.seal().await? == number, "a seal that says nothing");
    sealed.apply(&[command("task.create", id(), json!({ "title": "later" }))]).await?;
    ensure!(sealed.seal().await? > number, "what came later is not sealed");
    sealed.is_whole().await?;
    let verified = run(&sealed.cluster, "audit.verify").await?;
    ensure!(
        verified["state"] == "completed" && verified["figures"]["proved"].as_u64() > Some(events),
        "{verified}"
    );
    // Only the copies of the seals differ in who keeps them.
    let copies = site.mongo.collection::<Document>("audit_seals").count_documents(doc! {}).await? as i64;
    let outside = std::fs::read_dir(sealed.cluster.folder().join("taskflow-audit/seals"))?;
    let lines: usize = outside
        .map(|file| Ok(std::fs::read_to_string(file?.path())?.lines().count()))
        .sum::<Result<usize>>()?;
    let kept = site.count("SELECT count(*) FROM audit_seals").await?;
    ensure!(
        copies == kept && lines as i64 == kept,
        "{kept} seals, {copies} copies in MongoDB, {lines} outside"
    );

    let key = std::fs::read_to_string(sealed.cluster.folder().join("taskflow-audit/seal.pub"))?;
    let key = key.split_whitespace().nth(1).context("no key")?.to_owned();
    for event in
        [doc! { "type": "user.registered" }, doc! { "type": "task.created", "run.leaf": { "$gte": 1 } }]
    {
        let event = sealed.events().find_one(event).await?.context("no such event")?;
        let id = event.get_object_id("_id")?.to_hex();
        let proof: Value = serde_json::from_str(&ok(&sealed.cluster, &["audit", "prove", &id]).await?)?;
        let Some(python) = python().await else { continue };
        let said = script(python, &sealed.cluster, &proof, &key).await?.map_err(anyhow::Error::msg)?;
        ensure!(said.contains(&id), "{said}");
        let mut forged = proof.clone();
        forged["data"] = json!(
            proof["data"].as_str().unwrap_or_default().replace("Task", "Tusk").replace("example", "exomple")
        );
        ensure!(
            script(python, &sealed.cluster, &forged, &key).await?.is_err(),
            "the script takes a forged proof"
        );
        let other = "11".repeat(32);
        ensure!(script(python, &sealed.cluster, &proof, &other).await?.is_err(), "the script takes any key");
    }
    let nobody = sealed.cluster.run(&["audit", "prove", &"ab".repeat(12)], &[]).await?;
    ensure!(String::from_utf8_lossy(&nobody.stderr).contains("there is no event"), "{nobody:?}");
    sealed.stop().await
}

/// What the script in docs says of a proof: its words, or why it does not hold.
async fn script(
    python: &str,
    cluster: &Cluster<'_>,
    proof: &Value,
    key: &str,
) -> Result<std::result::Result<String, String>> {
    let file = cluster.folder().join("proof.json");
    std::fs::write(&file, proof.to_string())?;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?.join("docs");
    let said = tokio::process::Command::new(python)
        .arg(docs.join("audit-proof.py"))
        .arg(&file)
        .arg(key)
        .output()
        .await?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(if said.status.success() { Ok(text(&said.stdout)) } else { Err(text(&said.stderr)) })
}

/// A Python that can run the script.
async fn python() -> Option<&'static str> {
    for python in ["python3", "/usr/bin/python3"] {
        let probe = tokio::process::Command::new(python).args(["-c", "import cryptography"]).output().await;
        if probe.is_ok_and(|probe| probe.status.success()) {
            return Some(python);
        }
    }
    eprintln!("skipped: docs/audit-proof.py, since no python3 has the package cryptography; see ops/setup");
    None
}

async fn erased(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    let user = USER.to_string();
    let one = sealed.events().find_one(doc! { "actorId": &user }).await?.context("no event of the user")?;
    let id = one.get_object_id("_id")?.to_hex();
    ok(&sealed.cluster, &["holds", "put", "--actor", &user, "--why", "a case"]).await?;
    let erase = ["audit", "erase", "--actor", user.as_str(), "--why", "asked for", "--yes", "--json"];
    let refused = sealed.cluster.run(&erase, &[]).await?;
    ensure!(
        String::from_utf8_lossy(&refused.stderr).contains("stands on"),
        "what is held was erased: {refused:?}"
    );
    let hold: String =
        sqlx::query_scalar("SELECT id::text FROM legal_holds").fetch_one(&site.postgres).await?;
    ok(&sealed.cluster, &["holds", "release", &hold]).await?;
    let done: Value = serde_json::from_str(&ok(&sealed.cluster, &erase).await?)?;
    ensure!(done["erased"] == 20 && done["unsealed"] == 0, "{done}");
    let again: Value = serde_json::from_str(&ok(&sealed.cluster, &erase).await?)?;
    ensure!(again["erased"] == 0, "{again}");
    let empty = doc! { "actorId": &user, "payload": {}, "salt": { "$exists": false } };
    ensure!(sealed.events().count_documents(empty).await? == 20, "something is left of what was erased");
    let whole = sealed.is_whole().await?;
    ensure!(whole["erased"] == 20, "{whole}");
    let proof: Value = serde_json::from_str(&ok(&sealed.cluster, &["audit", "prove", &id]).await?)?;
    ensure!(proof.get("data").is_none() && proof.get("salt").is_none(), "{proof}");
    // The trail tells who has ordered it.
    sealed
        .apply(&[command("task.create", taskflow_tests::commands::id(), json!({ "title": "later" }))])
        .await?;
    let order = sealed
        .events()
        .find_one(doc! { "type": "system.data_erased" })
        .await?
        .context("no event tells of it")?;
    ensure!(
        order.get_str("entityId")? == user && order.get_document("payload")?.get_str("why")? == "asked for"
    );
    sealed.seal().await?;
    sealed.is_whole().await?;
    // It is no cover for what the user does from then on.
    let title = json!({ "title": "much later" });
    sealed.apply(&[command_of(USER, "task.create", taskflow_tests::commands::id(), title)]).await?;
    let now = taskflow_stores::clock::now();
    let emptied = erasure::step(&site.mongo, Subject::Actor(USER), now, now).await?;
    ensure!(emptied.erased == 1, "{emptied:?}");
    sealed.seal().await?;
    let report = sealed.verify().await?;
    ensure!(report["found"] == json!({ "erased_unasked": 1 }), "{report}");
    ok(&sealed.cluster, &erase).await?;
    sealed.is_whole().await?;
    sealed.stop().await
}

async fn before(site: Arc<Site>) -> Result {
    // As an older release has left it: batches, and events without leaves.
    site.sql("INSERT INTO partition_heads (partition, epoch, batch) SELECT lpad(n::text, 2, '0'), 1, 9 FROM generate_series(0, 3) AS n").await?;
    let at = mongodb::bson::DateTime::now();
    let old = (1..=5).map(|number| {
        doc! {
            "type": "task.created", "actorId": ADMIN.to_string(), "entityId": id().to_string(), "entityType": "task",
            "payload": {}, "metadata": { "timestamp": at }, "correlationId": id().to_string(),
            "commandId": id().to_string(), "run": { "p": "01", "n": 5_i64, "i": number, "class": "task_events" },
            "createdAt": at, "expiresAt": mongodb::bson::DateTime::from_millis(4_000_000_000_000),
        }
    });
    site.mongo.collection::<Document>(COLLECTION).insert_many(old).await?;
    let sealed = Sealed::start(&site, &commands()).await?;
    let report = sealed.is_whole().await?;
    ensure!(report["unsealed"] == 5 && report["proved"].as_u64() >= Some(41), "{report}");
    sealed.stop().await
}

async fn pruned(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    let lists = site.mongo.collection::<Document>("audit_leaves");
    let all = lists.count_documents(doc! {}).await?;
    let past = doc! { "$set": { "until": mongodb::bson::DateTime::from_millis(1) } };
    lists.update_many(doc! {}, past.clone()).await?;
    let kept = run(&sealed.cluster, "retention.events").await?;
    ensure!(all > 0 && kept["figures"]["leaves_removed"] == 0, "{kept}");
    ensure!(lists.count_documents(doc! {}).await? == all, "lists went whose events are there: {kept}");
    sealed.events().delete_many(doc! {}).await?;
    lists.update_many(doc! {}, past).await?;
    let gone = run(&sealed.cluster, "retention.events").await?;
    ensure!(gone["figures"]["leaves_removed"] == all && lists.count_documents(doc! {}).await? == 0, "{gone}");
    sealed.stop().await
}

async fn keyless(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    let known = "SELECT count(*) FROM job_schedules WHERE job = 'audit.seal'";
    wait::until("a scheduler leads", async || Ok(site.count(known).await? == 1)).await?;
    let failed = run(&cluster, "audit.seal").await?;
    let why = failed["detail"].as_str().unwrap_or_default();
    ensure!(failed["state"] == "failed" && why.contains("taskflow audit keygen"), "{failed}");
    let unverified = cluster.run(&["audit", "verify"], &[]).await?;
    ensure!(String::from_utf8_lossy(&unverified.stderr).contains("audit.public_keys_path"), "{unverified:?}");
    ok(&cluster, &["audit", "keygen"]).await?;
    let twice = cluster.run(&["audit", "keygen"], &[]).await?;
    ensure!(!twice.status.success(), "a key was overwritten");
    let sealed = run(&cluster, "audit.seal").await?;
    ensure!(sealed["state"] == "completed" && sealed["figures"]["seal"] == 1, "{sealed}");
    // A key that others may read is no secret.
    let key = cluster.folder().join("taskflow-audit/seal.key");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let refused = run(&cluster, "audit.seal").await?;
    ensure!(refused["detail"].as_str().unwrap_or_default().contains("chmod 600"), "{refused}");
    scheduler.stop().await
}
