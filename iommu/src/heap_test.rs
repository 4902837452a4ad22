use crate::{HeapMemory, Memory, MemoryError, Oa};

#[test]
fn every_offset_and_length_writes_these_bytes_and_no_others() {
    for offset in 0..20u64 {
        for len in 0..40usize {
            let memory = HeapMemory::new(64);
            memory.fill(Oa(0), 0xee, 64).expect("in bounds");
            let data: Vec<u8> = (1..).take(len).collect();
            memory.write(Oa(offset), &data).expect("in bounds");
            let start = usize::try_from(offset).expect("small");
            let mut expected = [0xee; 64];
            expected[start..start + len].copy_from_slice(&data);
            let mut all = [0; 64];
            memory.read(Oa(0), &mut all).expect("in bounds");
            assert_eq!(all, expected);
            let mut back = vec![0; len];
            memory.read(Oa(offset), &mut back).expect("in bounds");
            assert_eq!(back, data);
            memory.fill(Oa(offset), 7, len as u64).expect("in bounds");
            expected[start..start + len].fill(7);
            memory.read(Oa(0), &mut all).expect("in bounds");
            assert_eq!(all, expected);
        }
    }
}

#[test]
fn an_access_past_the_end_changes_nothing() {
    let memory = HeapMemory::new(13);
    let beyond = |oa, len| Err(MemoryError::OutOfBounds { oa: Oa(oa), len, size: 13 });
    assert_eq!(memory.write(Oa(8), &[1; 6]), beyond(8, 6));
    assert_eq!(memory.fill(Oa(12), 1, 2), beyond(12, 2));
    assert_eq!(memory.fill(Oa(u64::MAX), 1, 2), beyond(u64::MAX, 2));
    assert_eq!(memory.fetch_add_u64(Oa(8), 1), beyond(8, 8).map(|()| 0));
    let mut all = [1; 13];
    memory.read(Oa(0), &mut all).expect("in bounds");
    assert_eq!(all, [0; 13]);
    memory.write(Oa(13), &[]).expect("nothing");
    memory.write(Oa(8), &[1; 5]).expect("up to the end");
}

#[test]
fn atomics_need_alignment() {
    let memory = HeapMemory::new(16);
    let (at, size) = (Oa(4), 8);
    let misaligned = MemoryError::Misaligned { oa: at, size };
    assert_eq!(memory.fetch_add_u64(at, 1), Err(misaligned));
    assert_eq!(memory.compare_swap_u64(at, 0, 1), Err(misaligned));
    assert_eq!(memory.fetch_add_u32(at, 1), Ok(0));
    assert_eq!(memory.compare_swap_u32(at, 1, 9), Ok(1));
    assert_eq!(memory.compare_swap_u64(Oa(0), 9 << 32, 3), Ok(9 << 32));
}

#[test]
fn neighbours_in_one_word_do_not_lose_each_others_bytes() {
    let memory = HeapMemory::new(8);
    std::thread::scope(|scope| {
        for at in 0..8u64 {
            let memory = &memory;
            scope.spawn(move || {
                for value in 0..=255u8 {
                    memory.write(Oa(at), &[value]).expect("in bounds");
                    let mut back = [0];
                    memory.read(Oa(at), &mut back).expect("in bounds");
                    assert_eq!(back, [value]);
                }
            });
        }
    });
}
