//! The ndma device's checksum, as its datasheet gives it.

/// `s = s.rotate_left(1) + word` over the little-endian words of `bytes`, from 0.
/// Bytes after the last whole word do not count; the device refuses such a length.
pub fn checksum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    let step =
        |sum: u64, word: &[u8; 8]| sum.rotate_left(1).wrapping_add(u64::from_le_bytes(*word));
    words.iter().fold(0, step)
}

#[cfg(test)]
#[path = "checksum_test.rs"]
mod tests;
