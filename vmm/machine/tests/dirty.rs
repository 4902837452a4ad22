//! The dirty log says which pages the guest wrote, no fewer and no more.

mod common;

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use common::{LONG, PORT, TestPort, asm, limited, say_skipped, skipped};
use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE};
use drogher_machine::caps::Caps;
use drogher_machine::console::ConsoleConfig;
use drogher_machine::dirty_log::{DirtyLog, DirtyLogError};
use drogher_machine::machine::Machine;
use drogher_machine::wiring::Wiring;

const FIRST: u64 = 0x40_0000;
const STEP: u64 = 0x3000;
const COUNT: u64 = 16;

/// Waits for a read to be answered, writes to every third of some pages, says so, again.
fn writer() -> Vec<u8> {
    let end = (FIRST + STEP * COUNT) as u32;
    [
        asm::mov_edx(PORT.into()),
        // again: in eax, dx; mov ecx, FIRST
        vec![0xED, 0xB9],
        (FIRST as u32).to_le_bytes().to_vec(),
        // next: mov [ecx], eax; add ecx, STEP; cmp ecx, end; jne next
        vec![0x89, 0x01, 0x81, 0xC1],
        (STEP as u32).to_le_bytes().to_vec(),
        vec![0x81, 0xF9],
        end.to_le_bytes().to_vec(),
        vec![0x75, 0xF0],
        // out dx, eax; jmp again
        asm::OUT_EAX.to_vec(),
        vec![0xEB, 0xE7],
    ]
    .concat()
}

struct Guest {
    machine: Machine,
    port: Arc<TestPort>,
    go: Sender<()>,
    rounds: usize,
}

impl Guest {
    fn start(limit: fn(&mut Caps)) -> Self {
        let machine = limited(&writer(), ConsoleConfig::None, limit);
        let (go, gone) = channel::<()>();
        let gone = Mutex::new(gone);
        let port = TestPort::new(move |_| {
            // The guest waits here between rounds; at the end the sender is gone.
            let _ = gone.lock().expect("not poisoned").recv();
        });
        machine.vm().claim_pio(PORT..PORT + 4, port.clone()).expect("a free port");
        machine.start(vec![()]).expect("it starts");
        Self { machine, port, go, rounds: 0 }
    }

    fn round(&mut self) {
        self.go.send(()).expect("the guest waits");
        self.rounds += 1;
        self.port.wait_writes(self.rounds);
    }

    fn pages(&self, log: &mut DirtyLog) -> Vec<u64> {
        let bitmap = self.machine.ram_bitmap().expect("a bitmap");
        log.harvest(&bitmap).expect("harvested");
        pages(&bitmap)
    }
}

fn pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

fn written() -> Vec<u64> {
    (0..COUNT).map(|i| (FIRST + i * STEP) / PAGE_SIZE).collect()
}

#[test]
fn exactly_the_written_pages() {
    if skipped("exactly_the_written_pages") {
        return;
    }
    exactly(|_| {});
}

#[test]
fn exactly_the_written_pages_by_the_plain_log() {
    if skipped("exactly_the_written_pages_by_the_plain_log") {
        return;
    }
    let log = exactly(|caps| caps.manual_dirty_log = 0);
    assert!(!log.is_manual());
}

#[test]
fn exactly_the_written_pages_without_initially_set() {
    if skipped("exactly_the_written_pages_without_initially_set") {
        return;
    }
    exactly(|caps| caps.manual_dirty_log &= 1);
}

/// Rounds of writing, reading the log and clearing it, on a KVM without what `limit` takes away.
fn exactly(limit: fn(&mut Caps)) -> DirtyLog {
    let mut guest = Guest::start(limit);
    guest.round();
    let mut log = guest.machine.dirty_log();
    assert!(matches!(
        log.harvest_range(0, &guest.machine.ram_bitmap().expect("one")),
        Err(DirtyLogError::Off)
    ));
    log.start().expect("on");
    let all: Vec<u64> = (0..guest.machine.ram().end_page()).collect();
    let initially_set = guest.machine.vm().caps().manual_dirty_log & 2 != 0;
    let first: &[u64] = if initially_set { &all } else { &[] };
    assert_eq!(guest.pages(&mut log), first, "with initially-set it is the bulk pass");
    log.clear_harvested(0..all.len() as u64).expect("cleared");
    assert_eq!(guest.pages(&mut log), [0u64; 0], "nothing written, nothing dirty");
    for _ in 0..3 {
        guest.round();
        assert_eq!(guest.pages(&mut log), written());
        if log.is_manual() {
            assert_eq!(guest.pages(&mut log), written(), "reading does not clear");
            log.clear_harvested(0..all.len() as u64).expect("cleared");
        }
        assert_eq!(guest.pages(&mut log), [0u64; 0]);
    }
    guest.round();
    log.stop().expect("off");
    log.start().expect("on again");
    assert_eq!(guest.pages(&mut log), first);
    log.stop().expect("off");
    drop(guest.go);
    guest.machine.pause_vcpus(LONG).expect("it stops");
    log
}

#[test]
fn only_what_was_harvested_is_cleared_and_only_in_pieces() {
    if skipped("only_what_was_harvested_is_cleared_and_only_in_pieces") {
        return;
    }
    let mut guest = Guest::start(|_| {});
    let mut log = guest.machine.dirty_log();
    log.start().expect("on");
    if !log.is_manual() {
        say_skipped(
            "only_what_was_harvested_is_cleared_and_only_in_pieces",
            "this KVM has no KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
        );
        return;
    }
    let end = guest.machine.ram().end_page();
    guest.pages(&mut log);
    log.clear_harvested(0..end).expect("cleared");
    guest.round();
    log.clear_harvested(0..end).expect("nothing harvested since, so nothing cleared");
    assert_eq!(guest.pages(&mut log), written(), "unread bits survive a clear");

    let first = FIRST / PAGE_SIZE;
    for bad in [first + 1..first + 64, first..first + 63, end..end + 64, first..first] {
        let error = log.clear_harvested(bad.clone());
        assert!(matches!(error, Err(DirtyLogError::Piece { .. })), "{bad:?}: {error:?}");
    }
    assert!(first.is_multiple_of(64), "the first piece begins with the first page");
    log.clear_piece(first, 64, &[1]).expect("one page of a piece");
    assert_eq!(guest.pages(&mut log), &written()[1..], "the others stay");
    log.clear_harvested(first..first + 64).expect("the rest of the piece");
    assert_eq!(guest.pages(&mut log), [0u64; 0]);
    assert!(log.clear_piece(first, 128, &[1]).is_err(), "too few bits");

    let small = DirtyBitmap::new(Gpa(0)..Gpa(PAGE_SIZE)).expect("a bitmap");
    guest.round();
    assert!(matches!(log.harvest(&small), Err(DirtyLogError::Bitmap(_))));
    drop(guest.go);
    guest.machine.pause_vcpus(LONG).expect("it stops");
}
