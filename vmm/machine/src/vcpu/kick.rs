//! Getting a vCPU thread out of the guest: a signal, and the flag that no signal can be too early
//! for.
//!
//! `immediate_exit` stays set from the kick until the next start, so KVM_RUN returns EINTR at once
//! even if the signal came just before it; the signal ends a KVM_RUN that has already begun.
#![expect(
    unsafe_code,
    reason = "a second mapping of KVM's shared run page, owned by RunPage, and \
    signals to our own threads"
)]

use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use rustix::mm::{MapFlags, ProtFlags};

/// A second mapping of a vCPU's `kvm_run`, so that other threads can set `immediate_exit` while
/// kvm-ioctls holds its own mapping by reference. Unmapped when dropped.
#[derive(Debug)]
pub struct RunPage {
    run: *mut kvm_run,
    bytes: usize,
}

// SAFETY: the page is shared memory of the kernel; what is accessed through this mapping is either
// atomic (`immediate_exit`) or read by copy on the vCPU's own thread after KVM_RUN has returned.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    /// Maps the run page of a vCPU; `bytes` is KVM's mmap size.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn map(fd: &VcpuFd, bytes: usize) -> std::io::Result<Self> {
        if bytes < size_of::<kvm_run>() {
            return Err(std::io::Error::other(format!("KVM's run page has only {bytes} bytes")));
        }
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is a live
        // vCPU's, and the kernel keeps the page for as long as the mapping exists.
        let run = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                rustix::fd::BorrowedFd::borrow_raw(fd.as_raw_fd()),
                0,
            )
        }?;
        Ok(Self { run: run.cast(), bytes })
    }

    /// Lets KVM_RUN return EINTR without entering the guest, or enter it again.
    pub fn set_immediate_exit(&self, on: bool) {
        // SAFETY: the field is one byte inside the mapping, which lives as long as `self`, and is
        // accessed atomically by this process through this mapping only.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*self.run).immediate_exit) };
        flag.store(u8::from(on), Ordering::SeqCst);
    }

    /// Bytes of one element of the port access that KVM_RUN has just returned with.
    pub fn io_element(&self) -> usize {
        // SAFETY: inside the mapping; plain bytes, valid whatever they hold. The vCPU's own thread
        // reads it between two KVM_RUNs, when the kernel does not write.
        usize::from(unsafe { (&raw const (*self.run).__bindgen_anon_1.io.size).read_volatile() })
    }

    /// Sub-error and data words of the internal error that KVM_RUN has just returned with.
    pub fn internal_error(&self) -> (u32, Vec<u64>) {
        // SAFETY: as `io_element`.
        let internal =
            unsafe { (&raw const (*self.run).__bindgen_anon_1.internal).read_volatile() };
        let used = (internal.ndata as usize).min(internal.data.len());
        (internal.suberror, internal.data.iter().take(used).copied().collect())
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, made in `map`; nothing refers to it after `self`.
        if let Err(e) = unsafe { rustix::mm::munmap(self.run.cast(), self.bytes) } {
            tracing::error!("cannot unmap a vCPU's run page: {e}");
        }
    }
}

extern "C" fn on_kick(_signal: libc::c_int) {}

fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}

/// Installs the handler of the kick signal, once in a process. It does nothing: that the signal is
/// handled is what ends KVM_RUN. System calls that it hits elsewhere are restarted.
///
/// # Errors
/// The kernel refuses.
pub fn install() -> std::io::Result<()> {
    static INSTALLED: OnceLock<i32> = OnceLock::new();
    let error = *INSTALLED.get_or_init(|| {
        // SAFETY: a zeroed sigaction is a valid one; the handler is async-signal-safe as it does
        // nothing at all.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            match libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) {
                0 => 0,
                _ => std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL),
            }
        }
    });
    match error {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno)),
    }
}

/// Lets the calling thread receive the kick signal, whatever mask it was started with.
pub fn unblock() {
    // SAFETY: a signal set on the stack, and the mask of this thread only.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Signals a thread.
pub fn signal<T>(thread: &JoinHandle<T>) {
    // SAFETY: a thread that has not been joined keeps its id, also after it has ended.
    let error = unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
    // ESRCH: it has ended, which is as good.
    if error != 0 && error != libc::ESRCH {
        tracing::error!(
            "cannot signal a vCPU thread: {}",
            std::io::Error::from_raw_os_error(error)
        );
    }
}
