//! Just enough HTTP/1.1 for a control socket: one request a connection, JSON in and out.
//!
//! Every size is bounded and every read has a deadline, so that a client that sends noise, or
//! nothing, costs one thread for a few seconds and no more.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest request or response head, in bytes.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Longest request or response body, in bytes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
const HEADERS_MAX: usize = 32;

/// What can go wrong while speaking HTTP on a control socket.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The socket failed.
    #[error("The control connection failed while {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The operating system's word.
        #[source]
        source: io::Error,
    },
    /// The peer sent no complete message in time.
    #[error("The control connection sent no complete message within {} s", .0.as_secs())]
    Deadline(Duration),
    /// The peer closed the connection in mid-message.
    #[error("The control connection ended after {0} bytes of an incomplete message")]
    Ended(usize),
    /// The bytes are no HTTP.
    #[error("The control connection does not speak HTTP/1.1")]
    Syntax(#[source] httparse::Error),
    /// The head or the body is longer than allowed.
    #[error("The message's {part} is longer than {limit} bytes")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// The bound in bytes.
        limit: usize,
    },
    /// The Content-Length header is no number.
    #[error("Content-Length is no number: {0:?}")]
    ContentLength(String),
    /// The body is no JSON of the expected shape.
    #[error("The body is not the JSON expected here")]
    Json(#[source] serde_json::Error),
    /// The server answered with an error.
    #[error("{0}")]
    Refused(String),
}

impl HttpError {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// One request: method, path and body.
#[derive(Debug)]
pub struct Request {
    /// `GET`, `POST`, ...
    pub method: String,
    /// The path with its leading slash.
    pub path: String,
    /// The body, empty when there was none.
    pub body: Vec<u8>,
}

impl Request {
    /// Reads one request.
    ///
    /// # Errors
    /// When nothing complete arrives within `deadline`, or it is too long or no HTTP.
    pub fn read(stream: &mut UnixStream, deadline: Duration) -> Result<Self, HttpError> {
        let (head, rest) = read_head(stream, deadline)?;
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut headers);
        parsed.parse(&head).map_err(HttpError::Syntax)?;
        let method = parsed.method.unwrap_or_default().to_owned();
        let path = parsed.path.unwrap_or_default().to_owned();
        let length = content_length(parsed.headers)?.unwrap_or(0);
        let body = read_body(stream, rest, Some(length), deadline)?;
        Ok(Self { method, path, body })
    }

    /// The body as `T`; an empty body counts as `{}`.
    ///
    /// # Errors
    /// When the body is no JSON or lacks, or has unknown, fields.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, HttpError> {
        let body: &[u8] = if self.body.is_empty() { b"{}" } else { &self.body };
        serde_json::from_slice(body).map_err(HttpError::Json)
    }
}

/// Sends a whole response with a JSON body and a final newline.
///
/// # Errors
/// When the socket fails.
pub fn respond<T: Serialize>(
    stream: &mut UnixStream,
    status: u16,
    value: &T,
) -> Result<(), HttpError> {
    let mut body = serde_json::to_vec(value).map_err(HttpError::Json)?;
    body.push(b'\n');
    let head = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        reason(status),
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(HttpError::io("answering"))?;
    stream.write_all(&body).map_err(HttpError::io("answering"))
}

/// Starts a response of JSON lines that ends when the connection does.
///
/// # Errors
/// When the socket fails.
pub fn respond_lines(stream: &mut UnixStream) -> Result<(), HttpError> {
    stream
        .write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n",
        )
        .map_err(HttpError::io("answering"))
}

/// Sends lines of a response started with [`respond_lines`], all in one call.
///
/// # Errors
/// When the socket fails.
pub fn send_lines<T: Serialize>(
    stream: &mut UnixStream,
    values: impl IntoIterator<Item = T>,
) -> Result<(), HttpError> {
    let mut lines = Vec::new();
    for value in values {
        serde_json::to_writer(&mut lines, &value).map_err(HttpError::Json)?;
        lines.push(b'\n');
    }
    stream.write_all(&lines).map_err(HttpError::io("answering"))
}

/// Sends a request.
///
/// # Errors
/// When the socket fails.
pub fn send_request<T: Serialize>(
    stream: &mut UnixStream,
    method: &str,
    path: &str,
    body: Option<&T>,
) -> Result<(), HttpError> {
    let body = match body {
        Some(value) => serde_json::to_vec(value).map_err(HttpError::Json)?,
        None => Vec::new(),
    };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).map_err(HttpError::io("asking"))?;
    stream.write_all(&body).map_err(HttpError::io("asking"))
}

/// A response's status and what of its body has arrived with the head.
#[derive(Debug)]
pub struct ResponseHead {
    /// The status code.
    pub status: u16,
    /// The length the server announced, if any.
    pub content_length: Option<usize>,
    /// Bytes of the body read so far.
    pub rest: Vec<u8>,
}

/// Reads a response's head.
///
/// # Errors
/// When nothing complete arrives within `deadline`, or it is too long or no HTTP.
pub fn read_response_head(
    stream: &mut UnixStream,
    deadline: Duration,
) -> Result<ResponseHead, HttpError> {
    let (head, rest) = read_head(stream, deadline)?;
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(&head).map_err(HttpError::Syntax)?;
    Ok(ResponseHead {
        status: parsed.code.unwrap_or(0),
        content_length: content_length(parsed.headers)?,
        rest,
    })
}

/// Reads the rest of a body of known length, or, with none, all until the connection ends.
///
/// # Errors
/// When it doesn't arrive within `deadline`, or is too long.
pub fn read_body(
    stream: &mut UnixStream,
    mut body: Vec<u8>,
    length: Option<usize>,
    deadline: Duration,
) -> Result<Vec<u8>, HttpError> {
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(HttpError::TooLong { part: "body", limit: BODY_BYTES_MAX });
    }
    let end = Instant::now() + deadline;
    while length.is_none_or(|length| body.len() < length) {
        if body.len() > BODY_BYTES_MAX {
            return Err(HttpError::TooLong { part: "body", limit: BODY_BYTES_MAX });
        }
        if read_some(stream, &mut body, end, deadline)? == 0 {
            match length {
                Some(_) => return Err(HttpError::Ended(body.len())),
                None => break,
            }
        }
    }
    if let Some(length) = length {
        body.truncate(length);
    }
    Ok(body)
}

fn read_head(stream: &mut UnixStream, deadline: Duration) -> Result<(Vec<u8>, Vec<u8>), HttpError> {
    let end = Instant::now() + deadline;
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(at + 4);
            return Ok((bytes, rest));
        }
        if bytes.len() > HEAD_BYTES_MAX {
            return Err(HttpError::TooLong { part: "head", limit: HEAD_BYTES_MAX });
        }
        if read_some(stream, &mut bytes, end, deadline)? == 0 {
            return Err(HttpError::Ended(bytes.len()));
        }
    }
}

fn read_some(
    stream: &mut UnixStream,
    bytes: &mut Vec<u8>,
    end: Instant,
    deadline: Duration,
) -> Result<usize, HttpError> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(HttpError::Deadline(deadline));
    }
    stream.set_read_timeout(Some(left)).map_err(HttpError::io("setting a deadline"))?;
    let mut buffer = [0u8; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(count) => {
                bytes.extend(buffer.iter().take(count));
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error)
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                return Err(HttpError::Deadline(deadline));
            }
            Err(error) => return Err(HttpError::io("reading")(error)),
        }
    }
}

fn content_length(headers: &[httparse::Header<'_>]) -> Result<Option<usize>, HttpError> {
    headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .map(|header| {
            let text = String::from_utf8_lossy(header.value);
            text.trim().parse().map_err(|_| HttpError::ContentLength(text.into_owned()))
        })
        .transpose()
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        503 => "Service Unavailable",
        _ => "Error",
    }
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
