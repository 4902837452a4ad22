//! The end of a process that has plugins in it.
#![expect(unsafe_code, reason = "Ends the process at once")]

/// Ends the process, now and without running anything more of any plugin.
///
/// The ordinary ways, returning from `main` and `std::process::exit`, run the destructors and `atexit`
/// functions of every loaded file: with the dynamic linker's lock, which the thread of a constructor
/// that does not return holds for ever, and beside threads that plugins may have left running. So a
/// process that may have loaded a plugin ends here.
///
/// Standard output is buffered by lines: flush before what does not end a line. Call
/// [`Plugin::deinit_all`](crate::Plugin::deinit_all) before, for plugins that are well.
pub fn exit_now(code: u8) -> ! {
    // Nothing else may happen here. Even a thread's first use of thread-local data with a destructor
    // waits for the linker's lock (glibc's __cxa_thread_atexit_impl).
    // SAFETY: takes any number, touches no memory, does not return.
    unsafe { libc::_exit(code.into()) }
}
