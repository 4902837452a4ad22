use super::*;

const K4: TrackingPageSize = TrackingPageSize::K4;

fn taken(bitmap: &SharedBitmap, range: Range<u64>) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let range = Gpa(range.start << 12)..Gpa(range.end << 12);
    let done: Result<(), ()> = bitmap.take(&range, |run| {
        found.push(run.start.page()..run.end.page());
        Ok(())
    });
    done.expect("never fails");
    found
}

#[test]
fn every_cut_takes_what_is_in_it_and_no_more() {
    for from in [0, 1, 63, 64, 65, 127, 130] {
        for to in [1, 2, 64, 65, 128, 129, 200, 1000] {
            let bitmap =
                SharedBitmap::new(&(Gpa(0x10000)..Gpa(0x10000 + (200 << 12))), K4).expect("made");
            bitmap.words().iter().for_each(|word| word.store(u64::MAX, Ordering::SeqCst));
            // GPA pages; the bitmap begins at page 16.
            let pages = |runs: Vec<Range<u64>>| runs.into_iter().flatten().collect::<Vec<_>>();
            let (start, end) = (from + 16, to.min(256) + 16);
            assert_eq!(pages(taken(&bitmap, from + 16..to + 16)), (start..end).collect::<Vec<_>>());
            let rest: Vec<_> = (16..272).filter(|page| !(start..end).contains(page)).collect();
            assert_eq!(pages(taken(&bitmap, 0..5000)), rest, "{from}..{to}");
            assert_eq!(taken(&bitmap, 0..5000), []);
        }
    }
}

#[test]
fn runs_of_ones() {
    let all = |bits| runs(bits).collect::<Vec<_>>();
    assert_eq!(all(0), []);
    assert_eq!(all(u64::MAX), [(0, 64)]);
    assert_eq!(all(0b1011 << 61 | 0b110), [(1, 2), (61, 2)]);
    assert_eq!(all(1 << 63 | 1), [(0, 1), (63, 1)]);
}

#[test]
fn another_mapping_sets_the_same_bits() {
    let bitmap = SharedBitmap::new(&(Gpa(0)..Gpa(1 << 20)), TrackingPageSize::K64).expect("made");
    let (_, count, fd) = bitmap.parts();
    assert_eq!(count, 1);
    // Through the file, as another process would.
    let word = (0b101_u64).to_ne_bytes();
    // SAFETY: `word` is readable for its length.
    let written = unsafe { libc::pwrite(fd, word.as_ptr().cast(), word.len(), 0) };
    assert_eq!(written, 8);
    assert_eq!(taken(&bitmap, 0..256), [0..16, 32..48]);
    // SAFETY: no pointers.
    assert_eq!(unsafe { libc::ftruncate(fd, 0) }, -1, "sealed");
}
