use super::*;

#[test]
fn by_hand() {
    let words =
        |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    assert_eq!(checksum(&[]), 0);
    assert_eq!(checksum(&words(&[5])), 5);
    assert_eq!(checksum(&words(&[5, 1])), 11);
    assert_eq!(checksum(&words(&[1 << 63, 1])), 2);
    assert_eq!(checksum(&words(&[u64::MAX, 1])), 0);
}
