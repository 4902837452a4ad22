use super::*;

#[test]
fn ram_beyond_the_models_addresses_is_refused() {
    let check = |gib: u64| {
        let end = crate::memory::split(gib << 30).last().map_or(0, |range| range.pages().end);
        check_reach(end, gib << 30, 39, CpuKind::Baseline)
    };
    // One GiB of addresses is not RAM.
    assert!(check(511).is_ok());
    let error = check(512).unwrap_err().to_string();
    assert!(
        error.contains("512 GiB") && error.contains("39 bits") && error.contains("baseline"),
        "{error}"
    );
}
