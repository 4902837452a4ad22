//! Why a call failed.

use crate::host::{DmaError, DmaErrorKind};
use drogher_plugin_abi as abi;
use std::borrow::Cow;
use std::fmt;

/// What kind of failure. All but `Fatal` refuse one call and leave the device as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// Not allowed now.
    NotAllowed,
    /// No such thing.
    NotFound,
    /// The device failed at something that it can survive.
    Io,
    /// Out of memory or another limit.
    NoMemory,
    /// Try again later.
    Busy,
    /// Wrong argument or malformed state data.
    Invalid,
    /// Not supported.
    Unsupported,
    /// The device's state is undefined: it goes to ERROR, only a reset may bring it back.
    Fatal,
}

/// A failed call: its kind and what to tell people, with the values that matter in it.
#[derive(Clone, Debug)]
pub struct Failure {
    kind: FailureKind,
    text: Cow<'static, str>,
}

impl Failure {
    /// A failure of a kind.
    pub fn new(kind: FailureKind, text: impl Into<Cow<'static, str>>) -> Self {
        Failure { kind, text: text.into() }
    }

    /// Wrong argument or malformed state data.
    pub fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Failure::new(FailureKind::Invalid, text)
    }

    /// Not supported.
    pub fn unsupported(text: impl Into<Cow<'static, str>>) -> Self {
        Failure::new(FailureKind::Unsupported, text)
    }

    /// Not allowed now.
    pub fn not_allowed(text: impl Into<Cow<'static, str>>) -> Self {
        Failure::new(FailureKind::NotAllowed, text)
    }

    /// A failure that the device survives.
    pub fn io(text: impl Into<Cow<'static, str>>) -> Self {
        Failure::new(FailureKind::Io, text)
    }

    /// The device is broken.
    pub fn fatal(text: impl Into<Cow<'static, str>>) -> Self {
        Failure::new(FailureKind::Fatal, text)
    }

    /// Its kind.
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// What to tell people.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn status(&self) -> i32 {
        match self.kind {
            FailureKind::NotAllowed => abi::DROGHER_ERR_PERM,
            FailureKind::NotFound => abi::DROGHER_ERR_NOENT,
            FailureKind::Io => abi::DROGHER_ERR_IO,
            FailureKind::NoMemory => abi::DROGHER_ERR_NOMEM,
            FailureKind::Busy => abi::DROGHER_ERR_BUSY,
            FailureKind::Invalid => abi::DROGHER_ERR_INVAL,
            FailureKind::Unsupported => abi::DROGHER_ERR_NOTSUP,
            FailureKind::Fatal => abi::DROGHER_ERR_FATAL,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {}

impl From<DmaError> for Failure {
    fn from(error: DmaError) -> Self {
        let kind = match error.kind {
            DmaErrorKind::NotAllowed | DmaErrorKind::Shutdown => FailureKind::NotAllowed,
            DmaErrorKind::Fault | DmaErrorKind::Other(_) => FailureKind::Io,
            DmaErrorKind::Invalid => FailureKind::Invalid,
            DmaErrorKind::Busy => FailureKind::Busy,
        };
        Failure::new(kind, error.to_string())
    }
}
