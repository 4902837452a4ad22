use super::*;
use crate::descriptor::tests::good;

const NAMES: &[u8] = b"\0drogher_plugin_entry\0other\0";
const SECTIONS: u64 = 64 + 56;
const HEADERS: u64 = SECTIONS + 4 * 64;
const SYMBOLS: u64 = HEADERS + 32;
const DATA: u64 = SYMBOLS + 3 * 24;
/// Where the loaded part is to be in memory: not where it is in the file.
const ADDRESS: u64 = 0x1_0000;

/// A shared object with nothing in it but a descriptor: file header, one loaded segment, four section
/// headers (none, names, symbols, data), names, symbols, the descriptor.
fn file() -> Vec<u8> {
    let descriptor = good();
    let len = DATA + descriptor.len() as u64;
    let mut out = vec![0x7F, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut put = |width: usize, values: &[u64]| {
        for value in values {
            out.extend(value.to_le_bytes().iter().take(width));
        }
    };
    put(2, &[elf::ET_DYN.into(), MACHINE.0.into()]);
    put(4, &[1]);
    // Entry, program headers, section headers.
    put(8, &[0, 64, SECTIONS]);
    put(4, &[0]);
    put(2, &[64, 56, 1, 64, 4, 1]);
    put(4, &[elf::PT_LOAD.into(), 6]);
    put(8, &[0, ADDRESS, ADDRESS, len, len, 4096]);
    put(8, &[0; 8]);
    // Name, type; flags, address, offset, size; link, info; alignment, entry size.
    put(4, &[0, elf::SHT_STRTAB.into()]);
    put(8, &[0, 0, HEADERS, NAMES.len() as u64]);
    put(4, &[0, 0]);
    put(8, &[1, 0]);
    put(4, &[0, elf::SHT_DYNSYM.into()]);
    put(8, &[0, 0, SYMBOLS, 3 * 24]);
    put(4, &[1, 1]);
    put(8, &[8, 24]);
    put(4, &[0, elf::SHT_PROGBITS.into()]);
    put(8, &[0, ADDRESS + DATA, DATA, descriptor.len() as u64]);
    put(4, &[0, 0]);
    put(8, &[8, 0]);
    out.extend(NAMES);
    out.resize(SYMBOLS as usize, 0);
    let mut symbol = |name: u32, value: u64| {
        out.extend(name.to_le_bytes());
        // A global object in section 3.
        out.extend([0x11, 0, 3, 0]);
        out.extend(value.to_le_bytes());
        out.extend(400_u64.to_le_bytes());
    };
    symbol(0, 0);
    symbol(22, ADDRESS);
    symbol(1, ADDRESS + DATA);
    assert_eq!(out.len() as u64, DATA);
    out.extend(descriptor);
    out
}

fn look(data: &[u8]) -> Result<Descriptor, LoadError> {
    let path = Path::new("x.so");
    Descriptor::parse(entry(path, data)?)
        .map_err(|source| LoadError::Descriptor { path: path.to_owned(), source })
}

fn set(at: usize, value: &[u8]) -> Result<Descriptor, LoadError> {
    let mut data = file();
    data.get_mut(at..at + value.len()).expect("inside").copy_from_slice(value);
    look(&data)
}

/// xorshift64: random bytes that can be had again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

#[test]
fn a_good_file() {
    assert_eq!(look(&file()).expect("good").id, "org.example.a-b_1");
}

#[test]
fn a_file_that_is_cut_anywhere() {
    let data = file();
    // What the linker fills in is not needed for a look.
    let enough = data.len() - 4 * size_of::<usize>();
    for len in 0..enough {
        let error = look(data.get(..len).expect("shorter")).expect_err("cut");
        let told = matches!(error, LoadError::NotElf { .. } | LoadError::Descriptor { .. });
        assert!(told, "cut at {len}: {error}");
    }
}

#[test]
fn fields_that_lie() {
    let name = |error: &LoadError| error.to_string();
    let not_elf = |at: usize, value: &[u8]| match set(at, value) {
        Err(LoadError::NotElf { what, .. }) => what,
        other => panic!("{at} {value:?}: {other:?}"),
    };
    not_elf(0, b"x");
    assert!(not_elf(4, &[1]).contains("64-bit"), "32-bit");
    assert!(not_elf(5, &[2]).contains("little endian"), "big endian");
    assert!(not_elf(16, &elf::ET_EXEC.to_le_bytes()).contains("program or an object file"));
    assert!(not_elf(16, &elf::ET_REL.to_le_bytes()).contains("program or an object file"));
    let error = set(18, &elf::EM_S390.to_le_bytes()).expect_err("another machine");
    assert!(name(&error).contains("ELF machine 22"), "{error}");
    // Headers at the end of the address space.
    for at in [32, 40] {
        for value in [u64::MAX, u64::MAX - 63, 1 << 63, 1 << 32] {
            not_elf(at, &value.to_le_bytes());
        }
    }
    // A segment, a name, a symbol that reach beyond everything.
    let segment = 64;
    for value in [u64::MAX, u64::MAX - DATA, 1 << 40] {
        let what = not_elf(segment + 32, &value.to_le_bytes());
        assert!(what.contains("in no loaded part"), "{what}");
    }
    let symbol = SYMBOLS as usize + 2 * 24;
    for value in [0, u64::MAX, ADDRESS + (1 << 40), ADDRESS - 1] {
        let what = not_elf(symbol + 8, &value.to_le_bytes());
        assert!(what.contains("in no loaded part"), "{what}");
    }
    for value in [0_u32, 1000, u32::MAX] {
        let error = set(symbol, &value.to_le_bytes()).expect_err("no name");
        assert!(matches!(error, LoadError::NoSymbol { .. }), "{error}");
    }
    let error = set(symbol + 6, &[0, 0]).expect_err("undefined");
    assert!(matches!(error, LoadError::NoSymbol { .. }), "{error}");
}

#[test]
fn a_descriptor_among_the_zeros() {
    // The section that it is in takes no room in the file.
    let section = SECTIONS as usize + 3 * 64;
    let error = set(section + 4, &elf::SHT_NOBITS.to_le_bytes()).expect_err("all zeros");
    let LoadError::Descriptor { source, .. } = error else { panic!("{error}") };
    assert_eq!(source, DescriptorError::Magic { found: 0 });
}

#[test]
fn random_bytes() {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for _ in 0..20_000 {
        let len = random.below(1000);
        let mut data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        look(&data).expect_err("noise");
        // Far enough that something is read: the beginning of a good file before it.
        let whole = file();
        let kept = random.below(DATA as usize);
        data.splice(0..0, whole.get(..kept).expect("shorter").iter().copied());
        look(&data).expect_err("noise");
    }
}

#[test]
fn random_faults() {
    let mut random = Random(0x2545_F491_4F6C_DD1D);
    let whole = file();
    let mut taken = 0;
    for _ in 0..100_000 {
        let mut data = whole.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(data.len());
            let byte = [0, 0xFF, 0x80, random.next() as u8];
            let byte = byte.get(random.below(4)).copied().unwrap_or(0);
            *data.get_mut(at).expect("inside") = byte;
        }
        // What is taken is a descriptor that could be: its faults lie where nobody looks, or in a text.
        if let Ok(descriptor) = look(&data) {
            taken += 1;
            assert!(descriptor.abi_major == 1 && !descriptor.id.is_empty());
            assert!(descriptor.id.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }
    assert!((1..100_000).contains(&taken), "{taken}: these faults test nothing");
}

#[test]
fn a_large_file_is_not_read_whole() {
    fn bytes_read() -> u64 {
        let io = std::fs::read_to_string("/proc/thread-self/io").expect("procfs");
        let line = io.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("a count");
        line.parse().expect("a number")
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("large.so");
    std::fs::write(&path, file()).expect("writes");
    // As debug information does.
    let large = OpenOptions::new().write(true).open(&path).expect("opens");
    large.set_len(64 << 20).expect("grows");
    let before = bytes_read();
    inspect(&path).expect("a plugin");
    let read = bytes_read() - before;
    assert!(read < 1 << 20, "{read} bytes were read");
}
