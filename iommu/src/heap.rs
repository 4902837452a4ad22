//! Guest memory on the heap: for tests, tools and benchmarks, without unsafe.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use drogher_iommu_types::Oa;

use crate::memory::{Memory, MemoryError};

const WORD: u64 = 8;

/// Memory of 8-byte words, zero at first. Its bytes are those of the words in little endian.
pub struct HeapMemory {
    words: Box<[AtomicU64]>,
    len: u64,
}

impl HeapMemory {
    /// Zeroed memory of `len` bytes.
    #[must_use]
    pub fn new(len: u64) -> Self {
        let words = (0..len.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect();
        Self { words, len }
    }

    /// The words that an access of `len` bytes touches, the first perhaps not from its start.
    fn words(&self, oa: Oa, len: u64) -> Result<&[AtomicU64], MemoryError> {
        let out_of_bounds = MemoryError::OutOfBounds { oa, len, size: self.len };
        let end = oa.0.checked_add(len).filter(|end| *end <= self.len).ok_or(out_of_bounds)?;
        let first = usize::try_from(oa.0 / WORD).map_err(|_| out_of_bounds)?;
        let last = usize::try_from(end.div_ceil(WORD)).map_err(|_| out_of_bounds)?;
        self.words.get(first..last.max(first)).ok_or(out_of_bounds)
    }

    /// The word of an atomic access and the bit that the access begins at.
    fn atomic(&self, oa: Oa, size: u64) -> Result<(&AtomicU64, u64), MemoryError> {
        if !oa.0.is_multiple_of(size) {
            return Err(MemoryError::Misaligned { oa, size });
        }
        let word = self.words(oa, size)?.first();
        let word = word.ok_or(MemoryError::OutOfBounds { oa, len: size, size: self.len })?;
        Ok((word, oa.0 % WORD * 8))
    }

    /// Changes 4 bytes as one step; returns what they were.
    fn update_u32(&self, oa: Oa, change: impl Fn(u32) -> u32) -> Result<u32, MemoryError> {
        let (word, shift) = self.atomic(oa, 4)?;
        // The mask leaves 32 bits.
        let part = |value: u64| ((value >> shift) & u64::from(u32::MAX)) as u32;
        let old = update(word, |value| {
            let others = value & !(u64::from(u32::MAX) << shift);
            others | u64::from(change(part(value))) << shift
        });
        Ok(part(old))
    }

    /// Replaces bytes of one word from `at` on, the others unchanged whoever writes them.
    fn merge(word: &AtomicU64, at: usize, data: impl Iterator<Item = u8> + Clone) {
        update(word, |value| {
            let mut bytes = value.to_le_bytes();
            for (byte, new) in bytes.iter_mut().skip(at).zip(data.clone()) {
                *byte = new;
            }
            u64::from_le_bytes(bytes)
        });
    }
}

/// Changes a word as one step; returns what it was.
fn update(word: &AtomicU64, change: impl Fn(u64) -> u64) -> u64 {
    let mut old = word.load(Ordering::Acquire);
    loop {
        let new = change(old);
        match word.compare_exchange_weak(old, new, Ordering::SeqCst, Ordering::Acquire) {
            Ok(_) => return old,
            Err(now) => old = now,
        }
    }
}

/// The offset in its word, and how many of `len` bytes lie in that first word if it is not whole.
fn head(oa: Oa, len: usize) -> (usize, usize) {
    // Below 8.
    let at = (oa.0 % WORD) as usize;
    if at == 0 { (0, 0) } else { (at, len.min(8 - at)) }
}

impl Memory for HeapMemory {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, oa: Oa, data: &mut [u8]) -> Result<(), MemoryError> {
        let mut words = self.words(oa, data.len() as u64)?;
        let (at, first) = head(oa, data.len());
        let (start, data) = data.split_at_mut(first);
        if let (false, Some((word, rest))) = (start.is_empty(), words.split_first()) {
            let bytes = word.load(Ordering::Acquire).to_le_bytes();
            start.iter_mut().zip(bytes.iter().skip(at)).for_each(|(to, from)| *to = *from);
            words = rest;
        }
        let mut whole = data.chunks_exact_mut(8);
        let mut words = words.iter();
        for (to, word) in whole.by_ref().zip(words.by_ref()) {
            to.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        let tail = whole.into_remainder();
        if let (false, Some(word)) = (tail.is_empty(), words.next()) {
            let bytes = word.load(Ordering::Acquire).to_le_bytes();
            tail.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        }
        std::sync::atomic::fence(Ordering::Acquire);
        Ok(())
    }

    fn write(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError> {
        let mut words = self.words(oa, data.len() as u64)?;
        std::sync::atomic::fence(Ordering::Release);
        let (at, first) = head(oa, data.len());
        let (start, data) = data.split_at(first);
        if let (false, Some((word, rest))) = (start.is_empty(), words.split_first()) {
            Self::merge(word, at, start.iter().copied());
            words = rest;
        }
        let whole = data.chunks_exact(8);
        let tail = whole.remainder();
        let (middle, last) = words.split_at(whole.len().min(words.len()));
        for (word, from) in middle.iter().zip(whole) {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(from);
            word.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
        }
        if let (false, Some(word)) = (tail.is_empty(), last.first()) {
            Self::merge(word, 0, tail.iter().copied());
        }
        Ok(())
    }

    fn fill(&self, oa: Oa, byte: u8, len: u64) -> Result<(), MemoryError> {
        let words = self.words(oa, len)?;
        std::sync::atomic::fence(Ordering::Release);
        let (mut at, mut left) = (oa.0 % WORD, len);
        for word in words {
            let here = left.min(WORD - at);
            if here == WORD {
                word.store(u64::from_le_bytes([byte; 8]), Ordering::Relaxed);
            } else {
                // Below 8.
                Self::merge(word, at as usize, std::iter::repeat_n(byte, here as usize));
            }
            (at, left) = (0, left - here);
        }
        Ok(())
    }

    fn fetch_add_u32(&self, oa: Oa, value: u32) -> Result<u32, MemoryError> {
        self.update_u32(oa, |old| old.wrapping_add(value))
    }

    fn fetch_add_u64(&self, oa: Oa, value: u64) -> Result<u64, MemoryError> {
        let (word, _) = self.atomic(oa, 8)?;
        Ok(word.fetch_add(value, Ordering::SeqCst))
    }

    fn compare_swap_u32(&self, oa: Oa, expected: u32, new: u32) -> Result<u32, MemoryError> {
        self.update_u32(oa, |old| if old == expected { new } else { old })
    }

    fn compare_swap_u64(&self, oa: Oa, expected: u64, new: u64) -> Result<u64, MemoryError> {
        let (word, _) = self.atomic(oa, 8)?;
        match word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(old) | Err(old) => Ok(old),
        }
    }

    fn host_ptr(&self, oa: Oa, len: u64) -> Option<NonNull<u8>> {
        let words = self.words(oa, len).ok()?;
        // The first word's; an `AtomicU64` may be written to through any pointer.
        let first = NonNull::new(words.as_ptr().cast_mut().cast::<u8>())?;
        // Below 8, and inside that word.
        Some(first.map_addr(|addr| addr.saturating_add((oa.0 % WORD) as usize)))
    }
}
