use super::*;
use crate::format::VERSION;
use crate::load::Load;
use crate::scratch::PAGE;

fn read_all(save: &mut Save, shared: &Shared, stopped: bool, piece: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let mut data = vec![0; piece];
    while let Read::Bytes(n) = save.read(shared, stopped, &mut data) {
        all.extend_from_slice(&data[..n]);
    }
    all
}

fn store(shared: &Shared, offset: u64, data: &[u8]) {
    assert!(lock(&shared.scratch).store(offset, data));
}

#[test]
fn sizes_are_exact_all_the_way() {
    let shared = Shared::new(3);
    let mut save = Save::default();
    let whole = (HEADER_BYTES + 3 * PAGE_SECTION) as u64;
    let info = save.remaining(&shared);
    assert_eq!((info.initial_bytes, info.dirty_bytes), (whole, 0));
    let mut read = 0;
    let mut data = [0; 1000];
    while let Read::Bytes(n) = save.read(&shared, false, &mut data) {
        read += n as u64;
        let info = save.remaining(&shared);
        assert_eq!((info.initial_bytes, info.dirty_bytes), (whole - read, 0));
        assert_eq!(save.size(&shared), whole - read + TAIL_BYTES as u64);
    }
    assert_eq!(read, whole);

    store(&shared, PAGE as u64, &[1]);
    let info = save.remaining(&shared);
    assert_eq!((info.initial_bytes, info.dirty_bytes), (0, PAGE_SECTION as u64));
    assert_eq!(save.read(&shared, false, &mut data[..10]), Read::Bytes(10));
    assert_eq!(save.remaining(&shared).dirty_bytes, PAGE_SECTION as u64 - 10);
    store(&shared, PAGE as u64, &[2]);
    assert_eq!(save.remaining(&shared).dirty_bytes, 2 * PAGE_SECTION as u64 - 10);

    let size = save.size(&shared);
    let rest = read_all(&mut save, &shared, true, 1000);
    assert_eq!(rest.len() as u64, size);
    assert_eq!(save.size(&shared), 0);
    for _ in 0..2 {
        assert_eq!(save.read(&shared, true, &mut data), Read::End);
    }
}

#[test]
fn the_stream_has_the_layout_of_the_datasheet() {
    let shared = Shared::new(1);
    store(&shared, 1, &[0xAB]);
    let bytes = read_all(&mut Save::default(), &shared, true, usize::MAX >> 40);
    assert_eq!(&bytes[..8], b"ndmastat");
    assert_eq!(bytes[8..12], VERSION.to_le_bytes());
    assert_eq!(bytes[12..24], [0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[24..32], [1, 0, 0, 0, 8, 0x10, 0, 0]);
    assert_eq!(bytes[32..42], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0xAB]);
    let tail = 24 + 8 + 8 + PAGE;
    assert_eq!(bytes[tail..tail + 8], [2, 0, 0, 0, 56, 0, 0, 0]);
    assert_eq!(bytes[tail + 64..tail + 72], [4, 0, 0, 0, 16, 4, 0, 0]);
    assert_eq!(bytes[tail + 72..tail + 1112], [0; 1040]);
    assert_eq!(bytes[tail + 1112..], [3, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn nothing_is_read_twice_while_nothing_changes() {
    let shared = Shared::new(2);
    let mut save = Save::default();
    read_all(&mut save, &shared, false, 999);
    assert_eq!(save.read(&shared, false, &mut [0; 64]), Read::NoMoreNow);
    assert_eq!(save.read(&shared, false, &mut []), Read::Bytes(0));
}

#[test]
fn a_page_that_is_always_dirty_starves_no_other() {
    let shared = Shared::new(4);
    let mut save = Save::default();
    read_all(&mut save, &shared, false, 4096);
    store(&shared, 3 * PAGE as u64, &[7]);
    let mut section = vec![0; PAGE_SECTION];
    let mut offsets = Vec::new();
    for _ in 0..3 {
        store(&shared, 0, &[1]);
        assert_eq!(save.read(&shared, false, &mut section), Read::Bytes(PAGE_SECTION));
        offsets.push(u64::from_le_bytes(section[8..16].try_into().unwrap()));
    }
    assert!(offsets.contains(&(3 * PAGE as u64)), "{offsets:?}");
}

#[test]
fn a_doorbell_rung_after_stop_is_in_the_state() {
    let shared = Shared::new(1);
    let mut save = Save::default();
    let mut bytes = read_all(&mut save, &shared, false, 4096);
    shared.with(|inner| inner.regs.doorbell = true);
    bytes.extend(read_all(&mut save, &shared, true, 4096));
    let mut load = Load::new(1);
    load.write(&bytes).unwrap();
    assert!(load.finish().unwrap().regs.doorbell);
}
