use super::*;

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes.get_mut(offset..offset + value.len()).expect("inside").copy_from_slice(value);
}

/// The bytes of a good descriptor.
pub(crate) fn good() -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    put(&mut bytes, offset_of!(abi::Descriptor, magic), b"DROGHER1");
    put(&mut bytes, offset_of!(abi::Descriptor, struct_size), &(LEN as u32).to_ne_bytes());
    put(&mut bytes, offset_of!(abi::Descriptor, abi_major), &1_u32.to_ne_bytes());
    put(&mut bytes, offset_of!(abi::Descriptor, id), b"org.example.a-b_1");
    put(&mut bytes, offset_of!(abi::Descriptor, name), "Ding \u{e9}".as_bytes());
    put(&mut bytes, offset_of!(abi::Descriptor, version), b"1.2");
    put(&mut bytes, offset_of!(abi::Descriptor, vendor), b"Example");
    put(&mut bytes, offset_of!(abi::Descriptor, licence), b"MIT");
    bytes
}

fn with(offset: usize, value: &[u8]) -> Result<Descriptor, DescriptorError> {
    let mut bytes = good();
    put(&mut bytes, offset, value);
    Descriptor::parse(&bytes)
}

#[test]
fn a_good_one() {
    let descriptor = Descriptor::parse(&good()).expect("good");
    let expected = Descriptor {
        id: "org.example.a-b_1".to_owned(),
        name: "Ding \u{e9}".to_owned(),
        version: "1.2".to_owned(),
        vendor: "Example".to_owned(),
        licence: "MIT".to_owned(),
        abi_major: 1,
        abi_minor: 0,
        aborts: false,
        experimental: false,
    };
    assert_eq!(descriptor, expected);
    // What lies behind belongs to others.
    let mut long = good();
    long.extend([0xFF; 100]);
    assert_eq!(Descriptor::parse(&long), Ok(expected));
}

#[test]
fn one_that_is_cut_anywhere() {
    let bytes = good();
    // The functions at its end are the linker's to fill in, and not looked at.
    for len in 0..offset_of!(abi::Descriptor, init) {
        let error = Descriptor::parse(bytes.get(..len).expect("shorter")).expect_err("cut");
        let expected = DescriptorError::TooSmall { found: len as u64, need: LEN as u64 };
        assert_eq!(error, expected, "{len}");
    }
}

#[test]
fn one_of_a_newer_minor_is_longer() {
    let mut bytes = good();
    put(&mut bytes, offset_of!(abi::Descriptor, struct_size), &(LEN as u32 + 64).to_ne_bytes());
    put(&mut bytes, offset_of!(abi::Descriptor, abi_minor), &7_u32.to_ne_bytes());
    assert_eq!(Descriptor::parse(&bytes).expect("append-only").abi_minor, 7);
}

#[test]
fn the_most_telling_error_comes_first() {
    let nothing = vec![0; LEN];
    assert_eq!(Descriptor::parse(&nothing), Err(DescriptorError::Magic { found: 0 }));
    let major = offset_of!(abi::Descriptor, abi_major);
    let mut bytes = good();
    put(&mut bytes, major, &2_u32.to_ne_bytes());
    // Another major may have another size, flags and texts.
    put(&mut bytes, offset_of!(abi::Descriptor, struct_size), &[0; 4]);
    put(&mut bytes, offset_of!(abi::Descriptor, flags), &[0xFF; 4]);
    put(&mut bytes, offset_of!(abi::Descriptor, id), &[0xFF; 64]);
    assert_eq!(Descriptor::parse(&bytes), Err(DescriptorError::Major { found: 2 }));
    put(&mut bytes, major, &1_u32.to_ne_bytes());
    let small = DescriptorError::TooSmall { found: 0, need: LEN as u64 };
    assert_eq!(Descriptor::parse(&bytes), Err(small));
}

#[test]
fn flags() {
    let at = offset_of!(abi::Descriptor, flags);
    for bit in 0..32 {
        let result = with(at, &(1_u32 << bit).to_ne_bytes());
        match bit {
            0 => assert!(result.expect("known").aborts),
            1 => assert!(result.expect("known").experimental),
            _ => {
                let value = 1 << bit;
                assert_eq!(result, Err(DescriptorError::Reserved { what: "flags", value }));
            }
        }
    }
    let at = offset_of!(abi::Descriptor, reserved);
    for byte in 0..32 {
        let error = with(at + byte, &[1]).expect_err("reserved");
        assert!(matches!(error, DescriptorError::Reserved { what: "fields", .. }), "{error}");
    }
}

#[test]
fn texts() {
    let fields = [
        ("id", offset_of!(abi::Descriptor, id), 64),
        ("name", offset_of!(abi::Descriptor, name), 64),
        ("version", offset_of!(abi::Descriptor, version), 32),
        ("vendor", offset_of!(abi::Descriptor, vendor), 64),
        ("licence", offset_of!(abi::Descriptor, licence), 64),
    ];
    for (field, at, size) in fields {
        let wrong = |value: &[u8]| match with(at, value) {
            Err(DescriptorError::Text { field: named, problem }) => {
                assert_eq!(named, field);
                problem
            }
            other => panic!("{field} {value:?}: {other:?}"),
        };
        assert_eq!(wrong(&vec![b'x'; size]), "is not ended");
        assert_eq!(wrong(&[0]), "is empty");
        assert_eq!(wrong(&[b'x', 0xFF, 0]), "is no UTF-8");
        assert_eq!(wrong(b"x\ny\0"), "has control characters");
        assert_eq!(wrong(b"x\x1b[2J\0"), "has control characters");
        let mut longest = vec![b'x'; size - 1];
        longest.push(0);
        with(at, &longest).expect("the longest text");
    }
    for id in ["A\0", "a b\0", "a/b\0", "\u{e9}\0"] {
        let error = with(offset_of!(abi::Descriptor, id), id.as_bytes()).expect_err("no id");
        assert!(matches!(error, DescriptorError::Text { field: "id", .. }), "{error}");
    }
}

#[test]
fn for_people() {
    let text = Descriptor::parse(&good()).expect("good").to_string();
    for words in ["org.example.a-b_1", "Ding \u{e9}", "interface: 1.0", "moves the device to ERROR"]
    {
        assert!(text.contains(words), "{text}");
    }
    assert!(!text.contains("experimental"), "{text}");
    let both = with(offset_of!(abi::Descriptor, flags), &3_u32.to_ne_bytes());
    let text = both.expect("known flags").to_string();
    assert!(text.contains("ends the process") && text.contains("experimental"), "{text}");
}
