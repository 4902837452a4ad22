//! Where a lease goes that nobody has named.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use drogher_migrate::VmId;

/// Why no place for a lease was found.
#[derive(Debug, thiserror::Error)]
pub enum LeasePathError {
    /// The folder can't be made or looked at.
    #[error("Cannot make the folder {path} for lease files; name one with --lease")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// The folder belongs to somebody else, or others may write to it.
    #[error("{0} is not a folder of this user alone; remove it, or name a file with --lease")]
    Unsafe(PathBuf),
}

/// The path of a new VM's lease: in `$XDG_RUNTIME_DIR`, else in a folder of mode 0700.
///
/// # Errors
/// When there is no such folder and none can be made.
pub fn of(vm_id: VmId) -> Result<PathBuf, LeasePathError> {
    Ok(folder()?.join(format!("drogher-{vm_id}.lease")))
}

fn folder() -> Result<PathBuf, LeasePathError> {
    if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && runtime.is_absolute()
        && is_private(&runtime).unwrap_or(false)
    {
        return Ok(runtime);
    }
    let user = rustix::process::geteuid().as_raw();
    let folder = std::env::temp_dir().join(format!("drogher-{user}"));
    let failed = |source| LeasePathError::Folder { path: folder.clone(), source };
    match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    if is_private(&folder).map_err(failed)? {
        Ok(folder)
    } else {
        Err(LeasePathError::Unsafe(folder))
    }
}

/// True for a folder, not a link to one, that only this user may write to.
fn is_private(folder: &Path) -> std::io::Result<bool> {
    let metadata = std::fs::symlink_metadata(folder)?;
    Ok(metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o022 == 0)
}

#[cfg(test)]
#[path = "lease_path_test.rs"]
mod tests;
