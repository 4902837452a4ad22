use super::*;

/// A table of a later version: it had two fields once, and has four.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grown {
    size: u32,
    flags: u32,
    third: u64,
    fourth: u64,
}

// SAFETY: integers, a size first.
unsafe impl Sized1 for Grown {
    const NAME: &'static str = "grown";
}

impl Table for Grown {
    const FIRST: usize = 8;
}

/// More than anybody knows of it.
#[repr(C)]
struct Future {
    known: Grown,
    unknown: u64,
}

fn read(size: u32) -> Result<Grown, TableError> {
    let future = Future { known: Grown { size, flags: 2, third: 3, fourth: 4 }, unknown: 5 };
    // SAFETY: it has as many bytes as `size` says, at most.
    unsafe { table(&raw const future.known) }
}

#[test]
fn what_both_sides_know_is_read_and_the_rest_is_absent() {
    let expected = [(8, 0, 0), (16, 3, 0), (24, 3, 4), (32, 3, 4)];
    for (size, third, fourth) in expected {
        assert_eq!(read(size), Ok(Grown { size, flags: 2, third, fourth }));
    }
    // A size in the middle of a field is odd, and no reason to read further.
    let cut = read(20).expect("long enough");
    assert_eq!((cut.third, cut.fourth), (3, u64::from_ne_bytes([4, 0, 0, 0, 0, 0, 0, 0])));
}

#[test]
fn less_than_the_first_version_is_refused() {
    for found in [0, 4, 7] {
        let error = TableError::TooSmall { table: "grown", found, need: 8 };
        assert_eq!(read(found), Err(error));
    }
}

#[test]
fn no_table_and_a_crooked_one() {
    // SAFETY: NULL.
    let missing = unsafe { table::<Grown>(core::ptr::null()) };
    assert_eq!(missing, Err(TableError::Missing { table: "grown" }));
    let bytes = [0_u64; 8];
    let crooked = bytes.as_ptr().cast::<u8>().wrapping_add(4).cast();
    // SAFETY: readable, and refused before it is read.
    let crooked = unsafe { table::<Grown>(crooked) };
    assert_eq!(crooked, Err(TableError::Misaligned { table: "grown" }));
}

/// The sizes of version 1.0 are those that the interface's own test holds.
#[test]
fn first_sizes() {
    let layout = include_str!("../../abi/tests/header/layout-1.0.txt");
    let first = [
        ("drogher_device_ops", abi::DeviceOps::FIRST),
        ("drogher_migration", abi::Migration::FIRST),
        ("drogher_ndma", abi::Ndma::FIRST),
        ("drogher_params", abi::Params::FIRST),
        ("drogher_plugin_descriptor", crate::descriptor::LEN),
    ];
    for (name, size) in first {
        let line = format!("sizeof {name} {size}");
        assert!(layout.lines().any(|other| other == line), "{line}");
    }
}

#[test]
fn a_blank_says_its_size() {
    let blank: Grown = blank();
    assert_eq!(blank, Grown { size: 24, flags: 0, third: 0, fourth: 0 });
}
