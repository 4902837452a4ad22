use std::sync::Mutex;
use std::sync::mpsc::channel;

use drogher_migrate::Phase;
use drogher_migrate::report::Report;

use super::*;
use crate::api::{GuestState, Outcome, VmStatus};
use crate::client::Client;

/// Answers like a guest that runs, and notes what it was asked.
#[derive(Default)]
struct Fake {
    asked: Mutex<Vec<String>>,
    /// It panics when its status is asked for.
    breaks: bool,
}

impl Fake {
    fn note(&self, what: &str) {
        self.asked.lock().unwrap().push(what.to_owned());
    }
}

impl Control for Fake {
    fn status(&self) -> Status {
        assert!(!self.breaks, "a test's panic");
        Status {
            vm: VmStatus {
                state: GuestState::Running,
                id: Some("x".into()),
                pid: 1,
                cpus: 1,
                memory_bytes: 4096,
                lease: None,
                devices: Vec::new(),
                tracking: None,
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
    fn powerdown(&self) -> Result<(), Refusal> {
        self.note("powerdown");
        Ok(())
    }
    fn shutdown(&self) -> Result<(), Refusal> {
        self.note("shutdown");
        Ok(())
    }
    fn tracking(&self) -> Result<TrackingStatus, Refusal> {
        Ok(TrackingStatus { active: true, ..TrackingStatus::default() })
    }
    fn switch_tracking(&self, request: TrackingRequest) -> Result<(), Refusal> {
        self.note(&format!("{:?} {:?}", request.device, request.choice().provider));
        Ok(())
    }
    fn explain(&self, wishes: Wishes) -> Result<Explanation, Refusal> {
        self.note(&format!("{:?}", wishes.early_ndma));
        Ok(Explanation { possible: true, spaces: Vec::new(), refusals: Vec::new() })
    }
    fn params(&self) -> Result<Vec<DeviceParams>, Refusal> {
        Err(Refusal("there is no guest".into()))
    }
    fn set_param(&self, request: ParamRequest) -> Result<(), Refusal> {
        self.note(&format!("{} {}={}", request.device, request.name, request.value));
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
                tracking: None,
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
fn a_client_over_the_limit_is_told_so() {
    let (folder, server, _fake, client) = started();
    let path = folder.path().join("control");
    // They say nothing, and are waited for.
    let mut silent: Vec<_> =
        (0..CONNECTIONS_MAX).map(|_| UnixStream::connect(&path).unwrap()).collect();
    let end = Instant::now() + Duration::from_secs(4);
    while server.open.load(Ordering::Acquire) < CONNECTIONS_MAX && Instant::now() < end {
        std::thread::yield_now();
    }
    // A body that the server doesn't take.
    let padding = json!({"to": "x".repeat(100_000)});
    for _ in 0..5 {
        let error = client.post::<_, serde_json::Value>("/v1/abort", &padding).unwrap_err();
        assert!(error.to_string().contains("being served already"), "{error}");
    }
    silent.clear();
    let _: Status = loop {
        match client.get("/v1/status") {
            Ok(status) => break status,
            Err(error) => assert!(Instant::now() < end + Duration::from_secs(60), "{error}"),
        }
    };
}

#[test]
fn requests_that_panic_do_not_use_the_server_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let _server = Server::start(&path, Arc::new(Fake { breaks: true, ..Fake::default() })).unwrap();
    let client = Client::new(&path);
    for _ in 0..CONNECTIONS_MAX + 1 {
        assert!(client.get::<Status>("/v1/status").is_err());
    }
    let _: serde_json::Value = client.post("/v1/pause", &json!({})).unwrap();
}

#[test]
fn tracking_and_parameters_are_asked_for_and_set() {
    let (_folder, _server, fake, client) = started();
    let status: TrackingStatus = client.get("/v1/tracking").unwrap();
    assert!(status.active);
    let wish = TrackingRequest {
        device: Some("nic".into()),
        tracker: Some("fault".parse::<drogher_machine::tracking::ProviderKind>().unwrap().into()),
        ..TrackingRequest::default()
    };
    let done: Value = client.put("/v1/tracking", &wish).unwrap();
    assert_eq!(done, json!({"done": "switched"}));
    let wishes = Wishes { early_ndma: vec!["nic".into()], ..Wishes::default() };
    let explanation: Explanation = client.post("/v1/explain", &wishes).unwrap();
    assert!(explanation.possible);
    let error = client.get::<Vec<DeviceParams>>("/v1/params").unwrap_err().to_string();
    assert_eq!(error, "there is no guest");
    let param = json!({"device": "nic", "name": "colour", "value": "red"});
    let _: Value = client.put("/v1/params", &param).unwrap();
    let asked = fake.asked.lock().unwrap().clone();
    assert_eq!(asked, ["Some(\"nic\") Some(Fault)", "[\"nic\"]", "nic colour=red"]);
    for (path, body, word) in [
        ("/v1/tracking", json!({"tracker": "magic"}), "magic"),
        ("/v1/tracking", json!({"page": "5K"}), "power of two"),
        ("/v1/tracking", json!({"colour": "red"}), "colour"),
        ("/v1/params", json!({"device": "nic"}), "name"),
        ("/v1/explain", json!({}), "use GET for status"),
    ] {
        let error = client.put::<_, Value>(path, &body).unwrap_err().to_string();
        assert!(error.contains(word), "{path}: {error}");
    }
}

/// Nobody is woken for each event while the guest stands.
#[test]
fn the_events_of_a_switchover_go_in_one_piece() {
    let phase = |phase| MigrateLine::Event { of: Event::Phase { phase, round: 2, at_us: 7 } };
    let (sender, lines) = channel();
    for each in [Phase::PauseVcpus, Phase::Quiesce, Phase::Stop] {
        sender.send(phase(each)).unwrap();
    }
    // What comes while the guest stands comes in the same piece.
    let later = std::thread::spawn(move || {
        std::thread::sleep(GATHER * 2);
        sender.send(phase(Phase::Commit)).unwrap();
        sender
    });
    let batch = gather(phase(Phase::Forecast), &lines);
    assert!(batch.len() >= 4 && is_switchover(&batch[1]), "{batch:?}");
    let sender = later.join().unwrap();
    let rest = lines.try_iter().count();
    assert_eq!(batch.len() + rest, 5, "nothing is lost");
    sender.send(phase(Phase::Running)).unwrap();
    assert_eq!(gather(phase(Phase::Resend), &lines).len(), 2);
}
