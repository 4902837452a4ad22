//! The control socket: HTTP with JSON over a Unix socket, for this user alone.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | a [`Status`](crate::api::Status) |
//! | `POST /v1/pause`, `/v1/resume`, `/v1/abort`, `/v1/shutdown` | `{"done": "..."}` |
//! | `POST /v1/migrate` with a [`MigrateRequest`](crate::api::MigrateRequest) | JSON lines: each a [`MigrateLine`](crate::api::MigrateLine), the last one an outcome |
//!
//! A refusal is a status of 4xx with `{"error": "..."}`.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::api::{MigrateLine, MigrateRequest, Refusal, Status};
use crate::http::{self, HttpError, Request};

/// How long a client may take to send its request, or to take the answer.
const CLIENT_DEADLINE: Duration = Duration::from_secs(5);

/// Most connections at a time.
const CONNECTIONS_MAX: usize = 16;

/// A stream of lines says something at least this often.
const LINE_EVERY: Duration = Duration::from_secs(1);

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
    /// Ends guest and process.
    ///
    /// # Errors
    /// With the reason.
    fn shutdown(&self) -> Result<(), Refusal>;
    /// Starts a migration; its events arrive in the channel, the outcome last.
    ///
    /// # Errors
    /// With the reason.
    fn migrate(&self, request: MigrateRequest) -> Result<Receiver<MigrateLine>, Refusal>;
}

/// Why a control socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process listens there.
    #[error("The control socket {0} is in use by another process")]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("The control socket {0} cannot be made: a file of this name is there")]
    Exists(PathBuf),
    /// The operating system refused.
    #[error("The socket {path} cannot be made")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
}

/// Makes a listening socket that only this user may use; a dead one of the same name is replaced.
///
/// # Errors
/// When another process listens there, or the operating system refuses.
pub fn listen(path: &Path) -> Result<UnixListener, ServerError> {
    let bind = |source| ServerError::Bind { path: path.to_owned(), source };
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(ServerError::Exists(path.to_owned()));
        }
        if UnixStream::connect(path).is_ok() {
            return Err(ServerError::InUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(bind)?;
    }
    let listener = UnixListener::bind(path).map_err(bind)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind)?;
    Ok(listener)
}

/// True if the process at the other end belongs to this user, or to root.
#[must_use]
pub fn peer_is_us(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root())
}

/// A listening control socket; its file goes when this is dropped.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    open: Arc<AtomicUsize>,
}

impl Server {
    /// Starts to serve `control` at `path` on a thread of its own.
    ///
    /// # Errors
    /// When the socket can't be had.
    pub fn start(path: &Path, control: Arc<dyn Control>) -> Result<Self, ServerError> {
        let listener = listen(path)?;
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || accept(&listener, &control, &counter))
            .map_err(|source| ServerError::Bind { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), open })
    }

    /// Waits until every answer that was begun has been sent, at most `deadline`.
    pub fn drain(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        while self.open.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, control: &Arc<dyn Control>, open: &Arc<AtomicUsize>) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else {
            // Out of descriptors, most likely: let others end first.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if !peer_is_us(&stream) || open.load(Ordering::Acquire) >= CONNECTIONS_MAX {
            let _ = stream.set_write_timeout(Some(CLIENT_DEADLINE));
            let _ = http::respond(&mut stream, 503, &json!({"error": "refused or too busy"}));
            continue;
        }
        open.fetch_add(1, Ordering::AcqRel);
        let counter = Arc::clone(open);
        let control = Arc::clone(control);
        let spawned = std::thread::Builder::new().name("control-client".into()).spawn(move || {
            if let Err(error) = serve(&mut stream, control.as_ref()) {
                tracing::debug!(%error, "a control connection failed");
            }
            drop(stream);
            counter.fetch_sub(1, Ordering::AcqRel);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::AcqRel);
        }
    }
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
        ("POST", "/v1/shutdown") => done(control.shutdown(), "shutting down"),
        ("POST", "/v1/migrate") => match request.json::<MigrateRequest>() {
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let cause = cause.unwrap_or_default();
                (400, json!({"error": format!("{error}: {cause}")}))
            }
            Ok(wish) => match control.migrate(wish) {
                Ok(lines) => return stream_lines(stream, control, &lines),
                Err(refusal) => (409, json!({"error": refusal.0})),
            },
        },
        (
            _,
            "/v1/status" | "/v1/pause" | "/v1/resume" | "/v1/abort" | "/v1/shutdown"
            | "/v1/migrate",
        ) => (405, json!({"error": "use GET for status, POST for the rest"})),
        (_, path) => {
            (404, json!({"error": format!("there is no {path} here; see GET /v1/status")}))
        }
    };
    http::respond(stream, status, &answer)
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
        http::send_line(stream, &line)?;
    }
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
