//! The roles of `ops/roles`, by trying.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::Database;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_stores::mongo::load::{self, Load};
use taskflow_tests::backups::{Backups, documents, must_be_alike, rows, text};
use taskflow_tests::{Result, Site, wait};

use super::{Sealed, commands, run};
use crate::{trial, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("audit: roles of Postgres can add to the trail's evidence and not change it", postgres),
        trial(
            "audit: roles of MongoDB can add events and not change them; removing is retention's alone",
            mongodb,
        ),
        with_site("backups are made by the scheduler's roles, and nobody needs more for them", backups),
    ]
}

fn script(name: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?;
    Ok(std::fs::read_to_string(root.join("ops/roles").join(name))?)
}

async fn postgres(site: Arc<Site>) -> Result {
    let roles = script("postgres.sql")?;
    // It may be run again.
    site.sql(&roles).await?;
    site.sql(&roles).await?;
    let may = async |role: &str, statement: &str| -> Result<bool> {
        let mut transaction = taskflow_stores::postgres::begin(&site.postgres).await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("SET LOCAL ROLE {role}")))
            .execute(&mut *transaction)
            .await?;
        let done = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut *transaction).await;
        transaction.rollback().await?;
        match done {
            Ok(_) => Ok(true),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => Ok(false),
            Err(error) => Err(anyhow::Error::from(error).context(format!("{role}: {statement}"))),
        }
    };
    let link = "INSERT INTO audit_links VALUES ('00', 1, '[]', sha256('x'))";
    let seal = "INSERT INTO audit_seals VALUES (1, now(), '', '', '')";
    let (app, scheduler, reader) = ("taskflow_app", "taskflow_scheduler", "taskflow_reader");
    for (role, statement, expected) in [
        (app, link, true),
        (app, "SELECT count(*) FROM audit_seals", true),
        (app, seal, false),
        (app, "UPDATE audit_seals SET seal = ''", false),
        (app, "DELETE FROM audit_seals", false),
        (app, "TRUNCATE audit_seals", false),
        (app, "UPDATE audit_links SET classes = ''", false),
        (app, "DELETE FROM audit_links", false),
        (
            app,
            "INSERT INTO audit_erasures VALUES (gen_random_uuid(), 'actor', gen_random_uuid(), '', '', now())",
            false,
        ),
        (app, "UPDATE partition_heads SET batch = batch", true),
        (
            app,
            "INSERT INTO system_events (id, created_at, event) VALUES (gen_random_uuid(), now(), '{}')",
            true,
        ),
        (app, "DELETE FROM outbox", true),
        (app, "DELETE FROM batches", false),
        (app, "DELETE FROM tasks", false),
        (app, "ALTER TABLE audit_seals ADD COLUMN more TEXT", false),
        (scheduler, seal, true),
        // As pg_dump reads it.
        (scheduler, "SELECT last_value FROM job_runs_id_seq", true),
        (app, "SELECT last_value FROM job_runs_id_seq", false),
        (scheduler, "UPDATE audit_seals SET seal = ''", false),
        (scheduler, "DELETE FROM audit_seals", false),
        (scheduler, "DELETE FROM audit_links", false),
        (scheduler, "DELETE FROM batches", true),
        (scheduler, "UPDATE audit_erasures SET events = 1", true),
        (scheduler, "UPDATE audit_erasures SET subject = gen_random_uuid()", false),
        (scheduler, "DELETE FROM audit_erasures", false),
        (reader, "SELECT count(*) FROM audit_links", true),
        (reader, link, false),
        (reader, "SELECT * FROM users", false),
        (reader, "SELECT * FROM api_keys", false),
    ] {
        ensure!(may(role, statement).await? == expected, "{role}: {statement}: expected {expected}");
    }

    // The program itself gets on with them: worker and API as one, the scheduler as the other.
    let options = site.postgres.connect_options();
    let (host, port) = (options.get_host(), options.get_port());
    let name = options.get_database().context("no database")?;
    for role in [app, scheduler] {
        site.sql(&format!("CREATE ROLE {name}_{role} LOGIN PASSWORD 'x' IN ROLE {role}")).await?;
    }
    let url = |role: &str| format!("postgres://{name}_{role}:x@{host}:{port}/{name}");
    let mut sealed = Sealed::without_events(&site, Some(&url(scheduler))).await?;
    sealed.app = Some(url(app));
    sealed.apply(&commands()).await?;
    sealed.seal().await?;
    sealed.is_whole().await?;
    // Upkeep sees how busy all sessions are.
    let sees = "SELECT pg_has_role('taskflow_scheduler', 'pg_read_all_stats', 'USAGE')::int::bigint";
    ensure!(site.count(sees).await? == 1, "the scheduler's role does not see the statistics");
    // Receipts go also where the role may not look at their index.
    let summarizes = "EXECUTE ON FUNCTION summarize_receipts(BIGINT[])";
    site.sql(&format!("REVOKE {summarizes} FROM {scheduler}")).await?;
    site.sql("UPDATE receipts SET finished_at = now() - interval '40 days'").await?;
    let without = run(&sealed.cluster, "retention.receipts").await?;
    let told = without["log"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let told = told.filter(|line| line.contains("ops/roles/postgres.sql")).count();
    ensure!(without["state"] == "completed" && told == 1, "{without}");
    ensure!(without["figures"]["receipts_removed"].as_u64() >= Some(41), "{without}");
    site.sql(&format!("GRANT {summarizes} TO {scheduler}")).await?;
    let with = run(&sealed.cluster, "retention.receipts").await?;
    ensure!(with["state"] == "completed" && with["figures"]["index_left"].is_null(), "{with}");
    sealed.stop().await
}

/// A MongoDB server of the test's own: the shared one knows no users.
struct Server {
    program: PathBuf,
    port: u16,
    folder: tempfile::TempDir,
}

impl Server {
    fn new() -> Result<Self> {
        let of = |name: &str| std::env::var_os(name).unwrap_or_default();
        let on_path =
            std::env::split_paths(&of("PATH")).map(|folder| folder.join("mongod")).collect::<Vec<_>>();
        let built = Path::new(&of("HOME")).join(".cache/taskflow/secantus/bin/secantusd-rs");
        let mut programs = on_path.into_iter().chain([built]);
        Ok(Self {
            program: programs
                .find(|program| program.is_file())
                .context("no mongod and no secantusd-rs; ops/setup")?,
            port: taskflow_servers::Ports::one()?,
            folder: tempfile::tempdir()?,
        })
    }

    /// Runs it until the child is dropped; with users it lets nobody in who is not one.
    fn run(&self, with_users: bool) -> Result<tokio::process::Child> {
        let data = self.folder.path().join("data");
        std::fs::create_dir_all(&data)?;
        let is_mongod = self.program.ends_with("mongod");
        let mut command = tokio::process::Command::new(&self.program);
        command.args([
            "--port",
            &self.port.to_string(),
            if is_mongod { "--dbpath" } else { "--storage-path" },
        ]);
        command.arg(data).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        if !is_mongod {
            // What is acknowledged must be there after the kill.
            command.args(["--standalone", "--sync-on-commit"]);
        }
        if with_users {
            command.arg("--auth");
        }
        Ok(command.spawn()?)
    }

    async fn as_(&self, user: Option<&str>) -> Result<Database> {
        let user = user.map_or_else(String::new, |user| format!("{user}:x@"));
        let url = format!("mongodb://{user}127.0.0.1:{}/taskflow?authSource=taskflow", self.port);
        let settings = taskflow_stores::mongo::Settings { url, ..Default::default() };
        Ok(taskflow_stores::mongo::connect(&settings, "taskflow test").await?)
    }
}

/// `Unauthorized`.
const FORBIDDEN: i32 = 13;

async fn may(database: &Database, command: Document) -> Result<bool> {
    match database.run_command(command.clone()).await {
        Ok(answer) => {
            ensure!(answer.get_array("writeErrors").is_err(), "{command}: {answer}");
            Ok(true)
        }
        Err(error) => match error.kind.as_ref() {
            mongodb::error::ErrorKind::Command(error) if error.code == FORBIDDEN => Ok(false),
            _ => Err(anyhow::Error::from(error).context(command.to_string())),
        },
    }
}

/// The roles of the script, each with a user of its name; what goes on lets nobody else in.
async fn with_roles(server: &Server) -> Result<tokio::process::Child> {
    let text = script("mongodb.js")?;
    let begin = text.find("const roles = ").context("no roles")? + "const roles = ".len();
    let end = text[begin..].find("\n};").context("they have no end")? + "\n}".len();
    let roles: BTreeMap<String, BTreeMap<String, Vec<String>>> =
        serde_json::from_str(&text[begin..begin + end])?;
    let mut child = server.run(false)?;
    let database = server.as_(None).await?;
    wait::until("the server answers", async || Ok(taskflow_stores::mongo::probe(&database).await.is_ok()))
        .await?;
    taskflow_stores::mongo::migrate::up(&database, None).await?;
    for (role, collections) in &roles {
        let privileges: Vec<Document> = collections
            .iter()
            .map(|(name, actions)| doc! { "resource": { "db": "taskflow", "collection": name }, "actions": actions })
            .collect();
        database.run_command(doc! { "createRole": role, "privileges": privileges, "roles": [] }).await?;
        database.run_command(doc! { "createUser": role, "pwd": "x", "roles": [role] }).await?;
    }
    let load = load::read(&database).await?;
    ensure!(matches!(load, Load::Clients(_)), "the server does not tell how busy it is: {load:?}");
    child.kill().await?;
    server.run(true)
}

fn event() -> Document {
    doc! {
        "_id": mongodb::bson::oid::ObjectId::new(), "type": "task.created", "actorId": "", "entityId": "",
        "entityType": "task", "payload": {}, "metadata": { "timestamp": mongodb::bson::DateTime::now() },
        "createdAt": mongodb::bson::DateTime::now(), "expiresAt": mongodb::bson::DateTime::now(),
    }
}

async fn mongodb() -> Result {
    let server = Server::new()?;
    let _again = with_roles(&server).await?;
    let event = event();
    let (app, scheduler, retention, reader) =
        ("taskflow_app", "taskflow_scheduler", "taskflow_retention", "taskflow_reader");
    let insert =
        |collection: &str, document: &Document| doc! { "insert": collection, "documents": [document] };
    let find = |collection: &str| doc! { "find": collection };
    let update = |collection: &str| doc! { "update": collection, "updates": [{ "q": {}, "u": { "$set": { "expiresAt": mongodb::bson::DateTime::now() } } }] };
    let remove = |collection: &str| doc! { "delete": collection, "deletes": [{ "q": { "_id": "nobody" }, "limit": 1 }] };
    let drop_it = |collection: &str| doc! { "drop": collection };
    let one = doc! { "_id": 1_i64, "seal": "" };
    for (user, command, expected) in [
        (app, insert("event_logs", &event), true),
        (app, insert("audit_leaves", &one), true),
        (app, insert("audit_seals", &one), false),
        (app, find("event_logs"), true),
        (app, find("audit_seals"), true),
        (app, update("event_logs"), false),
        (app, remove("event_logs"), false),
        (app, update("audit_leaves"), false),
        (app, remove("audit_leaves"), false),
        (app, remove("audit_seals"), false),
        (app, drop_it("event_logs"), false),
        (app, drop_it("audit_seals"), false),
        (scheduler, update("event_logs"), true),
        (scheduler, insert("audit_seals", &one), true),
        (scheduler, update("audit_seals"), false),
        (scheduler, remove("audit_seals"), false),
        (scheduler, remove("event_logs"), false),
        (scheduler, insert("event_logs", &event), false),
        (retention, remove("event_logs"), true),
        (retention, remove("audit_seals"), false),
        (retention, remove("audit_leaves"), true),
        (reader, find("event_logs"), true),
        (reader, find("audit_leaves"), true),
        (reader, insert("event_logs", &event), false),
        (reader, update("event_logs"), false),
    ] {
        let database = server.as_(Some(user)).await?;
        wait::until("the server answers", async || {
            Ok(taskflow_stores::mongo::probe(&database).await.is_ok())
        })
        .await?;
        ensure!(may(&database, command.clone()).await? == expected, "{user}: {command}: expected {expected}");
    }
    // What a role may not see is no error, and no idle server either.
    let load = load::read(&server.as_(Some(scheduler)).await?).await?;
    ensure!(matches!(&load, Load::Unknown(why) if why.contains("code 13")), "{load:?}");
    Ok(())
}

/// A dump, the trail, and what has come since: by the roles that `ops/roles` gives the scheduler, and not as a superuser.
async fn backups(site: Arc<Site>) -> Result {
    site.sql(&script("postgres.sql")?).await?;
    let options = site.postgres.connect_options();
    let name = options.get_database().context("no database")?;
    site.sql(&format!("CREATE ROLE {name}_upkeep LOGIN PASSWORD 'x' IN ROLE taskflow_scheduler")).await?;
    site.sql(&format!("CREATE ROLE {name}_api LOGIN PASSWORD 'x' IN ROLE taskflow_app")).await?;
    let login = |user: &str| {
        format!("postgres://{name}_{user}:x@{}:{}/{name}", options.get_host(), options.get_port())
    };
    let postgres = login("upkeep");
    let doctor = async |postgres: &str| -> Result<String> {
        let cluster = crate::cluster(&site)?;
        Ok(text(&cluster.run(&["doctor"], &[("TASKFLOW_POSTGRES__URL", postgres)]).await?))
    };
    for login in [&postgres, &login("api")] {
        let said = doctor(login).await?;
        ensure!(said.contains("privileges on all tables"), "{login}: {said}");
    }
    site.sql("REVOKE INSERT ON audit_links FROM taskflow_app; REVOKE UPDATE ON tasks FROM taskflow_app")
        .await?;
    let said = doctor(&login("api")).await?;
    ensure!(said.contains("lacks privileges on: audit_links, tasks;"), "{said}");
    let server = Server::new()?;
    let _running = with_roles(&server).await?;
    let application = server.as_(Some("taskflow_app")).await?;
    wait::until("the server answers", async || Ok(taskflow_stores::mongo::probe(&application).await.is_ok()))
        .await?;
    let insert = async || -> Result {
        ensure!(
            may(&application, doc! { "insert": "event_logs", "documents": [event()] }).await?,
            "no event"
        );
        Ok(())
    };
    insert().await?;
    let mongodb =
        format!("mongodb://taskflow_scheduler:x@127.0.0.1:{}/taskflow?authSource=taskflow", server.port);
    let cluster = crate::cluster(&site)?;
    let backups = Backups::new(&cluster);
    let roles = [("TASKFLOW_POSTGRES__URL", postgres.as_str()), ("TASKFLOW_MONGODB__URL", mongodb.as_str())];
    let create = async |kind: &str| -> Result<String> {
        let made = backups.run(&["backup", "create", kind, "--json"], &roles).await?;
        ensure!(made.status.success(), "{kind}: {}", text(&made));
        let made: Value = serde_json::from_slice(&made.stdout)?;
        Ok(made["backups"][0]["id"].as_str().with_context(|| format!("{kind}: {made}"))?.to_owned())
    };
    let dump = create("postgres").await?;
    create("mongodb").await?;
    insert().await?;
    let trail = create("mongodb-incremental").await?;
    let into = format!("{name}_r");
    backups.ask(&["restore", &dump, &trail, "--into", &into]).await?;
    let alike = must_be_alike(&rows(&site, name).await?, &rows(&site, &into).await?);
    let events = documents(&site, &into).await?["event_logs"].len();
    ensure!(events == 2, "{events} events");
    alike
}
