//! The client of a control socket, as the subcommands use it.

use std::io::BufRead;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::http::{self, HttpError};
use crate::socket;

/// How long an ordinary answer may take.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);

/// How long a stream of lines may be silent; the server sends one at least each second.
const LINE_DEADLINE: Duration = Duration::from_secs(30);

/// What can go wrong with a request to a control socket.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("Cannot reach a drogher process at {path}; is one running with --control {path}?")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// The exchange failed.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A stream of lines broke off.
    #[error("The control connection broke off")]
    BrokeOff(#[source] std::io::Error),
}

/// A control socket to talk to; each request is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

#[derive(serde::Deserialize)]
struct Refusal {
    error: String,
}

impl Client {
    /// A client for the socket at `path`; nothing is opened yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Asks with GET and returns the JSON answer.
    ///
    /// # Errors
    /// When nobody answers, or with a refusal.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask::<(), T>("GET", path, None)
    }

    /// Asks with POST and returns the JSON answer.
    ///
    /// # Errors
    /// When nobody answers, or with a refusal.
    pub fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.ask("POST", path, Some(body))
    }

    /// Asks with PUT and returns the JSON answer.
    ///
    /// # Errors
    /// When nobody answers, or with a refusal.
    pub fn put<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> Result<T, ClientError> {
        self.ask("PUT", path, Some(body))
    }

    fn ask<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let mut stream = self.connect()?;
        request(&mut stream, method, path, body)?;
        let head = http::read_response_head(&mut stream, ANSWER_DEADLINE)?;
        let body = http::read_body(&mut stream, head.rest, head.content_length, ANSWER_DEADLINE)?;
        if head.status != 200 {
            return Err(refusal(head.status, &body).into());
        }
        Ok(serde_json::from_slice(&body).map_err(HttpError::Json)?)
    }

    /// Asks with POST and hands each line of the answer to `each`, until the server ends.
    ///
    /// # Errors
    /// When nobody answers, with a refusal, or when the stream is silent for too long.
    pub fn post_lines<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        mut each: impl FnMut(T),
    ) -> Result<(), ClientError> {
        let mut stream = self.connect()?;
        request(&mut stream, "POST", path, Some(body))?;
        let head = http::read_response_head(&mut stream, LINE_DEADLINE)?;
        if head.status != 200 {
            let body =
                http::read_body(&mut stream, head.rest, head.content_length, ANSWER_DEADLINE)?;
            return Err(refusal(head.status, &body).into());
        }
        stream.set_read_timeout(Some(LINE_DEADLINE)).map_err(ClientError::BrokeOff)?;
        let lines = std::io::BufReader::new(std::io::Read::chain(&head.rest[..], stream));
        for line in lines.lines() {
            let line = line.map_err(ClientError::BrokeOff)?;
            each(serde_json::from_str(&line).map_err(HttpError::Json)?);
        }
        Ok(())
    }

    fn connect(&self) -> Result<UnixStream, ClientError> {
        let stream = socket::connect(&self.path, socket::CONNECT_DEADLINE, || false)
            .map_err(|source| ClientError::Connect { path: self.path.clone(), source })?;
        stream.set_write_timeout(Some(ANSWER_DEADLINE)).map_err(ClientError::BrokeOff)?;
        Ok(stream)
    }
}

/// Sends a request. A server that hangs up on it may have said why before.
fn request<B: Serialize>(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    body: Option<&B>,
) -> Result<(), HttpError> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match http::send_request(stream, method, path, body) {
        Err(HttpError::Io { source, .. })
            if matches!(source.kind(), BrokenPipe | ConnectionReset) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn refusal(status: u16, body: &[u8]) -> HttpError {
    HttpError::Refused(match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => refusal.error,
        Err(_) => format!("The control socket answered with status {status}"),
    })
}
