use std::sync::Mutex;
use std::sync::mpsc::channel;

use drogher_migrate::report::Report;

use super::*;
use crate::api::{GuestState, Outcome, VmStatus};
use crate::client::Client;

/// Answers like a guest that runs, and notes what it was asked.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<String>>,
}

impl Fake {
    fn note(&self, what: &str) {
        self.asked.lock().unwrap().push(what.to_owned());
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        Status {
            vm: VmStatus {
                state: GuestState::Running,
                id: Some("x".into()),
                pid: 1,
                cpus: 1,
                memory_bytes: 4096,
                lease: None,
                devices: Vec::new(),
            },
            migration: drogher_migrate::Status::default(),
        }
    }
    fn pause(&self) -> Result<(), Refusal> {
        self.note("pause");
        Ok(())
    }
    fn resume(&self) -> Result<(), Refusal> {
        Err(Refusal("it is not paused".into()))
    }
    fn abort(&self) -> Result<(), Refusal> {
        Err(Refusal("nothing to abort".into()))
    }
    fn shutdown(&self) -> Result<(), Refusal> {
        self.note("shutdown");
        Ok(())
    }
    fn migrate(&self, request: MigrateRequest) -> Result<Receiver<MigrateLine>, Refusal> {
        self.note(&request.to);
        let (lines, answers) = channel();
        lines
            .send(MigrateLine::Outcome {
                outcome: Outcome::Moved,
                message: "moved".into(),
                report: Box::new(Report::default()),
            })
            .unwrap();
        Ok(answers)
    }
}

fn started() -> (tempfile::TempDir, Server, Arc<Fake>, Client) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let fake = Arc::new(Fake::default());
    let server = Server::start(&path, Arc::clone(&fake) as Arc<dyn Control>).unwrap();
    (folder, server, fake, Client::new(&path))
}

#[test]
fn requests_reach_the_guest_and_refusals_the_user() {
    let (_folder, _server, fake, client) = started();
    let status: Status = client.get("/v1/status").unwrap();
    assert_eq!(status.vm.state, GuestState::Running);
    let _: serde_json::Value = client.post("/v1/pause", &json!({})).unwrap();
    let error = client.post::<_, serde_json::Value>("/v1/resume", &json!({})).unwrap_err();
    assert_eq!(error.to_string(), "it is not paused");
    assert_eq!(*fake.asked.lock().unwrap(), ["pause"]);
}

#[test]
fn the_status_has_the_fields_of_query_migrate() {
    let (_folder, _server, _fake, client) = started();
    let status: serde_json::Value = client.get("/v1/status").unwrap();
    for field in ["status", "total-time", "downtime", "expected-downtime", "setup-time", "ram"] {
        assert!(status.get(field).is_some(), "{field} is missing in {status}");
    }
    for field in [
        "transferred",
        "remaining",
        "total",
        "duplicate",
        "normal",
        "normal-bytes",
        "dirty-pages-rate",
        "mbps",
        "dirty-sync-count",
        "page-size",
        "pages-per-second",
        "precopy-bytes",
        "downtime-bytes",
    ] {
        assert!(status["ram"].get(field).is_some(), "ram.{field} is missing in {status}");
    }
    assert!(status["vfio"].get("transferred").is_some());
}

#[test]
fn a_migration_is_a_stream_of_lines() {
    let (_folder, _server, fake, client) = started();
    let mut lines = Vec::new();
    client
        .post_lines("/v1/migrate", &json!({"to": "unix:/x"}), |line: MigrateLine| lines.push(line))
        .unwrap();
    assert!(matches!(&lines[..], [MigrateLine::Outcome { outcome: Outcome::Moved, .. }]));
    assert_eq!(*fake.asked.lock().unwrap(), ["unix:/x"]);
}

#[test]
fn unknown_fields_paths_and_methods_are_named() {
    let (_folder, _server, fake, client) = started();
    let ask = |path: &str, body| {
        client.post::<serde_json::Value, serde_json::Value>(path, &body).unwrap_err().to_string()
    };
    let error = ask("/v1/migrate", json!({"to": "unix:/x", "downtime": 3}));
    assert!(error.contains("downtime"), "{error}");
    assert!(ask("/v1/migrat", json!({})).contains("/v1/migrat"));
    assert!(ask("/v1/status", json!({})).contains("GET"));
    assert!(fake.asked.lock().unwrap().is_empty());
}

#[test]
fn the_socket_is_private_and_a_dead_one_is_replaced() {
    let (folder, server, _fake, _client) = started();
    let path = folder.path().join("control");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(listen(&path), Err(ServerError::InUse(_))));
    drop(server);
    assert!(!path.exists());
    drop(UnixListener::bind(&path).unwrap());
    assert!(listen(&path).is_ok());
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(listen(&file), Err(ServerError::Exists(_))));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}
