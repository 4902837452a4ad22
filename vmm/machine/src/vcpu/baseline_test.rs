use super::*;

fn entry(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
}

fn vendor(text: &[u8; 12]) -> [u32; 3] {
    let words = text.as_chunks::<4>().0;
    [words[0], words[1], words[2]].map(u32::from_le_bytes)
}

/// A host that has everything, and `own` of what is its own.
fn host(text: &[u8; 12], own: u32) -> Vec<kvm_cpuid_entry2> {
    let [ebx, edx, ecx] = vendor(text);
    let features = [1, 6, 7, 0xD, 0x4000_0001, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_001F];
    let all = |function| entry(function, [u32::MAX, own, u32::MAX, u32::MAX]);
    let mut leaves = vec![
        entry(0, [0x20, ebx, ecx, edx]),
        entry(4, [own; 4]),
        entry(0x4000_0000, [0x4000_0010, 1, 2, 3]),
        entry(0x8000_0000, [0x8000_0000 | own, ebx, ecx, edx]),
    ];
    leaves.extend(features.map(all));
    leaves.extend((0x8000_0002..=0x8000_0006).map(|function| entry(function, [own; 4])));
    leaves
}

#[test]
fn hosts_of_a_vendor_are_one_model() {
    for text in [b"GenuineIntel", b"AuthenticAMD"] {
        let (one, mut other) = (host(text, 0x1f), host(text, 0x33));
        other.retain(|entry| !matches!(entry.function, 4 | 7 | 0xD | 0x8000_001F));
        assert_eq!(baseline(&one).unwrap(), baseline(&other).unwrap());
    }
    let (intel, amd) = (baseline(&host(b"GenuineIntel", 1)), baseline(&host(b"AuthenticAMD", 1)));
    assert_ne!(intel.unwrap(), amd.unwrap());
}

#[test]
fn it_is_x86_64_v2_and_no_more() {
    let leaves = baseline(&host(b"AuthenticAMD", 0xFFFF)).unwrap();
    let of = |function| leaves.iter().find(|entry| entry.function == function);
    let one = of(1).unwrap();
    // AVX, XSAVE, AES, FMA, F16C, MONITOR, RDRAND, PCID.
    let beyond = 1 << 28 | 1 << 26 | 1 << 25 | 1 << 12 | 1 << 29 | 1 << 3 | 1 << 30 | 1 << 17;
    assert_eq!(one.ecx & beyond, 0);
    assert_eq!(one.ecx & ONE_ECX, ONE_ECX);
    assert_eq!(one.edx & (1 << 18 | 1 << 21 | 1 << 22), 0, "serial number, debug store, thermal");
    assert!(of(7).is_none() && of(0xD).is_none() && of(4).is_none());
    assert_eq!(of(0x8000_0001).unwrap().ecx, 1);
    let parts = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(|leaf| of(leaf).unwrap());
    let bytes = parts.iter().flat_map(|e| [e.eax, e.ebx, e.ecx, e.edx]).flat_map(u32::to_le_bytes);
    assert_eq!(bytes.collect::<Vec<_>>(), NAME);
}

#[test]
fn a_host_with_less_is_told_what_it_lacks() {
    let mut poor = host(b"GenuineIntel", 0);
    for entry in &mut poor {
        if entry.function == 1 {
            entry.ecx &= !(1 << 20 | 1 << 28);
        }
    }
    let error = baseline(&poor).unwrap_err();
    assert_eq!(error, NotBaseline { leaf: 1, register: "ECX", missing: 1 << 20 });
    assert!(error.to_string().contains("0x100000 of register ECX of CPUID leaf 0x1"), "{error}");
}
