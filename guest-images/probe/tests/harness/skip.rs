//! Tests that this host cannot run say so.

use std::io::Write as _;

use kvm_ioctls::Kvm;

/// True if there is no KVM to test with; says so on standard error, past the test runner's
/// capture: a skipped test must be seen.
pub fn skipped(test: &str) -> bool {
    let absent = !Kvm::new().is_ok_and(|kvm| kvm.get_api_version() == 12);
    if absent {
        say_skipped(test, "no usable /dev/kvm");
    }
    absent
}

/// One line that no capture swallows.
pub fn say_skipped(test: &str, why: &str) {
    // Whoever has closed standard error does not want to know.
    let _ = std::io::stderr().lock().write_all(format!("SKIPPED: {test}: {why}\n").as_bytes());
}
