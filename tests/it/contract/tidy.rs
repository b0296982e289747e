//! Our rules as tests: what can be checked is not left to memory.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_core::metric;
use taskflow_core::retention::SYSTEM_TYPES;
use taskflow_tests::Result;

use crate::plain;

const LINES_MAX: usize = 500;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        plain("tidy: files are short", short_files),
        plain("tidy: dependencies point one way", directions),
        plain("tidy: stores do not know each other", apart),
        plain("tidy: no leftovers", leftovers),
        plain("tidy: every metric is documented", metrics),
        plain("tidy: retention knows every type of event", event_types),
        plain("tidy: the folders that must be there", folders),
        plain("tidy: versions stand in one place", versions),
        plain("tidy: ARCHITECTURE.md names files that exist", architecture),
    ]
}

pub(super) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// Every file under version control, or about to be.
fn files() -> Result<Vec<PathBuf>> {
    let list = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()?;
    ensure!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let files = String::from_utf8(list.stdout)?;
    Ok(files.lines().map(|line| root().join(line)).filter(|file| file.is_file()).collect())
}

fn sources() -> Result<Vec<(PathBuf, String)>> {
    let rust = files()?.into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "rs"));
    rust.map(|file| Ok((file.clone(), std::fs::read_to_string(&file)?))).collect()
}

fn must_be_empty(rule: &str, found: &[String]) -> Result {
    ensure!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
    Ok(())
}

/// What is not known has its class by its name alone: no setting can change it, and no dry run counts it.
fn event_types() -> Result {
    let known: Vec<&str> = taskflow_core::event::TYPES.into_iter().chain(SYSTEM_TYPES).collect();
    let mut found = Vec::new();
    for (file, text) in sources()? {
        let relative = file.strip_prefix(root())?;
        if !relative.components().any(|part| part.as_os_str() == "src") || relative.starts_with("tests") {
            continue;
        }
        // What a file's own tests make up is no type of ours.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for piece in text.split('"').filter(|piece| piece.starts_with("system.")) {
            let plain =
                piece["system.".len()..].chars().all(|char| char.is_ascii_lowercase() || "_.".contains(char));
            let whole = plain && !piece.ends_with('.');
            if whole && !known.contains(&piece) {
                found.push(format!("{}: {piece}", relative.display()));
            }
        }
    }
    must_be_empty("core/src/retention.rs lacks types of events that are made", &found)
}

fn short_files() -> Result {
    let long: Vec<String> = sources()?
        .iter()
        .map(|(file, text)| (file, text.lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{}: {lines} lines", file.display()))
        .collect();
    must_be_empty(&format!("a file has at most {LINES_MAX} lines: cut it by its ideas"), &long)
}

/// What each crate may depend on, of ours.
const MAY_USE: [(&str, &[&str]); 8] = [
    ("core", &[]),
    ("stores", &["taskflow-core"]),
    ("servers", &[]),
    ("api", &["taskflow-core", "taskflow-stores"]),
    ("workers", &["taskflow-core", "taskflow-stores"]),
    ("backup", &["taskflow-core", "taskflow-stores", "taskflow-servers"]),
    ("scheduler", &["taskflow-core", "taskflow-stores", "taskflow-backup"]),
    (
        "cli",
        &[
            "taskflow-core",
            "taskflow-stores",
            "taskflow-servers",
            "taskflow-backup",
            "taskflow-api",
            "taskflow-workers",
            "taskflow-scheduler",
        ],
    ),
];

fn directions() -> Result {
    let mut found = Vec::new();
    for (folder, allowed) in MAY_USE {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
        let dependencies = manifest.split("[dependencies]").nth(1).context("no dependencies")?;
        for line in dependencies.lines().filter(|line| line.starts_with("taskflow")) {
            let name = line.split([' ', '=']).next().unwrap_or_default();
            if !allowed.contains(&name) {
                found.push(format!("{folder} uses {name}"));
            }
        }
    }
    let pure =
        ["tokio", "sqlx", "lapin", "mongodb", "redis", "axum", "std::fs", "std::net", "async fn", "Utc::now"];
    for (file, text) in sources()? {
        if file.starts_with(root().join("core/src")) {
            found.extend(
                pure.iter()
                    .filter(|word| text.contains(*word))
                    .map(|word| format!("{}: {word}", file.display())),
            );
        }
    }
    must_be_empty("cli → api, workers, scheduler → stores → core; core does no I/O", &found)
}

fn apart() -> Result {
    let stores = ["postgres", "rabbit", "mongo", "redis"];
    let mut found = Vec::new();
    for (file, text) in sources()? {
        let Some(own) = stores.iter().find(|store| file.starts_with(root().join("stores/src").join(store)))
        else {
            continue;
        };
        for other in stores.iter().filter(|other| *other != own) {
            if text.contains(&format!("crate::{other}")) {
                found.push(format!("{} uses {other}", file.display()));
            }
        }
    }
    must_be_empty("joining two stores is a role's business", &found)
}

fn leftovers() -> Result {
    // Cut in two, or this file would find itself.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("XX", "X"),
        concat!("dbg", "!("),
        concat!("#[ign", "ore"),
    ];
    let mut found = Vec::new();
    for (file, text) in sources()? {
        for (number, line) in text.lines().enumerate() {
            // One part of a test may run in a process of its own.
            if line.contains("a part of another test") {
                continue;
            }
            found.extend(
                words
                    .iter()
                    .filter(|word| line.contains(*word))
                    .map(|word| format!("{}:{}: {word}", file.display(), number + 1)),
            );
            let waits = concat!("sleep(Duration::from_", "secs");
            if file.starts_with(root().join("tests/it")) && line.contains(waits) {
                found.push(format!("{}:{}: tests wait for conditions", file.display(), number + 1));
            }
        }
    }
    must_be_empty("nothing is left over", &found)
}

fn metrics() -> Result {
    let documented = std::fs::read_to_string(root().join("docs/metrics.md"))?;
    let missing: Vec<String> = metric::ALL
        .iter()
        .filter(|metric| !documented.contains(&format!("`{}`", metric.name)))
        .map(|metric| metric.name.to_owned())
        .collect();
    must_be_empty("docs/metrics.md has a row for every metric", &missing)?;
    alerts()?;
    // What records for others is not who records.
    let others = sources()?.into_iter().filter(|(file, _)| !file.ends_with("stores/src/observe.rs"));
    let recorded: String = others.map(|(_, text)| text).collect();
    let by_helper = |name: &str| match name {
        "STORE_CALL" => recorded.contains("observe::store_took("),
        "STORE_UP" => recorded.contains("observe::store_up("),
        _ => false,
    };
    let source = std::fs::read_to_string(root().join("core/src/metric.rs"))?;
    let unused: Vec<String> = source
        .lines()
        .filter_map(|line| line.trim().split_once(" = \"taskflow_").map(|(name, _)| name.to_owned()))
        .filter(|name| !recorded.contains(&format!("metric::{name}")) && !by_helper(name))
        .collect();
    must_be_empty("every metric is recorded somewhere", &unused)
}

/// An alert about a metric that is not there never fires.
fn alerts() -> Result {
    let rules = std::fs::read_to_string(root().join("ops/prometheus/alerts.yml"))?;
    let is_known = |word: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|part| word.strip_suffix(part));
        metric::ALL.iter().any(|metric| metric.name == word || Some(metric.name) == of_histogram)
    };
    let named = rules
        .lines()
        .flat_map(|line| line.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_')));
    let unknown: Vec<String> =
        named.filter(|word| word.starts_with("taskflow_") && !is_known(word)).map(str::to_owned).collect();
    must_be_empty("ops/prometheus/alerts.yml names only metrics that there are", &unknown)
}

fn folders() -> Result {
    let wanted = [
        "api",
        "workers",
        "scheduler",
        "migrations",
        "ops",
        "tests",
        "Cargo.toml",
        "docker-compose.yml",
        "README.md",
    ];
    let missing: Vec<String> =
        wanted.iter().filter(|name| !root().join(name).exists()).map(|name| (*name).to_owned()).collect();
    must_be_empty("these must exist", &missing)
}

fn versions() -> Result {
    let mut found = Vec::new();
    for (folder, _) in MAY_USE.iter().chain([&("tests", [].as_slice())]) {
        let manifest = std::fs::read_to_string(root().join(folder).join("Cargo.toml"))?;
        let dependencies = manifest.split("dependencies]").skip(1).flat_map(str::lines);
        let lines = dependencies.take_while(|line| !line.starts_with("[[") && !line.starts_with("[features"));
        found.extend(
            lines
                .filter(|line| line.contains("version =") || line.contains("= \""))
                .map(|line| format!("{folder}: {line}")),
        );
    }
    must_be_empty("versions belong into the workspace's Cargo.toml", &found)
}

fn architecture() -> Result {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let named = text.split('`').skip(1).step_by(2).filter(|word| {
        word.contains('/')
            && !word.contains([' ', '{', '*', '<', ':'])
            && Path::new(word)
                .extension()
                .is_some_and(|ext| ext == "rs" || ext == "sql" || ext == "md" || ext == "json")
    });
    let missing: Vec<String> = named.filter(|file| !root().join(file).exists()).map(str::to_owned).collect();
    must_be_empty("ARCHITECTURE.md names only what is there", &missing)
}
