//! A copy of all frames of a device in a file that Wireshark and tcpdump read.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

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

/// Records that may wait for the file. More are left out, so that a disk that hangs holds up no frame.
const QUEUE: usize = 1024;
/// How long [`Pcap::settle`] waits for the file: it may be in the guest's blackout.
const LAST_RECORDS: Duration = Duration::from_millis(20);

/// A capture file. It only ever grows: source and destination of a move write to one file in turn.
#[derive(Debug)]
pub struct Pcap {
    queue: SyncSender<Vec<u8>>,
    /// Records that were queued and are not written yet.
    waiting: Arc<AtomicUsize>,
    /// Said once that records are left out.
    told: AtomicBool,
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
        Self::to(path, file).map_err(cannot)
    }

    /// A thread of its own writes, as that may take any time.
    fn to(path: &Path, mut file: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (queue, records) = sync_channel::<Vec<u8>>(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let (path, written) = (path.display().to_string(), Arc::clone(&waiting));
        std::thread::Builder::new().name("capture".into()).spawn(move || {
            let mut ended = false;
            for record in records {
                if !ended && let Err(error) = file.write_all(&record) {
                    tracing::warn!(path, %error, "capture ends");
                    ended = true;
                }
                written.fetch_sub(1, Ordering::SeqCst);
            }
        })?;
        Ok(Self { queue, waiting, told: AtomicBool::new(false) })
    }

    /// Appends a frame, by one write, some time soon. A file that takes no more is left alone.
    pub fn write(&self, frame: &[u8]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        // Seconds until 2106.
        let head = [now.as_secs() as u32, now.subsec_nanos(), len, len];
        let mut record: Vec<u8> = head.iter().flat_map(|word| word.to_ne_bytes()).collect();
        record.extend_from_slice(frame);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        if self.queue.try_send(record).is_err() {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if !self.told.swap(true, Ordering::SeqCst) {
                tracing::warn!("the capture's disk is too slow: frames are left out of it");
            }
        }
    }

    /// Waits until the file has what was written, but not for long.
    pub fn settle(&self) {
        let begin = Instant::now();
        while self.waiting.load(Ordering::SeqCst) > 0 && begin.elapsed() < LAST_RECORDS {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Pcap {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
#[path = "pcap_test.rs"]
mod tests;
