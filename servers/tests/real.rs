//! The servers as they are: started, stopped, killed, paused, left behind.
#![expect(clippy::unwrap_used, reason = "helpers of tests: what is not there fails the test")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bson::{Document, doc};
use taskflow_servers::{Kind, Options, Ports, Server, Servers};
use tempfile::TempDir;

const LEAVE_BEHIND: &str = "TASKFLOW_TEST_LEAVE_BEHIND";

/// A folder that the servers' users may enter.
fn folder() -> TempDir {
    let folder = tempfile::Builder::new().prefix("tf-servers-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

fn options(folder: &Path) -> Options {
    Options {
        data_dir: folder.to_owned(),
        ports: Ports::free().unwrap(),
        vhosts: vec!["one".into(), "two".into()],
        preload: None,
    }
}

fn report(what: &str, start: Instant) {
    eprintln!("{what}: {:.2} s", start.elapsed().as_secs_f64());
}

fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with('Z'))
}

fn signal(pid: u32, signal: &str) {
    let pid = pid.to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

/// Runs SQL as any client would.
fn sql(url: &str, statement: &str) -> Result<String, String> {
    let mut psql = std::process::Command::new("psql");
    let output =
        psql.args(["-XAtq", "-d", url, "-c", statement]).env("PGCONNECT_TIMEOUT", "2").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Sends a command to MongoDB: a header, no flags, one document.
fn mongo(ports: Ports, command: &Document) -> std::io::Result<Document> {
    let body = command.to_vec().unwrap();
    let mut message = Vec::new();
    for word in [i32::try_from(body.len()).unwrap() + 21, 1, 0, 2013, 0] {
        message.extend(word.to_le_bytes());
    }
    message.push(0);
    message.extend(body);
    let mut stream = TcpStream::connect(("127.0.0.1", ports.mongodb))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&message)?;
    let mut header = [0; 21];
    stream.read_exact(&mut header)?;
    let length = i32::from_le_bytes(header[..4].try_into().unwrap());
    let mut answer = vec![0; usize::try_from(length).unwrap() - header.len()];
    stream.read_exact(&mut answer)?;
    let answer = Document::from_reader(answer.as_slice()).unwrap();
    assert_eq!(answer.get("ok").and_then(as_number), Some(1.0), "{answer}");
    Ok(answer)
}

fn as_number(value: &bson::Bson) -> Option<f64> {
    value.as_f64().or_else(|| value.as_i32().map(f64::from))
}

fn insert_event(ports: Ports, number: i32) {
    let concern = doc! { "w": 1, "j": true };
    let insert = doc! { "insert": "events", "documents": [{ "_id": number }], "writeConcern": concern, "$db": "taskflow" };
    mongo(ports, &insert).unwrap();
}

fn count_events(ports: Ports) -> f64 {
    let answer = mongo(ports, &doc! { "count": "events", "$db": "taskflow" }).unwrap();
    answer.get("n").and_then(as_number).unwrap()
}

/// Sends lines to Redis and reads what comes within the time.
fn redis(server: &Server, commands: &str) -> std::io::Result<String> {
    let (password, address) = server.url().trim_start_matches("redis://:").split_once('@').unwrap();
    let mut stream = TcpStream::connect(address.trim_end_matches("/0"))?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    stream.write_all(format!("AUTH {password}\r\n{commands}\r\n").as_bytes())?;
    let mut answer = [0; 100];
    let mut length = 0;
    while let Ok(more @ 1..) = stream.read(&mut answer[length..]) {
        length += more;
    }
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

/// Callers start servers in tasks of their own.
#[test]
fn starts_can_be_spawned() {
    fn must_be_send(_: impl Send) {}
    let options = options(Path::new("/nowhere"));
    must_be_send(Servers::start(&options));
    must_be_send(Servers::start_with(&options, |_| {}));
    must_be_send(Server::start(Kind::Redis, &options));
}

/// One test, for the servers take seconds: all four through their lives.
#[tokio::test]
async fn all_four_start_keep_their_data_and_stop() {
    let folder = folder();
    let options = options(folder.path());
    let ports = options.ports;

    let start = Instant::now();
    let mut servers = Servers::start_with(&options, |line| eprintln!("  {line}")).await.unwrap();
    report("first start", start);
    let urls = servers.all().map(|server| server.url().to_owned());
    sql(&urls[0], "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").unwrap();
    assert_eq!(sql(&urls[0], "SHOW fsync").unwrap(), "on");
    assert_eq!(sql(&urls[0], "SHOW server_encoding").unwrap(), "UTF8");
    let wrong = sql(&urls[0].replace("taskflow:", "taskflow:x"), "SELECT 1").unwrap_err();
    assert!(wrong.contains("password authentication failed"), "{wrong}");
    insert_event(ports, 1);
    assert_eq!(redis(&servers.redis, "SET kept 1").unwrap(), "+OK\r\n+OK\r\n");
    // Nobody else reads the passwords, wherever they lie.
    for file in ["secret/postgres", "secret/redis", "redis/redis.conf", "rabbitmq/definitions.json"] {
        let mode = std::fs::metadata(folder.path().join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }

    let second = Server::start(Kind::Redis, &options).await.err().unwrap().to_string();
    assert!(second.contains("in use by another TaskFlow"), "{second}");

    let start = Instant::now();
    servers.stop().await;
    report("stop", start);
    for port in [ports.postgres, ports.rabbitmq, ports.erlang, ports.epmd, ports.mongodb, ports.redis] {
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "port {port} still answers");
    }
    drop(servers);

    let start = Instant::now();
    let mut servers = Servers::start_with(&options, |line| eprintln!("  {line}")).await.unwrap();
    report("second start", start);
    assert_eq!(servers.all().map(|server| server.url().to_owned()), urls, "passwords are kept");
    assert_eq!(sql(&urls[0], "SELECT n FROM kept").unwrap(), "1");
    assert!((count_events(ports) - 1.0).abs() < 0.1);
    assert!(redis(&servers.redis, "GET kept").unwrap().ends_with("$1\r\n1\r\n"));

    // Killed the moment a write was acknowledged, and started again.
    for server in servers.all() {
        match server.kind() {
            Kind::Postgres => drop(sql(&urls[0], "INSERT INTO kept VALUES (2)").unwrap()),
            Kind::MongoDb => insert_event(ports, 2),
            // No promise rests on what Redis wrote within the last second, and the broker's is tested with its client.
            Kind::RabbitMq | Kind::Redis => {}
        }
        let pid = server.pid().unwrap();
        let start = Instant::now();
        server.kill().await;
        report(&format!("kill {}", server.name()), start);
        assert!(!is_alive(pid));
        let start = Instant::now();
        server.restart().await.unwrap();
        report(&format!("{} after a kill", server.name()), start);
    }
    assert_eq!(sql(&urls[0], "SELECT count(*) FROM kept").unwrap(), "2");
    assert!((count_events(ports) - 2.0).abs() < 0.1, "an acknowledged event is lost by a kill");

    let pids = servers.all().map(|server| server.pid().unwrap());
    drop(servers);
    tokio::time::sleep(Duration::from_millis(300)).await;
    for pid in pids {
        assert!(!is_alive(pid), "{pid} outlived its owner");
    }
}

/// Postgres' sessions are no members of its process group, so a pause of the group would not stop them.
#[tokio::test]
async fn a_pause_stops_open_sessions_too() {
    let folder = folder();
    let options = options(folder.path());
    let mut server = Server::start(Kind::Postgres, &options).await.unwrap();
    let mut psql = std::process::Command::new("psql")
        .args(["-XAtq", "-d", server.url(), "-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = psql.stdin.take().unwrap();
    let mut output = psql.stdout.take().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut byte = [0; 2];
        while output.read_exact(&mut byte).is_ok() && send.send(byte).is_ok() {}
    });
    writeln!(input, "SELECT 1;").unwrap();
    assert_eq!(receive.recv_timeout(Duration::from_secs(10)).unwrap(), *b"1\n");

    server.pause();
    writeln!(input, "SELECT 2;").unwrap();
    assert!(receive.recv_timeout(Duration::from_millis(700)).is_err(), "a paused server answered");
    server.resume();
    assert_eq!(receive.recv_timeout(Duration::from_secs(10)).unwrap(), *b"2\n");
    server.wait_ready().await.unwrap();

    // Sessions are gone with it: one that lived on would hold the shared memory.
    server.pause();
    server.kill().await;
    server.restart().await.unwrap();
    // A paused server can be asked to stop.
    server.pause();
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(input);
    psql.wait().unwrap();
}

/// Another process's number in the old pid file keeps no server from starting, and is left alone.
#[tokio::test]
async fn numbers_that_were_given_again_are_left_alone() {
    let folder = folder();
    let options = options(folder.path());
    let mut postgres = Server::start(Kind::Postgres, &options).await.unwrap();
    let postmaster = folder.path().join("postgres/data/postmaster.pid");
    let text = std::fs::read_to_string(&postmaster).unwrap();
    postgres.kill().await;
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(!is_alive(first.parse().unwrap()));
    let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    std::fs::write(&postmaster, format!("{}\n{rest}", stranger.id())).unwrap();
    std::fs::write(folder.path().join("run/postgres.pid"), format!("{} 1 x\n", stranger.id())).unwrap();

    postgres.restart().await.unwrap();
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    postgres.kill().await;
}

#[tokio::test]
async fn a_port_in_other_hands_is_named() {
    let folder = folder();
    let options = options(folder.path());
    let _holder = std::net::TcpListener::bind(("127.0.0.1", options.ports.redis)).unwrap();
    let error = format!("{:#}", Server::start(Kind::Redis, &options).await.err().unwrap());
    assert!(error.contains(&options.ports.redis.to_string()), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "{error}");
}

/// Only root gives the servers users of their own, which may not go everywhere.
#[tokio::test]
async fn a_folder_out_of_reach_is_explained() {
    let folder = folder();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let mut options = options(folder.path());
    options.data_dir = folder.path().join("deep/data");
    let started = Server::start(Kind::Redis, &options).await;
    if !std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
        assert!(started.is_ok());
        return;
    }
    let error = format!("{:#}", started.err().unwrap());
    assert!(error.contains(&format!("{} is closed", folder.path().display())), "{error}");
    assert!(error.contains("chmod o+x"), "{error}");
}

/// What is left after a `kill -9` of whoever started it is found and stopped, paused or not, and its data are there.
#[tokio::test]
async fn leftovers_are_stopped_first() {
    let folder = folder();
    let options = options(folder.path());
    let ports: Vec<String> =
        [options.ports.postgres, options.ports.rabbitmq, options.ports.mongodb, options.ports.redis]
            .iter()
            .chain([&options.ports.erlang, &options.ports.epmd])
            .map(u16::to_string)
            .collect();
    // This very program again: it starts the servers in our folder and waits.
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "helper_that_leaves_servers_behind"])
        .env(LEAVE_BEHIND, format!("{} {}", folder.path().display(), ports.join(" ")))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let ready = folder.path().join("ready");
    let deadline = Instant::now() + Duration::from_mins(2);
    while !ready.exists() {
        assert!(Instant::now() < deadline && owner.try_wait().unwrap().is_none(), "the helper did not start");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left: Vec<u32> =
        std::fs::read_to_string(&ready).unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(left.iter().all(|pid| is_alive(*pid)));
    // One is known by its pid file alone no longer, one does not hear signals.
    std::fs::remove_file(folder.path().join("run/redis.pid")).unwrap();
    signal(left[0], "-STOP");

    let start = Instant::now();
    let mut servers = Servers::start(&options).await.unwrap();
    report("start over leftovers", start);
    assert!(!left.iter().any(|pid| is_alive(*pid)));
    assert_eq!(sql(servers.postgres.url(), "SELECT n FROM kept").unwrap(), "7");
    for server in servers.all() {
        server.kill().await;
    }
}

#[tokio::test]
#[ignore = "a part of another test, in a process of its own"]
async fn helper_that_leaves_servers_behind() {
    #[expect(clippy::disallowed_methods, reason = "how one process of a test speaks to the other")]
    let Ok(plan) = std::env::var(LEAVE_BEHIND) else { return };
    let (folder, ports) = plan.split_once(' ').unwrap();
    let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().unwrap()).collect();
    let [postgres, rabbitmq, mongodb, redis, erlang, epmd] = ports[..] else { panic!("six ports") };
    let options = Options {
        data_dir: folder.into(),
        ports: Ports { postgres, rabbitmq, erlang, epmd, mongodb, redis },
        vhosts: Vec::new(),
        preload: None,
    };
    let mut servers = Servers::start(&options).await.unwrap();
    sql(servers.postgres.url(), "CREATE TABLE kept AS SELECT 7 AS n").unwrap();
    let pids = servers.all().map(|server| server.pid().unwrap().to_string());
    let ready = Path::new(folder).join("ready");
    std::fs::write(ready.with_extension("fresh"), pids.join(" ")).unwrap();
    std::fs::rename(ready.with_extension("fresh"), ready).unwrap();
    // Until it is killed. Should the test fail, the servers go with us.
    tokio::time::sleep(Duration::from_mins(2)).await;
}
