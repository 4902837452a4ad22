use super::*;

fn cut(offset: u64, len: usize) -> Vec<(u64, usize)> {
    let post = Post { bar: 0, offset, data: vec![0; len].into() };
    post.accesses().map(|(at, bytes)| (at, bytes.len())).collect()
}

#[test]
fn a_write_is_cut_into_the_widest_aligned_accesses() {
    assert_eq!(cut(0, 8), [(0, 8)]);
    assert_eq!(cut(0x804, 4), [(0x804, 4)]);
    assert_eq!(cut(4, 8), [(4, 4), (8, 4)]);
    assert_eq!(cut(3, 18), [(3, 1), (4, 4), (8, 8), (16, 4), (20, 1)]);
    assert_eq!(cut(1, 2), [(1, 1), (2, 1)]);
    assert_eq!(cut(0, 4096).len(), 512);
}

#[test]
fn the_pieces_are_the_whole() {
    for (offset, len) in [(0, 4096), (1, 4095), (7, 1), (13, 700)] {
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let post = Post { bar: 0, offset, data: data.clone().into() };
        let mut next = offset;
        for (at, bytes) in post.accesses() {
            assert_eq!(at, next);
            assert!(at.is_multiple_of(bytes.len() as u64));
            next += bytes.len() as u64;
        }
        let whole: Vec<u8> = post.accesses().flat_map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(whole, data);
    }
}
