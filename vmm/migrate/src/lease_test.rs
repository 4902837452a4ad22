use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Stdio};

use super::*;

const VM: VmId = VmId([7; 16]);

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("lease")
    }

    fn held(&self) -> HeldLease {
        Lease::acquire_new(&self.path(), VM).unwrap()
    }

    fn open(&self) -> Lease {
        Lease::open(&self.path()).unwrap()
    }
}

/// A time that is over, for calls that must not wait.
fn now() -> Instant {
    Instant::now()
}

fn taken(lease: Lease) -> HeldLease {
    match lease.try_take().unwrap() {
        Attempt::Taken(held) => held,
        Attempt::Busy(_) => panic!("somebody holds it"),
    }
}

fn busy(lease: Lease) -> Lease {
    match lease.try_take().unwrap() {
        Attempt::Busy(lease) => lease,
        Attempt::Taken(_) => panic!("it is held twice"),
    }
}

#[test]
fn a_new_lease_is_private_and_says_who_runs() {
    let place = Place::new();
    let held = place.held();
    let mode = std::fs::metadata(place.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let record = place.open().peek().unwrap();
    assert_eq!(record, *held.record());
    assert_eq!((record.vm_id, record.epoch, record.state), (VM, 1, LeaseState::Running));
    assert_eq!(record.pid, std::process::id());
}

#[test]
fn one_holds_it_at_a_time() {
    let place = Place::new();
    let held = place.held();
    let other = busy(place.open());
    let error = Lease::acquire_new(&place.path(), VmId([8; 16])).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    assert!(text.contains("epoch 1") && text.contains("--lease"), "{text}");
    let free = held.release(now()).unwrap();
    let other = taken(other);
    busy(free);
    assert_eq!(other.epoch(), 1, "taking it changes nothing yet");
}

#[test]
fn a_free_lease_is_taken_over_with_its_epoch_raised() {
    let place = Place::new();
    drop(place.held());
    let next = Lease::acquire_new(&place.path(), VmId([9; 16])).unwrap();
    assert_eq!((next.epoch(), next.vm_id()), (2, VmId([9; 16])));
}

#[test]
fn epochs_only_rise() {
    let place = Place::new();
    let mut held = place.held();
    held.enter(5).unwrap();
    assert_eq!(place.open().peek().unwrap().epoch, 5);
    for epoch in [4, 5] {
        let error = held.enter(epoch).unwrap_err();
        assert!(matches!(error, LeaseError::EpochOrder { from: 5, .. }), "{error}");
    }
    assert_eq!(place.open().peek().unwrap().epoch, 5);
}

#[test]
fn a_forged_epoch_is_refused_before_numbers_end() {
    let place = Place::new();
    let mut held = place.held();
    held.enter(u64::MAX).unwrap();
    drop(held);
    let error = Lease::acquire_new(&place.path(), VM).unwrap_err();
    assert!(matches!(error, LeaseError::NotALease { .. }), "{error}");
}

#[test]
fn it_says_whether_anybody_has_named_its_file() {
    let place = Place::new();
    assert!(!place.held().record().made);
    let mut held = Lease::acquire_made(&place.path(), VM).unwrap();
    held.enter(9).unwrap();
    assert!(held.record().made && place.open().peek().unwrap().made);
}

/// Nobody could say who runs the guest then; so the lock is kept.
#[test]
fn a_lease_that_was_tampered_with_is_not_given_up() {
    let place = Place::new();
    let tamper: [&dyn Fn(&Path); 4] = [
        &|path| std::fs::remove_file(path).unwrap(),
        &|path| std::fs::write(path, "").unwrap(),
        &|path| std::fs::rename(path, path.with_extension("away")).unwrap(),
        &|path| {
            drop(std::fs::rename(path, path.with_extension("old")));
            drop(Lease::acquire_new(path, VmId([1; 16])).unwrap());
        },
    ];
    for (case, tamper) in tamper.into_iter().enumerate() {
        let _ = std::fs::remove_file(place.path());
        let held = place.held();
        tamper(&place.path());
        let (mut held, error) = held.release(now()).unwrap_err();
        assert!(
            matches!(error, LeaseError::Replaced { .. } | LeaseError::NotALease { .. }),
            "case {case}: {error}"
        );
        // It can go on here.
        held.enter(held.epoch() + 1).unwrap();
        drop(held.permits().borrow().unwrap());
    }
}

#[test]
fn a_record_of_somebody_elses_is_noticed() {
    let place = Place::new();
    let held = place.held();
    let mut record = *held.record();
    record.epoch = 77;
    file::write(&place.open().shared, &record).unwrap();
    let (_, error) = held.release(now()).unwrap_err();
    assert!(matches!(error, LeaseError::Changed { .. }), "{error}");
}

#[test]
fn permits_keep_the_lock() {
    let place = Place::new();
    let held = place.held();
    let permits = held.permits();
    let permit = permits.borrow().unwrap();
    let (held, error) = held.release(now()).unwrap_err();
    assert!(matches!(error, LeaseError::PermitsOut { count: 1, .. }), "{error}");
    assert!(matches!(permits.borrow(), Err(LeaseError::NoPermits { .. })), "the gate is shut");
    // Even the value's end does not drop the lock while something may still run the guest.
    drop(held);
    let other = busy(place.open());
    drop(permit);
    drop(permits);
    taken(other);
}

#[test]
fn permits_are_lent_again_only_after_entering() {
    let place = Place::new();
    let held = place.held();
    let permits = held.permits();
    let free = held.release(now()).unwrap();
    assert!(permits.borrow().is_err());
    let mut held = taken(free);
    assert!(permits.borrow().is_err(), "the lock alone lets nobody run");
    held.enter(2).unwrap();
    drop(permits.borrow().unwrap());
}

#[test]
fn a_release_waits_for_the_last_permit() {
    let place = Place::new();
    let held = place.held();
    let permit = held.permits().borrow().unwrap();
    let thread = std::thread::spawn(move || held.release(now() + Duration::from_secs(60)));
    drop(permit);
    thread.join().unwrap().unwrap();
}

#[test]
fn a_replaced_or_removed_file_is_no_lease() {
    let place = Place::new();
    let held = place.held();
    let other = place.open();
    std::fs::rename(place.path(), place.folder.path().join("away")).unwrap();
    drop(held);
    let (other, error) = other.try_take().unwrap_err();
    assert!(matches!(error, LeaseError::Replaced { .. }), "{error}");
    // A second file at the path is a second lock: the first must not count.
    let _second = place.held();
    let (_, error) = other.try_take().unwrap_err();
    assert!(matches!(error, LeaseError::Replaced { .. }), "{error}");
}

#[test]
fn the_end_is_told_and_the_file_removed() {
    let place = Place::new();
    place.held().finish(false).unwrap();
    assert_eq!(place.open().peek().unwrap().state, LeaseState::Ended);
    place.held().finish(true).unwrap();
    assert!(!place.path().exists());
}

#[test]
fn what_is_no_lease_is_named() {
    let place = Place::new();
    let path = place.path();
    let refused = |words: &str| {
        let error = Lease::acquire_new(&path, VM).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("lease"), "{error}");
    };
    std::fs::write(&path, "not a lease").unwrap();
    refused("size is not 64 bytes");
    std::fs::write(&path, [0x20; 64]).unwrap();
    refused("the magic is missing");
    let place_of = |at: usize| {
        std::fs::remove_file(&path).unwrap();
        drop(place.held());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    };
    // Any bit of the record.
    for at in 8..64 {
        place_of(at);
        refused("the checksum is wrong");
    }
    std::fs::remove_file(&path).unwrap();
    symlink(place.folder.path().join("elsewhere"), &path).unwrap();
    refused("is a symbolic link");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    refused("is a folder");
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o622)).unwrap();
    refused("can be written by other users");
    std::fs::remove_file(&path).unwrap();
    let error = Lease::open(&path).unwrap_err();
    assert!(matches!(error, LeaseError::Io { action: "open", .. }), "{error}");
}

#[test]
fn a_pipe_in_its_place_does_not_hang() {
    let place = Place::new();
    let made = Command::new("mkfifo").arg(place.path()).status().unwrap();
    assert!(made.success());
    let error = Lease::acquire_new(&place.path(), VM).unwrap_err().to_string();
    assert!(error.contains("not a plain file"), "{error}");
}

/// A child that inherited the file would keep the lock after this process has died, and a lock
/// through a duplicate would be granted twice. Caught mutant: `lease-passed`.
#[test]
fn a_child_process_does_not_inherit_it() {
    let place = Place::new();
    let held = place.held();
    let flags = rustix::io::fcntl_getfd(held.shared.file.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let fd = held.shared.file.as_raw_fd();
    let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
    let inherited = std::fs::read_link(format!("/proc/{}/fd/{fd}", child.id()));
    drop(held);
    // The lock went with this process's file: nobody else has it.
    let after = place.open().try_take();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(inherited.map_or(true, |to| !to.starts_with(place.folder.path())));
    assert!(matches!(after.unwrap(), Attempt::Taken(_)));
}

#[test]
fn ids_are_text_both_ways() {
    let id = VmId([0xab; 16]);
    assert_eq!(id.to_string().parse::<VmId>().unwrap(), id);
    for wrong in ["", "ab", &"g".repeat(32), &"+".repeat(32), &"a".repeat(33)] {
        let error = wrong.parse::<VmId>().unwrap_err();
        assert!(error.to_string().contains(wrong), "{error}");
    }
}
