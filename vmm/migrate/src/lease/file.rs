//! The system calls on a lease file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use drogher_iommu_types::mutant;
use rustix::fs::{FlockOperation, OFlags, fstatfs};
use rustix::io::Errno;

use super::permit::Shared;
use super::record::{LeaseRecord, RECORD_BYTES};
use super::{Holder, LeaseError};
use crate::config::LeaseIdentity;

/// Magics of file systems that other hosts write to as well, or whose locks end at this host:
/// NFS, SMB, CIFS, SMB2, Ceph, AFS, Coda, 9P, FUSE, Lustre, GFS2, OCFS2.
const REMOTE: [u64; 12] = [
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x0102_1997,
    0x6573_5546,
    0x0bd0_0bd0,
    0x0116_1970,
    0x7461_636f,
];

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> LeaseError {
    let path = path.to_owned();
    move |source| LeaseError::Io { path, action, source }
}

/// Opens a lease file, close-on-exec and without following a link at its end.
pub(super) fn open(path: &Path, create: bool) -> Result<(File, LeaseIdentity), LeaseError> {
    // Absolute, so that the identity means the same to a process in another folder.
    let path: PathBuf = std::path::absolute(path).map_err(io_error(path, "find"))?;
    // Not blocking: a path to a pipe must not hang before it is found out.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(create)
        .mode(0o600)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or(0))
        .open(&path)
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => unsuitable(&path, "is a symbolic link"),
            Some(Errno::ISDIR) => unsuitable(&path, "is a folder"),
            _ => io_error(&path, if create { "make" } else { "open" })(error),
        })?;
    let meta = file.metadata().map_err(io_error(&path, "examine"))?;
    if !meta.is_file() {
        return Err(unsuitable(&path, "is not a plain file"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(unsuitable(&path, "belongs to another user"));
    }
    if meta.mode() & 0o022 != 0 {
        return Err(unsuitable(&path, "can be written by other users"));
    }
    let system = fstatfs(&file).map_err(|e| io_error(&path, "examine")(e.into()))?;
    // The field is of different width and sign on different machines; the magics are 32 bits.
    if REMOTE.contains(&(system.f_type as u64 & 0xffff_ffff)) {
        return Err(unsuitable(&path, "is on a file system shared with other hosts"));
    }
    if mutant!("lease-passed") {
        // As if the descriptor were meant for a child process.
        let _ = rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty());
    }
    let identity = LeaseIdentity { device: meta.dev(), inode: meta.ino(), path };
    Ok((file, identity))
}

fn unsuitable(path: &Path, why: &'static str) -> LeaseError {
    LeaseError::Unsuitable { path: path.to_owned(), why }
}

/// True if the lock is ours now.
pub(super) fn try_lock(shared: &Shared) -> Result<bool, LeaseError> {
    loop {
        match rustix::fs::flock(&shared.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(e) => return Err(io_error(&shared.identity.path, "lock")(e.into())),
        }
    }
}

pub(super) fn unlock(shared: &Shared) -> Result<(), LeaseError> {
    rustix::fs::flock(&shared.file, FlockOperation::Unlock)
        .map_err(|e| io_error(&shared.identity.path, "unlock")(e.into()))
}

/// Compares the open file with what the path leads to.
pub(super) fn still_there(shared: &Shared) -> Result<(), LeaseError> {
    let path = &shared.identity.path;
    let replaced = || LeaseError::Replaced { path: path.clone() };
    let open = shared.file.metadata().map_err(io_error(path, "examine"))?;
    let named = match std::fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(replaced()),
        Err(error) => return Err(io_error(path, "examine")(error)),
    };
    if (open.dev(), open.ino()) == (named.dev(), named.ino()) { Ok(()) } else { Err(replaced()) }
}

/// What is in a lease file: the bytes of a record, and one more to tell a longer file.
pub(super) struct Content {
    bytes: [u8; RECORD_BYTES + 1],
    filled: usize,
}

impl Content {
    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    pub(super) fn decode(&self) -> Result<LeaseRecord, &'static str> {
        LeaseRecord::decode(self.bytes.get(..self.filled).unwrap_or_default())
    }
}

/// Reads the file.
pub(super) fn read(shared: &Shared) -> Result<Content, LeaseError> {
    let mut content = Content { bytes: [0; RECORD_BYTES + 1], filled: 0 };
    while let Some(rest) = content.bytes.get_mut(content.filled..).filter(|r| !r.is_empty()) {
        match shared.file.read_at(rest, content.filled as u64) {
            Ok(0) => break,
            Ok(n) => content.filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(io_error(&shared.identity.path, "read")(e)),
        }
    }
    Ok(content)
}

/// Writes the record with one call. A reader without the lock may see half of it, which the
/// checksum tells; a process that is killed has written all of it or nothing. Not synced: the
/// lease need not outlive the host, whose guests die with it.
pub(super) fn write(shared: &Shared, record: &LeaseRecord) -> Result<(), LeaseError> {
    shared.file.write_all_at(&record.encode(), 0).map_err(io_error(&shared.identity.path, "write"))
}

pub(super) fn remove(shared: &Shared) -> Result<(), LeaseError> {
    still_there(shared)?;
    std::fs::remove_file(&shared.identity.path).map_err(io_error(&shared.identity.path, "remove"))
}

/// Who holds the lease, as far as its record tells.
pub(super) fn holder(shared: &Shared) -> Holder {
    Holder(read(shared).ok().and_then(|content| content.decode().ok()))
}
