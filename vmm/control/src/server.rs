//! The control socket: HTTP with JSON over a Unix socket, for this user alone.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | a [`Status`](crate::api::Status) |
//! | `POST /v1/pause`, `/v1/resume`, `/v1/abort`, `/v1/powerdown`, `/v1/shutdown` | `{"done": "..."}` |
//! | `GET /v1/tracking`; `PUT` with a [`TrackingRequest`] | a [`TrackingStatus`]; `{"done": "..."}` |
//! | `POST /v1/explain` with [`Wishes`] | an [`Explanation`] |
//! | `GET /v1/params`; `PUT` with a [`ParamRequest`] | a list of [`DeviceParams`]; `{"done": "..."}` |
//! | `POST /v1/migrate` with a [`MigrateRequest`](crate::api::MigrateRequest) | JSON lines: each a [`MigrateLine`](crate::api::MigrateLine), the last one an outcome |
//!
//! A refusal is a status of 4xx with `{"error": "..."}`.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use drogher_machine::device::DeviceParams;
use drogher_machine::tracking::{Explanation, TrackingStatus, Wishes};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use drogher_migrate::report::Event;

use crate::api::{MigrateLine, MigrateRequest, ParamRequest, Refusal, Status, TrackingRequest};
use crate::http::{self, HttpError, Request};
use crate::socket::{SocketError, SocketFile, listen, peer_is_us};

/// How long a client may take to send its request, or to take the answer.
const CLIENT_DEADLINE: Duration = Duration::from_secs(5);

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 16;

/// How long a client that is turned away is held: others wait meanwhile.
const TURN_AWAY_DEADLINE: Duration = Duration::from_millis(100);

/// A stream of lines says something at least this often.
const LINE_EVERY: Duration = Duration::from_secs(1);
/// How long lines gather before they are sent.
const GATHER: Duration = Duration::from_millis(10);
/// How much longer if the guest stands meanwhile: most switchovers are over by then.
const GATHER_IN_SWITCHOVER: Duration = Duration::from_millis(50);

/// What a process can be asked for. Called from any thread, concurrently.
pub trait Control: Send + Sync + 'static {
    /// What the process does.
    fn status(&self) -> Status;
    /// Stops the vCPUs and devices until `resume`.
    ///
    /// # Errors
    /// With the reason, as the other requests.
    fn pause(&self) -> Result<(), Refusal>;
    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// With the reason.
    fn resume(&self) -> Result<(), Refusal>;
    /// Ends a migration; the guest runs on here.
    ///
    /// # Errors
    /// With the reason.
    fn abort(&self) -> Result<(), Refusal>;
    /// Presses the guest's power button.
    ///
    /// # Errors
    /// With the reason.
    fn powerdown(&self) -> Result<(), Refusal>;
    /// Ends guest and process.
    ///
    /// # Errors
    /// With the reason.
    fn shutdown(&self) -> Result<(), Refusal>;
    /// How the devices' DMA is tracked.
    ///
    /// # Errors
    /// With the reason.
    fn tracking(&self) -> Result<TrackingStatus, Refusal>;
    /// Has it tracked otherwise from now on.
    ///
    /// # Errors
    /// With the reason.
    fn switch_tracking(&self, request: TrackingRequest) -> Result<(), Refusal>;
    /// What would track it in a migration with these wishes, and why.
    ///
    /// # Errors
    /// With the reason.
    fn explain(&self, wishes: Wishes) -> Result<Explanation, Refusal>;
    /// The devices' parameters.
    ///
    /// # Errors
    /// With the reason.
    fn params(&self) -> Result<Vec<DeviceParams>, Refusal>;
    /// Sets one.
    ///
    /// # Errors
    /// With the reason.
    fn set_param(&self, request: ParamRequest) -> Result<(), Refusal>;
    /// Starts a migration; its events arrive in the channel, the outcome last.
    ///
    /// # Errors
    /// With the reason.
    fn migrate(&self, request: MigrateRequest) -> Result<Receiver<MigrateLine>, Refusal>;
}

/// A listening control socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    _file: SocketFile,
    open: Arc<AtomicUsize>,
}

impl Server {
    /// Starts to serve `control` at `path` on a thread of its own.
    ///
    /// # Errors
    /// When the socket can't be had.
    pub fn start(path: &Path, control: Arc<dyn Control>) -> Result<Self, SocketError> {
        let (listener, file) = listen(path)?;
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &control, &counter))
            .map_err(|source| SocketError::Bind { path: path.to_owned(), source })?;
        Ok(Self { _file: file, open })
    }

    /// Waits until every answer that was begun has been sent, at most `deadline`.
    pub fn drain(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        while self.open.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A connection that is being served.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(open))
    }
}

impl Drop for Open {
    // Also when its thread panics: a count that only rises would end the control socket.
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn accept(listener: &UnixListener, control: &Arc<dyn Control>, open: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            // Out of descriptors, most likely: let others end first.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if !peer_is_us(&stream) {
            turn_away(stream, 403, "this process belongs to another user");
            continue;
        }
        if open.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            let why = format!("{CONNECTIONS_MAX} requests are being served already; try again");
            turn_away(stream, 503, &why);
            continue;
        }
        let counted = Open::new(open);
        let control = Arc::clone(control);
        // Without a thread for it the connection is closed.
        let _ = std::thread::Builder::new().name("control-client".into()).spawn(move || {
            if let Err(error) = serve(&mut stream, control.as_ref()) {
                tracing::debug!(%error, "a control connection failed");
            }
            drop(stream);
            drop(counted);
        });
    }
}

/// Says why, and reads the request away: a connection that is closed over bytes that nobody has read
/// breaks, and its client may then not see the answer.
fn turn_away(mut stream: UnixStream, status: u16, why: &str) {
    let _ = stream.set_write_timeout(Some(TURN_AWAY_DEADLINE));
    let _ = http::respond(&mut stream, status, &json!({"error": why}));
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(TURN_AWAY_DEADLINE));
    let end = Instant::now() + TURN_AWAY_DEADLINE;
    let mut buffer = [0; 4096];
    while Instant::now() < end && stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

fn serve(stream: &mut UnixStream, control: &dyn Control) -> Result<(), HttpError> {
    stream
        .set_write_timeout(Some(CLIENT_DEADLINE))
        .map_err(|source| HttpError::Io { doing: "setting a deadline", source })?;
    let request = match Request::read(stream, CLIENT_DEADLINE) {
        Ok(request) => request,
        Err(error) => {
            let _ = http::respond(stream, 400, &json!({"error": error.to_string()}));
            return Err(error);
        }
    };
    let done = |result: Result<(), Refusal>, word: &str| match result {
        Ok(()) => (200, json!({"done": word})),
        Err(refusal) => (409, json!({"error": refusal.0})),
    };
    let (status, answer) = match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v1/status") => (200, json!(control.status())),
        ("POST", "/v1/pause") => done(control.pause(), "paused"),
        ("POST", "/v1/resume") => done(control.resume(), "running"),
        ("POST", "/v1/abort") => done(control.abort(), "aborting"),
        ("POST", "/v1/powerdown") => done(control.powerdown(), "power button pressed"),
        ("POST", "/v1/shutdown") => done(control.shutdown(), "shutting down"),
        ("GET", "/v1/tracking") => found(control.tracking()),
        ("PUT", "/v1/tracking") => {
            with(&request, |wish| done(control.switch_tracking(wish), "switched"))
        }
        ("POST", "/v1/explain") => with(&request, |wishes| found(control.explain(wishes))),
        ("GET", "/v1/params") => found(control.params()),
        ("PUT", "/v1/params") => with(&request, |wish| done(control.set_param(wish), "set")),
        ("POST", "/v1/migrate") => match body::<MigrateRequest>(&request) {
            Err(answer) => answer,
            Ok(wish) => match control.migrate(wish) {
                Ok(lines) => return stream_lines(stream, control, &lines),
                Err(refusal) => (409, json!({"error": refusal.0})),
            },
        },
        (
            _,
            "/v1/status" | "/v1/pause" | "/v1/resume" | "/v1/abort" | "/v1/powerdown"
            | "/v1/shutdown" | "/v1/migrate" | "/v1/explain" | "/v1/tracking" | "/v1/params",
        ) => {
            let ways = "use GET for status, GET or PUT for tracking and params, POST for the rest";
            (405, json!({"error": ways}))
        }
        (_, path) => {
            (404, json!({"error": format!("there is no {path} here; see GET /v1/status")}))
        }
    };
    http::respond(stream, status, &answer)
}

type Answer = (u16, Value);

/// What was asked for, or why not.
fn found<T: serde::Serialize>(result: Result<T, Refusal>) -> Answer {
    match result {
        Ok(found) => (200, json!(found)),
        Err(refusal) => (409, json!({"error": refusal.0})),
    }
}

/// The body, or what is wrong with it.
fn body<T: DeserializeOwned>(request: &Request) -> Result<T, Answer> {
    request.json::<T>().map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        (400, json!({"error": format!("{error}: {}", cause.unwrap_or_default())}))
    })
}

/// Answers a request by its body.
fn with<T: DeserializeOwned>(request: &Request, answer: impl FnOnce(T) -> Answer) -> Answer {
    body(request).map_or_else(|wrong| wrong, answer)
}

/// Sends lines until the channel closes. A client that goes away loses its lines; the migration
/// does not depend on anyone watching.
fn stream_lines(
    stream: &mut UnixStream,
    control: &dyn Control,
    lines: &Receiver<MigrateLine>,
) -> Result<(), HttpError> {
    http::respond_lines(stream)?;
    loop {
        let line = match lines.recv_timeout(LINE_EVERY) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                MigrateLine::Status { status: Box::new(control.status()) }
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let batch = gather(line, lines);
        http::send_lines(stream, &batch)?;
    }
}

/// What follows a line soon: all that goes in one call. A switchover has a dozen events within milliseconds; to
/// be woken by each, and to wake the client, would take processors from those who hand the guest over.
fn gather(first: MigrateLine, lines: &Receiver<MigrateLine>) -> Vec<MigrateLine> {
    let mut batch = vec![first];
    let mut rest = |wanted: fn(&MigrateLine) -> bool, time| {
        if batch.last().is_some_and(wanted) {
            std::thread::sleep(time);
            batch.extend(lines.try_iter());
        }
    };
    rest(|last| !matches!(last, MigrateLine::Outcome { .. }), GATHER);
    rest(is_switchover, GATHER_IN_SWITCHOVER);
    batch
}

fn is_switchover(line: &MigrateLine) -> bool {
    matches!(line, MigrateLine::Event { of: Event::Phase { phase, .. } } if phase.in_switchover())
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
