use super::*;
use crate::testing::{Access, MEMORY, TestBus, assert_same, noise};

const SRC: u64 = 0x10_0003;
const DST: u64 = 0x28_0005;
const LIST: u64 = 0x8000;

struct Bench {
    bus: TestBus,
    scratch: Mutex<Scratch>,
    bounce: Bounce,
}

impl Bench {
    fn new() -> Self {
        Self {
            bus: TestBus::new(),
            scratch: Mutex::new(Scratch::new(32)),
            bounce: Bounce::default(),
        }
    }

    fn run(&mut self, op: Op, len: u64) -> Done {
        let done = run(&self.bus, &self.scratch, &mut self.bounce, Work { len, op });
        for access in &self.bus.world().log {
            if let Access::Read(_, len) | Access::Write(_, len) = access {
                assert!(*len <= PIECE, "{access:?}");
            }
        }
        done
    }

    fn source(&self, len: u64) -> Vec<u8> {
        let bytes = noise(len as usize, len);
        self.bus.put(SRC, &bytes);
        bytes
    }
}

fn ok(moved: u64) -> Done {
    Done { status: Status::Ok, result: moved, moved }
}

fn failed(status: Status, moved: u64) -> Done {
    Done { status, result: moved, moved }
}

const LENGTHS: [u64; 8] = [1, 7, 4096, 65535, 65536, 65537, 131_072, 1 << 20];

#[test]
fn copy_moves_all_bytes_and_no_more() {
    for len in LENGTHS {
        let mut bench = Bench::new();
        let bytes = bench.source(len);
        bench.bus.put(DST + len, &[0xEE]);
        assert_eq!(bench.run(Op::Copy { src: SRC, dst: DST }, len), ok(len));
        assert_same(&bench.bus.bytes(DST, bytes.len()), &bytes);
        assert_eq!(bench.bus.bytes(DST + len, 1), [0xEE]);
        assert_eq!(bench.bus.bytes(DST - 1, 1), [0]);
    }
}

#[test]
fn fill_repeats_the_pattern_from_its_first_byte() {
    for len in LENGTHS {
        let mut bench = Bench::new();
        let pattern = [1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(bench.run(Op::Fill { pattern, dst: DST }, len), ok(len));
        let expected: Vec<u8> = (0..len).map(|i| (i % 8 + 1) as u8).collect();
        assert_same(&bench.bus.bytes(DST, len as usize), &expected);
        assert_eq!(bench.bus.bytes(DST + len, 1), [0]);
    }
}

#[test]
fn checksum_goes_on_across_pieces() {
    for len in [8, 65528, 65536, 65544, 1 << 20] {
        let mut bench = Bench::new();
        let src = 0x10_0000;
        let bytes = noise(len as usize, 3);
        bench.bus.put(src, &bytes);
        let mut sum = 0_u64;
        for word in bytes.chunks(8) {
            sum = sum.rotate_left(1).wrapping_add(u64::from_le_bytes(word.try_into().unwrap()));
        }
        let done = bench.run(Op::Checksum { src }, len);
        assert_eq!(done, Done { status: Status::Ok, result: sum, moved: len });
        assert!(bench.bus.world().log.iter().all(|access| matches!(access, Access::Read(..))));
    }
}

fn list(bench: &Bench, entries: &[(u64, u32, u32)]) -> Op {
    for (index, (iova, len, reserved)) in entries.iter().enumerate() {
        let at = LIST + index as u64 * LIST_ENTRY;
        bench.bus.put(at, &iova.to_le_bytes());
        bench.bus.put(at + 8, &len.to_le_bytes());
        bench.bus.put(at + 12, &reserved.to_le_bytes());
    }
    Op::Scatter { src: SRC, list: LIST, count: entries.len() as u64 }
}

#[test]
fn scatter_follows_the_list() {
    let mut bench = Bench::new();
    let bytes = bench.source(100_010);
    let (a, b, c) = (DST, DST + 200_001, DST + 300_001);
    let op = list(&bench, &[(a, 3, 0), (0, 0, 0), (b, 100_000, 0), (c, 7, 0)]);
    assert_eq!(bench.run(op, 100_010), ok(100_010));
    assert_eq!(bench.bus.bytes(a, 4), [&bytes[..3], &[0]].concat());
    assert_same(&bench.bus.bytes(b, 100_000), &bytes[3..100_003]);
    assert_same(&bench.bus.bytes(c, 7), &bytes[100_003..]);
}

#[test]
fn scatter_takes_256_entries() {
    let mut bench = Bench::new();
    let bytes = bench.source(512);
    let entries: Vec<_> = (0..256).map(|i| (DST + (255 - i) * 2, 2, 0)).collect();
    let op = list(&bench, &entries);
    assert_eq!(bench.run(op, 512), ok(512));
    let expected: Vec<u8> = bytes.chunks(2).rev().flatten().copied().collect();
    assert_same(&bench.bus.bytes(DST, 512), &expected);
}

#[test]
fn a_bad_list_writes_nothing() {
    for entries in [
        vec![(DST, 9, 0)],
        vec![(DST, 5, 0), (DST, 4, 0)],
        vec![(DST, 11, 0)],
        vec![(DST, 10, 1)],
        vec![(DST, u32::MAX, 0), (DST, 11, 0)],
    ] {
        let mut bench = Bench::new();
        let op = list(&bench, &entries);
        assert_eq!(bench.run(op, 10), failed(Status::BadList, 0), "{entries:?}");
        assert_eq!(bench.bus.world().log.len(), 1);
    }
}

#[test]
fn store_and_load_reach_the_whole_scratch_memory() {
    let mut bench = Bench::new();
    let len = 32 * 4096;
    let bytes = bench.source(len);
    assert_eq!(bench.run(Op::Store { src: SRC, scratch: 0 }, len), ok(len));
    assert_eq!(lock(&bench.scratch).dirty_among_first(32), 32);
    assert_eq!(bench.run(Op::Load { scratch: 0, dst: DST }, len), ok(len));
    assert_same(&bench.bus.bytes(DST, bytes.len()), &bytes);

    assert_eq!(bench.run(Op::Load { scratch: len - 5, dst: 1 }, 5), ok(5));
    assert_same(&bench.bus.bytes(1, 5), &bytes[bytes.len() - 5..]);
}

#[test]
fn faults_say_which_side_and_how_far() {
    let mut bench = Bench::new();
    bench.source(200_000);
    bench.bus.world().no_read = SRC + 70_000..SRC + 70_001;
    let copy = Op::Copy { src: SRC, dst: DST };
    assert_eq!(bench.run(copy, 200_000), failed(Status::SourceFault, 65536));
    let store = Op::Store { src: SRC, scratch: 0 };
    assert_eq!(bench.run(store, 100_000), failed(Status::SourceFault, 65536));
    bench.bus.world().no_read = 0..0;

    bench.bus.world().no_write = DST + 70_000..DST + 70_001;
    assert_eq!(bench.run(copy, 200_000), failed(Status::DestinationFault, 70_000));
    let fill = Op::Fill { pattern: [0; 8], dst: DST };
    assert_eq!(bench.run(fill, 200_000), failed(Status::DestinationFault, 70_000));
    let load = Op::Load { scratch: 0, dst: DST };
    assert_eq!(bench.run(load, 100_000), failed(Status::DestinationFault, 70_000));
    let op = list(&bench, &[(0, 1000, 0), (DST + 69_999, 10, 0)]);
    assert_eq!(bench.run(op, 1010), failed(Status::DestinationFault, 1001));

    bench.bus.world().no_read = LIST..LIST + 1;
    assert_eq!(bench.run(op, 1010), failed(Status::DestinationFault, 0));
    bench.bus.world().no_read = 0x10_0010..0x10_0018;
    let sum = Op::Checksum { src: 0x10_0000 };
    assert_eq!(bench.run(sum, 64), failed(Status::SourceFault, 0));
}

#[test]
fn addresses_do_not_wrap() {
    let mut bench = Bench::new();
    for top in [u64::MAX, u64::MAX - 65_535, MEMORY as u64] {
        let copy = bench.run(Op::Copy { src: top, dst: 0 }, 1 << 20);
        assert_eq!(copy, failed(Status::SourceFault, 0));
        let fill = bench.run(Op::Fill { pattern: [1; 8], dst: top }, 1 << 20);
        assert_eq!(fill, failed(Status::DestinationFault, 0));
    }
    assert!(bench.bus.world().memory.iter().all(|byte| *byte == 0));
}
