use super::*;

const SMAPS: &str = "\
00400000-00401000 r--p 00000000 fe:00 123   /usr/bin/vmm
Size:                  4 kB
KernelPageSize:        4 kB
Rss:                   4 kB
Pss:                   2 kB
Pss_Dirty:             1 kB
Private_Dirty:         0 kB
VmFlags: rd mr mw me
7f0000000000-7f0010000000 rw-s 00000000 00:01 9   /memfd:guest-ram (deleted)
Size:             262144 kB
Rss:               20000 kB
Pss:               20000 kB
Private_Dirty:     20000 kB
VmFlags: rd wr sh
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0   [stack]
Size:                132 kB
Rss:                  20 kB
Pss:                  20 kB
Private_Dirty:        16 kB
";

#[test]
fn guest_ram_is_left_out_and_nothing_else() {
    let usage = besides_ram(SMAPS, 256 << 10).expect("it is there");
    assert_eq!(usage, Usage { rss: 24, pss: 22, private_dirty: 16 });
}

#[test]
fn guest_ram_that_cannot_be_found_is_an_error() {
    assert!(besides_ram(SMAPS, 512 << 10).is_err());
}
