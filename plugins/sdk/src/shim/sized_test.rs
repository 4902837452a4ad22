use super::*;

/// As this side knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    size: u32,
    first: u32,
    second: u64,
}

/// As a newer host does.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Newer {
    known: Known,
    third: u64,
}

fn host(size: u32) -> Newer {
    Newer { known: Known { size, first: 1, second: 2 }, third: 3 }
}

fn read(size: u32) -> Option<Known> {
    let host = host(size);
    // SAFETY: it has at least as many bytes as it says.
    unsafe { known(&raw const host.known, 8) }
}

#[test]
fn an_older_and_a_newer_host_are_read() {
    assert_eq!(read(8), Some(Known { size: 8, first: 1, second: 0 }));
    assert_eq!(read(16), Some(Known { size: 16, first: 1, second: 2 }));
    assert_eq!(read(24), Some(Known { size: 24, first: 1, second: 2 }));
    assert_eq!(read(7), None);
    assert_eq!(read(0), None);
    // SAFETY: NULL.
    assert_eq!(unsafe { known::<Known>(core::ptr::null(), 8) }, None);
}

#[test]
fn an_older_and_a_newer_host_are_filled_in() {
    let answer = Known { size: 0, first: 11, second: 12 };
    for (size, first, second) in [(24, 11, 12), (16, 11, 12), (8, 11, 2), (4, 1, 2), (0, 1, 2)] {
        let mut out = host(size);
        // SAFETY: it has at least as many bytes as it says.
        assert!(unsafe { fill(&raw mut out.known, &answer) });
        let expected = Newer { known: Known { size, first, second }, third: 3 };
        assert_eq!(out, expected, "beyond {size} bytes all is the host's");
    }
    // SAFETY: NULL.
    assert!(!unsafe { fill(core::ptr::null_mut(), &answer) });
}
