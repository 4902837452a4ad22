//! What a plugin may call, in any order and with any numbers: see `../driver.rs`.
#![no_main]
#![allow(dead_code, reason = "the helpers are the tests' too")]

#[path = "../../tests/plugins/bed.rs"]
mod bed;
#[path = "../driver.rs"]
mod driver;
#[path = "../../tests/plugins/tracked.rs"]
mod tracked;

use std::cell::RefCell;

thread_local! {
    static DRIVER: RefCell<driver::Driver> = RefCell::new({
        let built = bed::compile("hostile-c/tracked.c", "tracked", &[]).expect("a C compiler");
        let driver = driver::Driver::new(&built.file);
        // It is loaded, and stays so.
        drop(built);
        driver
    });
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| DRIVER.with_borrow_mut(|driver| driver.run(data)));
