//! The fuzzer's driver, with bytes that are always the same: so that it cannot rot.
#![allow(unsafe_code, reason = "it calls the host's C functions as a plugin does")]

use super::bed::compile;

#[path = "../../fuzz/driver.rs"]
mod driver;

use super::{bed, tracked};

#[test]
fn calls_made_from_bytes_do_what_the_header_says() {
    let Some(built) = compile("hostile-c/tracked.c", "tracked", &[]) else { return };
    let mut driver = driver::Driver::new(&built.file);
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    for _ in 0..3000 {
        let input: [u8; 256] = std::array::from_fn(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 32) as u8
        });
        driver.run(&input);
    }
}
