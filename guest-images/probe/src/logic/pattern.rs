//! What the pages of the working set hold, and which page comes next.
//!
//! The order of writing is a fixed permutation, so the generation that every page must hold
//! follows from how many pages were written. Nothing else is kept: a page that comes back in an
//! older version cannot agree with a table that came back in the same older version.

/// Words of 64 bits in a page.
pub const WORDS: usize = 512;
/// A page as words.
pub type Page = [u64; WORDS];

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit of `x` over the whole word (the finisher of SplitMix64).
pub const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64: a small generator of well spread numbers, the same on every run of a seed.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator; each seed has its own sequence.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// The next number, below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw().checked_rem(bound).unwrap_or(0)
    }
}

/// Fills `words` with a sequence that `key` decides.
pub fn fill(words: &mut [u64], key: u64) {
    let mut value = mix(key);
    for word in words {
        *word = value;
        value = value.wrapping_add(GOLDEN);
    }
}

/// A word that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Its number in the page.
    pub word: usize,
    /// What it should be.
    pub want: u64,
    /// What it is.
    pub got: u64,
}

/// What one page holds: its index, the seed, its generation, then words made of the three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// Page number in the working set.
    pub index: u64,
    /// Seed of the run.
    pub seed: u64,
    /// How often the page was written after the first filling.
    pub generation: u64,
}

impl Content {
    fn key(self) -> u64 {
        mix(self.seed ^ mix(self.index ^ mix(self.generation)))
    }

    /// Writes a page.
    pub fn write(self, page: &mut Page) {
        fill(page, self.key());
        let [index, seed, generation, ..] = page;
        (*index, *seed, *generation) = (self.index, self.seed, self.generation);
    }

    /// Checks every byte of a page and names the first wrong word.
    pub fn check(self, page: &Page) -> Result<(), Wrong> {
        let head = [self.index, self.seed, self.generation];
        let mut value = mix(self.key());
        let mut all = 0;
        for (n, word) in page.iter().enumerate() {
            all |= word ^ if n < head.len() { *head.get(n).unwrap_or(&0) } else { value };
            value = value.wrapping_add(GOLDEN);
        }
        if all == 0 { Ok(()) } else { self.locate(page) }
    }

    #[cold]
    fn locate(self, page: &Page) -> Result<(), Wrong> {
        let mut want = [0; WORDS];
        self.write(&mut want);
        let mut pairs = want.into_iter().zip(page.iter().copied()).enumerate();
        match pairs.find(|(_, (want, got))| want != got) {
            Some((word, (want, got))) => Err(Wrong { word, want, got }),
            None => Ok(()),
        }
    }
}

/// One vCPU's pages: a range of the working set and how far the writing of it has come.
#[derive(Clone, Debug)]
pub struct Share {
    seed: u64,
    first: u64,
    count: u64,
    step: u64,
    inverse: u64,
    written: u64,
}

impl Share {
    /// The pages `first..first + count`, all of generation 0. `count` is at most 2^32.
    pub fn new(seed: u64, first: u64, count: u64) -> Self {
        // A step near the golden section, without a common divisor, visits all, far apart.
        let mut step = (count.saturating_mul(618) / 1000).max(1);
        let inverse = loop {
            match inverse(step, count) {
                Some(inverse) => break inverse,
                None => step += 1,
            }
        };
        Self { seed, first, count, step, inverse, written: 0 }
    }

    /// Share number `n` of `of` of a working set of `pages` pages.
    pub fn part(seed: u64, pages: u64, n: u64, of: u64) -> Self {
        let start = pages * n / of.max(1);
        let end = pages * (n + 1) / of.max(1);
        Self::new(seed, start, end - start)
    }

    /// First page and number of pages.
    pub fn range(&self) -> (u64, u64) {
        (self.first, self.count)
    }

    /// What page `index`, one of this share, holds now.
    pub fn content(&self, index: u64) -> Content {
        let (cycle, position) = self.split();
        let place = ((index - self.first) * self.inverse).checked_rem(self.count).unwrap_or(0);
        let generation = cycle + u64::from(place < position);
        Content { index, seed: self.seed, generation }
    }

    /// The page whose turn it is, as it is now; it is to be written with the next generation.
    pub fn turn(&self) -> Content {
        let (generation, position) = self.split();
        let offset = (position * self.step).checked_rem(self.count).unwrap_or(0);
        Content { index: self.first + offset, seed: self.seed, generation }
    }

    /// Takes account of the page whose turn it was: it has been written.
    pub fn advance(&mut self) {
        self.written += 1;
    }

    /// Pages written.
    pub fn written(&self) -> u64 {
        self.written
    }

    fn split(&self) -> (u64, u64) {
        match self.count {
            0 => (0, 0),
            count => (self.written / count, self.written % count),
        }
    }
}

/// The inverse of `a` modulo `n`, or `None` where they have a common divisor.
fn inverse(a: u64, n: u64) -> Option<u64> {
    if n <= 1 {
        return Some(0);
    }
    let (mut old, mut new) = ((i128::from(a % n), 1_i128), (i128::from(n), 0_i128));
    while new.0 != 0 {
        let q = old.0 / new.0;
        (old, new) = (new, (old.0 - q * new.0, old.1 - q * new.1));
    }
    (old.0 == 1).then(|| u64::try_from(old.1.rem_euclid(i128::from(n))).ok()).flatten()
}

#[cfg(test)]
#[path = "pattern_test.rs"]
mod tests;
