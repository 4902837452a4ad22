use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SIZE};

use crate::{PageSizeError, TrackingPageSize};

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

fn set_pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

#[test]
fn every_power_of_two_from_4k_to_2m_and_nothing_else() {
    let good: Vec<u64> =
        (0..64).map(|lg2| 1 << lg2).filter(|b| *b >= 4096 && *b <= 2 << 20).collect();
    for bytes in good {
        let size = TrackingPageSize::new(bytes).expect("a power of two inside");
        assert_eq!((size.bytes(), size.pages()), (bytes, bytes / PAGE_SIZE));
        assert_eq!(size.to_string().parse(), Ok(size), "its own text");
        assert_eq!(bytes.to_string().parse(), Ok(size), "in bytes");
    }
    assert_eq!(TrackingPageSize::new(3 << 10), Err(PageSizeError::OutOfBounds { bytes: 3072 }));
    assert_eq!(TrackingPageSize::new(4 << 20), Err(PageSizeError::OutOfBounds { bytes: 4 << 20 }));
    assert_eq!(TrackingPageSize::new(12288), Err(PageSizeError::NotPowerOfTwo { bytes: 12288 }));
}

#[test]
fn text_that_is_read_and_text_that_is_not() {
    for (text, size) in [
        ("4K", TrackingPageSize::K4),
        ("16k", TrackingPageSize::K16),
        ("64KiB", TrackingPageSize::K64),
        ("2M", TrackingPageSize::M2),
        ("2048K", TrackingPageSize::M2),
    ] {
        assert_eq!(text.parse(), Ok(size), "{text}");
    }
    let long = "99999999999999999999M";
    for text in ["", "K", "4 K", "+4K", "-4K", "4G", "4iB", "vier", "0x1000", long, "é"] {
        let error = text.parse::<TrackingPageSize>().expect_err(text);
        assert_eq!(error, PageSizeError::Unreadable { text: text.to_owned() });
        assert!(error.to_string().contains("64K"), "names the way out: {error}");
    }
    assert!("3K".parse::<TrackingPageSize>().expect_err("3K").to_string().contains("4K..=2M"));
}

#[test]
fn json_is_the_text() {
    let json = serde_json::to_string(&TrackingPageSize::K64).expect("plain");
    assert_eq!(json, "\"64K\"");
    assert_eq!(
        serde_json::from_str::<TrackingPageSize>(&json).expect("own"),
        TrackingPageSize::K64
    );
    let error = serde_json::from_str::<TrackingPageSize>("\"3K\"").expect_err("no size");
    assert!(error.to_string().contains("3072"), "{error}");
}

#[test]
fn a_report_at_64k_sets_16_bits() {
    let bitmap = DirtyBitmap::new(page(0)..page(64)).expect("aligned");
    TrackingPageSize::K64.mark(page(21)..Gpa(page(21).0 + 1), &bitmap).expect("inside");
    assert_eq!(set_pages(&bitmap), (16..32).collect::<Vec<_>>());
}

#[test]
fn widening_ends_where_the_bitmap_ends() {
    // Neither end is aligned to 64K.
    let bitmap = DirtyBitmap::new(page(5)..page(37)).expect("aligned");
    bitmap.set(page(6)).expect("inside");
    bitmap.set(page(36)).expect("inside");
    TrackingPageSize::K64.widen(&bitmap).expect("inside");
    let expected: Vec<u64> = (5..16).chain(32..37).collect();
    assert_eq!(set_pages(&bitmap), expected);
    let outside = TrackingPageSize::K64.mark(page(4)..page(6), &bitmap);
    assert!(matches!(outside, Err(BitmapError::Outside { .. })));
}

#[test]
fn widening_equals_the_plain_rule_for_every_size_and_base() {
    for base in [0u64, 1, 15, 64, 100] {
        for size in [1u64, 2, 4, 16, 64, 512] {
            let bitmap = DirtyBitmap::new(page(base)..page(base + 1500)).expect("aligned");
            let set = [base, base + 3, base + 511, base + 700, base + 1499];
            set.iter().for_each(|p| assert!(bitmap.set(page(*p)).expect("inside")));
            TrackingPageSize::new(size * PAGE_SIZE)
                .expect("a size")
                .widen(&bitmap)
                .expect("inside");
            let same = |p: &u64| set.iter().any(|s| s / size == p / size);
            let expected: Vec<u64> = (base..base + 1500).filter(same).collect();
            assert_eq!(set_pages(&bitmap), expected, "base {base} size {size}");
        }
    }
}

#[test]
fn growing_stops_at_the_bounds_and_never_shrinks() {
    let size = TrackingPageSize::K16;
    let grown = size.grow(&(page(5)..page(6)), &(page(0)..page(100)));
    assert_eq!(grown, page(4)..page(8));
    assert_eq!(size.grow(&(page(5)..page(6)), &(page(5)..page(7))), page(5)..page(7));
    assert_eq!(size.grow(&(page(5)..page(6)), &(page(50)..page(51))), page(5)..page(8));
    let top = Gpa(!0xfff);
    assert!(size.grow(&(top..Gpa(u64::MAX)), &(page(0)..Gpa(u64::MAX))).end >= top);
}
