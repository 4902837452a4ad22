use std::ops::Range;
use std::sync::{Arc, Mutex};

use crate::{
    Access, Domain, DomainConfig, FaultReason, Gpa, HeapMemory, Iova, Oa, PAGE_SIZE, Perm,
    Requester, Rid, Stage1, Stage1Page,
};

fn pages(range: Range<u64>) -> Range<Gpa> {
    Gpa(range.start * PAGE_SIZE)..Gpa(range.end * PAGE_SIZE)
}

fn new(memory_pages: u64) -> (Domain, Requester) {
    let memory = Arc::new(HeapMemory::new(memory_pages * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
    let device = domain.attach(Rid(0x0108)).expect("first");
    (domain, device)
}

fn memory(domain: &Domain, oa: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    domain.memory().read(Oa(oa), &mut data).expect("in bounds");
    data
}

#[test]
fn bytes_arrive_at_any_offset_and_length() {
    let (domain, device) = new(64);
    domain.map(pages(100..164), Oa(0), Perm::READ_WRITE).expect("free");
    let base = 100 * PAGE_SIZE;
    for (offset, len) in [(0, 1), (4095, 2), (4093, 9000), (1, 131_073), (7, 200_000)] {
        let data: Vec<u8> = (0..len).map(|i| (i * 7 + offset) as u8).collect();
        let offset = offset as u64;
        device.write(Iova(base + offset), &data).expect("mapped");
        assert_eq!(memory(&domain, offset, len), data);
        let mut back = vec![0; len];
        device.read(Iova(base + offset), &mut back).expect("mapped");
        assert_eq!(back, data);
    }
    assert_eq!(domain.faults().total, 0);
}

#[test]
fn a_range_scattered_over_memory_is_one_access() {
    let (domain, device) = new(8);
    for (gpa, oa) in [(0, 5), (1, 6), (2, 1), (3, 7), (4, 0)] {
        domain.map(pages(gpa..gpa + 1), Oa(oa * PAGE_SIZE), Perm::READ_WRITE).expect("free");
    }
    let data: Vec<u8> = (0..5 * PAGE_SIZE - 20).map(|i| (i / 16) as u8).collect();
    device.write(Iova(10), &data).expect("mapped");
    let mut back = vec![0; data.len()];
    device.read(Iova(10), &mut back).expect("mapped");
    assert_eq!(back, data);
    let second = usize::try_from(PAGE_SIZE).expect("small") - 10;
    assert_eq!(memory(&domain, 6 * PAGE_SIZE, 16), data[second..second + 16]);
    assert_eq!(memory(&domain, 5 * PAGE_SIZE, 10), [0; 10]);
}

#[test]
fn permissions_are_kept_and_the_fault_says_what_and_where() {
    let (domain, device) = new(4);
    domain.map(pages(0..1), Oa(0), Perm::READ).expect("free");
    domain.map(pages(1..2), Oa(PAGE_SIZE), Perm::WRITE).expect("free");
    device.read(Iova(0), &mut [0; 4]).expect("readable");
    device.write(Iova(PAGE_SIZE), &[1]).expect("writable");
    let at = Iova(PAGE_SIZE);
    let reasons = [
        device.write(Iova(0), &[1]).expect_err("read only").fault.reason,
        device.fill(Iova(0), 1, 1).expect_err("read only").fault.reason,
        device.fetch_add_u64(Iova(0), 1).expect_err("read only").fault.reason,
        device.read(at, &mut [0]).expect_err("write only").fault.reason,
        device.compare_swap_u32(at, 0, 1).expect_err("write only").fault.reason,
    ];
    let (no_write, no_read) = (FaultReason::NotWritable, FaultReason::NotReadable);
    assert_eq!(reasons, [no_write, no_write, no_write, no_read, no_read]);
    let error = device.write(Iova(2 * PAGE_SIZE + 5), &[1]).expect_err("not mapped");
    assert_eq!(
        error.to_string(),
        "DMA write by 01:01.0 at IOVA 0x2005 faulted: not mapped, after 0 bytes"
    );
    assert_eq!(memory(&domain, 0, 8), [0; 8]);
    assert_eq!(device.stats().faults, 6);
}

#[test]
fn a_fault_half_way_tells_how_far_it_came() {
    let (domain, device) = new(64);
    domain.map(pages(0..40), Oa(0), Perm::READ_WRITE).expect("free");
    domain.map(pages(40..41), Oa(60 * PAGE_SIZE), Perm::READ).expect("free");
    let data = vec![9; 60 * 4096];
    let error = device.write(Iova(100), &data).expect_err("page 40 is read only");
    assert_eq!(error.done, 40 * PAGE_SIZE - 100);
    assert_eq!(error.fault.iova, Iova(40 * PAGE_SIZE));
    assert_eq!((error.fault.access, error.fault.reason), (Access::Write, FaultReason::NotWritable));
    assert_eq!(memory(&domain, 40 * PAGE_SIZE - 4, 4), [9; 4]);
    let mut back = vec![0; 60 * 4096];
    let error = device.read(Iova(100), &mut back).expect_err("page 41 is not mapped");
    assert_eq!(error.done, 41 * PAGE_SIZE - 100);
    assert_eq!(back[39 * 4096], 9);
    let stats = device.stats();
    assert_eq!(stats.bytes_written, 40 * PAGE_SIZE - 100);
    assert_eq!(stats.bytes_read, 41 * PAGE_SIZE - 100);
}

#[test]
fn what_is_not_mapped_is_offered_page_by_page() {
    let (domain, device) = new(2);
    domain.map(pages(0..2), Oa(0), Perm::READ_WRITE).expect("free");
    let end = 2 * PAGE_SIZE;
    let mut offered = Vec::new();
    let data: Vec<u8> = (0..9000).map(|i| (i % 251) as u8).collect();
    let taken = device.write_or(Iova(end - 8), &data, |gpa, part| {
        offered.push((gpa, part.to_vec()));
        Ok(())
    });
    taken.expect("all of it");
    assert_eq!(memory(&domain, end - 8, 8), data[..8]);
    let page = 4096;
    let parts = [8..8 + page, 8 + page..8 + 2 * page, 8 + 2 * page..9000];
    let expected: Vec<_> = (0..).zip(parts).collect();
    let expected = expected.into_iter().map(|(n, part)| (Gpa(end + n * 4096), data[part].to_vec()));
    assert_eq!(offered, expected.collect::<Vec<_>>());
    let mut filled = Vec::new();
    device
        .fill_or(Iova(end + 4090), 7, 10, |gpa, part| {
            filled.push((gpa, part.to_vec()));
            Ok(())
        })
        .expect("all of it");
    assert_eq!(filled, [(Gpa(end + 4090), vec![7; 6]), (Gpa(end + 4096), vec![7; 4])]);
    assert_eq!(domain.faults().total, 0);
}

#[test]
fn what_nobody_takes_faults_and_a_slow_peer_is_no_fault() {
    let (domain, device) = new(1);
    domain.map(pages(0..1), Oa(0), Perm::READ_WRITE).expect("free");
    let mut left = 1;
    let mut write = |reason| {
        let error = device.write_or(Iova(4090), &[1; 9000], |_, _| {
            left -= 1;
            if left < 0 { Err(reason) } else { Ok(()) }
        });
        error.expect_err("not taken")
    };
    let error = write(FaultReason::PeerBusy);
    assert_eq!((error.done, error.fault.iova), (6 + 4096, Iova(2 * 4096)));
    assert_eq!(domain.faults().total, 0);
    let error = write(FaultReason::NotMapped);
    assert_eq!((error.done, error.fault.iova), (6, Iova(4096)));
    assert_eq!((domain.faults().total, device.stats().faults), (1, 1));
    // Neither a read, nor an atomic, nor what is mapped, nor a revoked device's write is offered.
    domain.map(pages(8..9), Oa(0), Perm::READ).expect("free");
    let never = |_: Gpa, _: &[u8]| -> Result<(), FaultReason> { panic!("offered") };
    let error = device.write_or(Iova(8 * 4096), &[1], never).expect_err("read only");
    assert_eq!(error.fault.reason, FaultReason::NotWritable);
    device.revoke().expect("nothing in flight");
    let error = device.write_or(Iova(4096), &[1], never).expect_err("revoked");
    assert_eq!(error.fault.reason, FaultReason::Revoked);
}

#[test]
fn an_access_that_wraps_or_leaves_the_width_faults() {
    let (domain, device) = new(1);
    let last = Gpa((1 << 48) - PAGE_SIZE);
    domain.map(last..Gpa(1 << 48), Oa(0), Perm::READ_WRITE).expect("free");
    let reason = |iova: u64, len: usize| {
        let error = device.write(Iova(iova), &vec![1; len]).expect_err("outside");
        (error.done, error.fault.reason)
    };
    assert_eq!(reason(u64::MAX, 2), (0, FaultReason::AddressWidth));
    assert_eq!(reason(u64::MAX, 1), (0, FaultReason::AddressWidth));
    assert_eq!(reason(1 << 48, 1), (0, FaultReason::AddressWidth));
    assert_eq!(reason(last.0, 4097), (PAGE_SIZE, FaultReason::AddressWidth));
    let endless = device.fill(Iova(2), 0, u64::MAX).expect_err("wraps");
    assert_eq!(endless.fault.reason, FaultReason::AddressWidth);
}

#[test]
fn atomics_act_once_and_need_alignment() {
    let (domain, device) = new(1);
    domain.map(pages(0..1), Oa(0), Perm::READ_WRITE).expect("free");
    assert_eq!(device.fetch_add_u64(Iova(8), 5), Ok(0));
    assert_eq!(device.fetch_add_u64(Iova(8), u64::MAX), Ok(5));
    assert_eq!(device.compare_swap_u64(Iova(8), 4, 0x1_0000_0002), Ok(4));
    assert_eq!(device.compare_swap_u64(Iova(8), 4, 9), Ok(0x1_0000_0002));
    assert_eq!(device.fetch_add_u32(Iova(12), u32::MAX), Ok(1));
    assert_eq!(device.compare_swap_u32(Iova(8), 2, 3), Ok(2));
    assert_eq!(memory(&domain, 8, 8), 3u64.to_le_bytes());
    let misaligned = device.fetch_add_u64(Iova(4), 1).expect_err("4 is no multiple of 8");
    assert_eq!(misaligned.fault.reason, FaultReason::Misaligned);
    let misaligned = device.compare_swap_u32(Iova(2), 0, 1).expect_err("2 is no multiple of 4");
    assert_eq!(misaligned.fault.reason, FaultReason::Misaligned);
}

#[test]
fn concurrent_atomics_all_count() {
    let (domain, device) = new(1);
    domain.map(pages(0..1), Oa(0), Perm::READ_WRITE).expect("free");
    std::thread::scope(|scope| {
        // More threads than slots.
        for _ in 0..12 {
            scope.spawn(|| {
                for _ in 0..500 {
                    device.fetch_add_u64(Iova(0), 1).expect("mapped");
                    device.fetch_add_u32(Iova(12), 1).expect("mapped");
                }
            });
        }
    });
    assert_eq!(memory(&domain, 0, 8), 6000u64.to_le_bytes());
    assert_eq!(memory(&domain, 12, 4), 6000u32.to_le_bytes());
    assert_eq!(device.accesses(), 12_000);
}

#[test]
fn the_fault_log_keeps_the_last_and_counts_all() {
    let config = DomainConfig { fault_log: 3, ..DomainConfig::default() };
    let domain = Domain::new(Arc::new(HeapMemory::new(PAGE_SIZE)), config).expect("valid");
    let device = domain.attach(Rid(8)).expect("first");
    for number in 0..10 {
        device.write(Iova(number * PAGE_SIZE), &[1]).expect_err("not mapped");
    }
    let faults = domain.faults();
    let places: Vec<u64> = faults.last.iter().map(|fault| fault.iova.page()).collect();
    assert_eq!((places.as_slice(), faults.total), ([7, 8, 9].as_slice(), 10));
}

#[test]
fn one_device_is_revoked_and_the_other_goes_on() {
    let (domain, device) = new(1);
    domain.map(pages(0..1), Oa(0), Perm::READ_WRITE).expect("free");
    let other = domain.attach(Rid(16)).expect("new");
    device.revoke().expect("nothing is in flight");
    let refused = device.fetch_add_u64(Iova(0), 1).expect_err("revoked");
    assert_eq!((refused.done, refused.fault.reason), (0, FaultReason::Revoked));
    other.write(Iova(0), &[1]).expect("not revoked");
    assert!(device.is_revoked() && !other.is_revoked());
    assert_eq!((device.accesses(), other.accesses()), (0, 1));
    device.restore();
    device.write(Iova(0), &[2]).expect("restored");
}

/// One page of IOVA goes where it says.
struct OnePage(Mutex<Option<Stage1Page>>);

impl Stage1 for OnePage {
    fn translate(&self, _rid: Rid, page: Iova, _access: Access) -> Result<Stage1Page, FaultReason> {
        let mapping = *self.0.lock().expect("not poisoned");
        mapping.filter(|_| page == Iova(0xffff_f000)).ok_or(FaultReason::Stage1NotPresent)
    }
}

#[test]
fn stage_1_comes_before_stage_2_and_can_change() {
    let (domain, _) = new(4);
    domain.map(pages(0..4), Oa(0), Perm::READ_WRITE).expect("free");
    domain.start_tracking().expect("nothing is in flight");
    let to = |gpa: u64, perm| Some(Stage1Page { gpa: Gpa(gpa), perm });
    let stage1 = Arc::new(OnePage(Mutex::new(to(0x2000, Perm::READ_WRITE))));
    let device = domain.attach_with(Rid(16), stage1.clone()).expect("new");
    device.write(Iova(0xffff_f004), b"abc").expect("mapped by both");
    assert_eq!(memory(&domain, 0x2004, 3), b"abc");
    let fault = device.write(Iova(0x2000), b"x").expect_err("an IOVA is not a GPA here").fault;
    assert_eq!(fault.reason, FaultReason::Stage1NotPresent);

    *stage1.0.lock().expect("not poisoned") = to(0x3000, Perm::READ);
    domain.invalidate().expect("nothing is in flight");
    let fault = device.write(Iova(0xffff_f000), b"x").expect_err("now read only").fault;
    assert_eq!(fault.reason, FaultReason::Stage1Permission);
    device.read(Iova(0xffff_f000), &mut [0]).expect("readable");
    *stage1.0.lock().expect("not poisoned") = to(1 << 50, Perm::READ_WRITE);
    domain.invalidate().expect("nothing is in flight");
    let fault = device.read(Iova(0xffff_f000), &mut [0]).expect_err("beyond stage 2").fault;
    assert_eq!(fault.reason, FaultReason::AddressWidth);

    // Dirty by GPA, whatever stage 1 says by now.
    let bitmap = crate::DirtyBitmap::new(pages(0..4)).expect("aligned");
    domain.read_and_clear_dirty(pages(0..4), &bitmap).expect("drained");
    assert_eq!(bitmap.runs().collect::<Vec<_>>(), [pages(2..3)]);
}

#[test]
fn a_write_after_a_read_of_the_same_page_sets_the_d_bit() {
    let (domain, device) = new(1);
    domain.map(pages(0..1), Oa(0), Perm::READ_WRITE).expect("free");
    domain.start_tracking().expect("nothing is in flight");
    let bitmap = crate::DirtyBitmap::new(pages(0..1)).expect("aligned");
    for _ in 0..3 {
        device.read(Iova(0), &mut [0]).expect("mapped");
        device.write(Iova(0), &[1]).expect("mapped");
        device.read(Iova(0), &mut [0]).expect("mapped");
        let stats = domain.read_and_clear_dirty(pages(0..1), &bitmap).expect("drained");
        assert_eq!(stats.pages.0, 1);
    }
}

#[test]
fn more_pages_than_the_iotlb_has_entries() {
    let (domain, device) = new(1000);
    domain.map(pages(0..1000), Oa(0), Perm::READ_WRITE).expect("free");
    for round in 0..2u64 {
        for number in 0..1000u64 {
            let value = number ^ round << 32;
            device.write(Iova(number * PAGE_SIZE), &value.to_le_bytes()).expect("mapped");
        }
    }
    for number in 0..1000u64 {
        let value = number ^ 1 << 32;
        assert_eq!(memory(&domain, number * PAGE_SIZE, 8), value.to_le_bytes());
    }
}
