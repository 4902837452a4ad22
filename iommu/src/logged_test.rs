//! Logged accesses and located ranges: where they land, through two stages that mix pages up.

use std::ops::Range;
use std::sync::Arc;

use crate::{
    Access, Domain, DomainConfig, FaultReason, Gpa, HeapMemory, Iova, LOCATE_MAX, Landed, Memory,
    Oa, PAGE_SIZE, Perm, Requester, Rid, Stage1, Stage1Page,
};

/// IOVA page to GPA page; absent beyond.
const STAGE1: [u64; 8] = [3, 4, 5, 9, 10, 2, 1, 0];
/// GPA page to OA page. Pages 3 to 5 lie apart in memory, 9 and 10 together.
const STAGE2: [(u64, u64); 8] = [(3, 8), (4, 3), (5, 4), (9, 5), (10, 6), (2, 0), (1, 1), (0, 2)];

struct Mixed;

impl Stage1 for Mixed {
    fn translate(&self, _: Rid, page: Iova, _: Access) -> Result<Stage1Page, FaultReason> {
        let to = STAGE1.get((page.0 / PAGE_SIZE) as usize).ok_or(FaultReason::Stage1NotPresent)?;
        Ok(Stage1Page { gpa: Gpa(to * PAGE_SIZE), perm: Perm::READ_WRITE })
    }
}

/// As many runs as there is room for, neighbours not merged.
struct Room {
    runs: Vec<Range<Gpa>>,
    room: usize,
}

impl Room {
    fn new(room: usize) -> Self {
        Self { runs: Vec::new(), room }
    }

    /// Every byte's GPA, in order.
    fn bytes(&self) -> Vec<u64> {
        self.runs.iter().flat_map(|run| run.start.0..run.end.0).collect()
    }
}

impl Landed for Room {
    fn has_room(&mut self, _: Gpa) -> bool {
        self.runs.len() < self.room
    }

    fn landed(&mut self, run: Range<Gpa>) {
        assert!(!run.is_empty());
        self.runs.push(run);
    }
}

fn new() -> (Domain, Requester) {
    let memory = Arc::new(HeapMemory::new(9 * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
    for (gpa, oa) in STAGE2 {
        let range = Gpa(gpa * PAGE_SIZE)..Gpa((gpa + 1) * PAGE_SIZE);
        domain.map(range, Oa(oa * PAGE_SIZE), Perm::READ_WRITE).expect("free");
    }
    let device = domain.attach_with(Rid(8), Arc::new(Mixed)).expect("first");
    (domain, device)
}

fn gpa(iova: u64) -> u64 {
    STAGE1[(iova / PAGE_SIZE) as usize] * PAGE_SIZE + iova % PAGE_SIZE
}

#[test]
fn a_logged_write_says_where_every_byte_landed() {
    let (domain, device) = new();
    for (iova, len) in [(0, 1), (7, 4096), (4000, 9000), (0, 8 * 4096), (12_288, 8192), (5, 3)] {
        let data: Vec<u8> = (0..len).map(|i| (i / 3 + iova) as u8).collect();
        let mut room = Room::new(100);
        let done = device.write_logged(Iova(iova), &data, &mut room).expect("mapped");
        assert_eq!(done, len);
        let expected: Vec<u64> = (iova..iova + len).map(gpa).collect();
        assert_eq!(room.bytes(), expected, "{iova:#x}, {len}");
        for (byte, gpa) in data.iter().zip(room.bytes()).step_by(97) {
            let (oa, _) = domain.resolve(Gpa(gpa)).expect("mapped");
            let mut found = [0];
            domain.memory().read(oa, &mut found).expect("inside");
            assert_eq!(found, [*byte]);
        }
        let mut again = Room::new(100);
        assert_eq!(device.fill_logged(Iova(iova), 1, len, &mut again).expect("mapped"), len);
        assert_eq!(again.bytes(), expected);
    }
    assert_eq!(domain.faults().total, 0);
}

#[test]
fn a_logged_write_ends_where_the_room_does_and_before_the_store() {
    let (domain, device) = new();
    let mut room = Room::new(2);
    let done = device.write_logged(Iova(0), &[7; 4 * 4096], &mut room).expect("mapped");
    assert_eq!(done, 3 * PAGE_SIZE, "pages 3, and 4 with 5");
    assert_eq!(room.bytes(), (0..done).map(gpa).collect::<Vec<_>>());
    let mut next = [1; 8];
    device.read(Iova(done), &mut next).expect("mapped");
    assert_eq!(next, [0; 8], "nothing is stored that is not taken down");
    assert_eq!(device.write_logged(Iova(0), &[1], &mut Room::new(0)), Ok(0));
    assert_eq!(domain.faults().total, 0, "no fault");
}

#[test]
fn a_fault_in_the_middle_keeps_what_was_logged() {
    let (_, device) = new();
    let mut room = Room::new(100);
    let iova = 6 * PAGE_SIZE + 100;
    let error = device.write_logged(Iova(iova), &[1; 4 * 4096], &mut room).expect_err("beyond");
    assert_eq!(error.done, 2 * PAGE_SIZE - 100);
    assert_eq!(room.bytes(), (iova..8 * PAGE_SIZE).map(gpa).collect::<Vec<_>>());
    let mut room = Room::new(100);
    device.write_logged(Iova(u64::MAX), &[1; 2], &mut room).expect_err("wraps");
    assert_eq!(room.runs, []);
}

#[test]
fn an_atomic_says_where_it_landed() {
    let (_, device) = new();
    let iova = 3 * PAGE_SIZE + 16;
    assert_eq!(device.fetch_add_u32_at(Iova(iova), 3), Ok((0, Gpa(gpa(iova)))));
    assert_eq!(device.compare_swap_u64_at(Iova(iova), 3, 9), Ok((3, Gpa(gpa(iova)))));
    assert_eq!(device.fetch_add_u64(Iova(iova), 0), Ok(9));
}

#[test]
fn located_bytes_lie_together_in_both_address_spaces() {
    let (domain, device) = new();
    let at = |iova, len| device.locate(Iova(iova), len, Access::Write, |found| found);
    for iova in (0..8 * PAGE_SIZE).step_by(1000) {
        for len in [1, 96, 4096, 10_000, 1 << 30] {
            let Ok(found) = at(iova, len) else {
                assert!(iova + len > 8 * PAGE_SIZE, "{iova:#x} {len}");
                continue;
            };
            let together = found.gpa.end.0 - found.gpa.start.0;
            assert!((1..=len).contains(&together));
            for byte in (0..together).step_by(64) {
                assert_eq!(found.gpa.start.0 + byte, gpa(iova + byte));
                let (oa, _) = domain.resolve(Gpa(gpa(iova + byte))).expect("mapped");
                assert_eq!(oa.0, found.oa.0 + byte);
            }
            // No shorter than it has to be.
            let end = iova + together;
            if together < len && end < 8 * PAGE_SIZE {
                let (oa, _) = domain.resolve(Gpa(gpa(end))).expect("mapped");
                let goes_on = oa.0 == found.oa.0 + together && gpa(end) == found.gpa.end.0;
                assert!(!goes_on, "{iova:#x} {len}: only {together}");
            }
        }
    }
}

#[test]
fn nothing_is_located_that_may_not_be_accessed() {
    let memory = Arc::new(HeapMemory::new(2 * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
    domain.map(Gpa(0)..Gpa(PAGE_SIZE), Oa(0), Perm::READ).expect("free");
    domain.map(Gpa(PAGE_SIZE)..Gpa(2 * PAGE_SIZE), Oa(PAGE_SIZE), Perm::READ_WRITE).expect("free");
    let device = domain.attach(Rid(8)).expect("first");
    let reason = |iova, len, access| {
        device.locate(Iova(iova), len, access, |_| ()).map_err(|error| error.fault.reason)
    };
    assert_eq!(reason(0, 1, Access::Write), Err(FaultReason::NotWritable));
    assert_eq!(reason(0, 1, Access::Read), Ok(()));
    assert_eq!(reason(2 * PAGE_SIZE, 1, Access::Read), Err(FaultReason::NotMapped));
    for (iova, len) in [(0, 0), (u64::MAX, 2), (1 << 48, 1), (2, u64::MAX)] {
        assert_eq!(reason(iova, len, Access::Read), Err(FaultReason::AddressWidth), "{iova:#x}");
    }
    device.revoke().expect("drains");
    assert_eq!(reason(0, 1, Access::Read), Err(FaultReason::Revoked));
    assert_eq!(LOCATE_MAX % PAGE_SIZE, 0);
    assert_eq!(domain.span(), Gpa(0)..Gpa(1 << 30));
}

#[test]
fn locating_to_write_marks_dirty_as_a_write_would() {
    let (domain, device) = new();
    domain.start_tracking().expect("starts");
    device.locate(Iova(0), PAGE_SIZE, Access::Write, |_| ()).expect("mapped");
    device.locate(Iova(4 * PAGE_SIZE), PAGE_SIZE, Access::Read, |_| ()).expect("mapped");
    let all = Gpa(0)..Gpa(16 * PAGE_SIZE);
    let bitmap = crate::DirtyBitmap::new(all.clone()).expect("aligned");
    domain.read_and_clear_dirty(all, &bitmap).expect("drains");
    let found: Vec<_> = bitmap.runs().collect();
    assert_eq!(found, [Gpa(3 * PAGE_SIZE)..Gpa(4 * PAGE_SIZE)]);
}

#[test]
fn a_host_pointer_leads_to_the_byte() {
    let memory = HeapMemory::new(100);
    let base = memory.host_ptr(Oa(0), 100).expect("inside").addr().get();
    for at in 0..100 {
        assert_eq!(memory.host_ptr(Oa(at), 1).expect("inside").addr().get(), base + at as usize);
    }
    for (at, len) in [(100, 1), (0, 101), (u64::MAX, 2)] {
        assert_eq!(memory.host_ptr(Oa(at), len), None);
    }
}
