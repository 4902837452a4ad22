//! A copy of all frames of a device in a file that Wireshark and tcpdump read.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::{FRAME_MAX, WireError};

/// Nanosecond pcap, version 2.4, in this machine's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: [u16; 2] = [2, 4];
const ETHERNET: u32 = 1;
const HEADER_BYTES: usize = 24;

fn header() -> Vec<u8> {
    let mut bytes = MAGIC.to_ne_bytes().to_vec();
    bytes.extend(VERSION.iter().flat_map(|part| part.to_ne_bytes()));
    let rest = [0, 0, FRAME_MAX as u32, ETHERNET];
    bytes.extend(rest.iter().flat_map(|word| word.to_ne_bytes()));
    bytes
}

/// A capture file. It only ever grows: source and destination of a move write to one file in turn.
#[derive(Debug)]
pub struct Pcap {
    path: PathBuf,
    /// None after a write has failed.
    file: Mutex<Option<File>>,
}

impl Pcap {
    /// Opens a capture to append to it; with `create` also one that is not there or empty.
    ///
    /// # Errors
    /// The file cannot be opened, or is something else.
    pub fn open(path: &Path, create: bool) -> Result<Self, WireError> {
        let cannot = |source| WireError::Capture { path: path.into(), source };
        let mut options = OpenOptions::new();
        // Not to hang on what only looks like a file.
        options.read(true).append(true).create(create).mode(0o600);
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed());
        let mut file = options.open(path).map_err(cannot)?;
        let not_capture = || WireError::NotCapture { path: path.into() };
        let metadata = file.metadata().map_err(cannot)?;
        if !metadata.is_file() {
            return Err(not_capture());
        }
        if create && metadata.len() == 0 {
            file.write_all(&header()).map_err(cannot)?;
        } else {
            let mut found = [0; HEADER_BYTES];
            file.read_exact(&mut found).map_err(|_| not_capture())?;
            if found != *header() {
                return Err(not_capture());
            }
        }
        Ok(Self { path: path.into(), file: Mutex::new(Some(file)) })
    }

    /// Appends a frame, by one write. A file that takes no more is left alone.
    pub fn write(&self, frame: &[u8]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        // Seconds until 2106.
        let head = [now.as_secs() as u32, now.subsec_nanos(), len, len];
        let mut record: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        record.extend_from_slice(frame);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = file.as_mut()
            && let Err(error) = open.write_all(&record)
        {
            let path = self.path.display().to_string();
            tracing::warn!(path, %error, "capture ends");
            *file = None;
        }
    }
}

#[cfg(test)]
#[path = "pcap_test.rs"]
mod tests;
