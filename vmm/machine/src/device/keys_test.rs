use drogher_tracking::{TrackingPageSize, Wish};

use super::*;

fn keys(text: &str) -> Result<DeviceKeys, KeyError> {
    let mut keys = DeviceKeys::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').expect("key=value");
        keys.set(key, value)?;
    }
    Ok(keys)
}

#[test]
fn every_key_is_read_and_written_back() {
    let text = "vm.name=nic0,vm.space=a,vm.iommu=off,vm.tracker=fault,vm.tracking_page=64K,\
                vm.require=exact,vm.ndma=early,vm.peers=b+c_1";
    let all = keys(text).expect("good keys");
    assert_eq!((all.space(), all.is_raw()), ("a", true));
    assert_eq!(all.tracking.provider, Some(Wish::Fault));
    assert_eq!(all.tracking.page_size, Some(TrackingPageSize::K64));
    assert_eq!(all.tracking.require_exact, Some(true));
    assert_eq!(all.tracking.early_ndma, Some(EarlyNdma::On));
    assert_eq!(all.peers, ["b", "c_1"]);
    assert_eq!(all.to_string(), text);
    assert_eq!(keys("vm.tracking_page=65536").unwrap().effective("vm.tracking_page"), "64K");
}

#[test]
fn wires_are_named_by_port() {
    let text = "vm.pcap=/tmp/a.pcap,vm.net=loopback,vm.net7=unix:/tmp/b";
    let keys = keys(&text.replace("vm.net=", "vm.net0=")).expect("good keys");
    assert_eq!(keys.to_string(), text);
    assert_eq!((keys.wire(0), keys.wire(1)), (WireSpec::Loopback, WireSpec::None));
    assert_eq!(
        (keys.effective("vm.net"), keys.effective("vm.net1")),
        ("loopback".into(), "none".into())
    );
    assert_eq!((keys.net_key_beyond(1), keys.net_key_beyond(8)), (Some("vm.net7"), None));
    let paths: Vec<_> = keys.paths().into_iter().map(|(key, _)| key).collect();
    assert_eq!(paths, ["vm.pcap", "vm.net7"]);
    assert_eq!(super::DeviceKeys::default().net_key_beyond(0), None);
}

#[test]
fn what_is_not_said_has_its_default() {
    let none = DeviceKeys::default();
    assert_eq!((none.space(), none.is_raw()), (MAIN_SPACE, false));
    assert_eq!(none.entries(), []);
    let default = |key| none.effective(key);
    assert_eq!(default("vm.space"), "main");
    assert_eq!((default("vm.iommu"), default("vm.ndma")), ("on".into(), "late".into()));
}

#[test]
fn what_the_vmm_does_not_know_is_refused_with_what_it_does() {
    let error = keys("vm.color=blue").unwrap_err().to_string();
    assert!(error.contains("vm.color") && error.contains("vm.tracking_page"), "{error}");
    for (text, word) in [
        ("vm.tracker=magic", "iommu, device, pinned, fault or all"),
        ("vm.tracking_page=5000", "no power of two"),
        ("vm.tracking_page=4M", "4K..=2M"),
        ("vm.require=some", "exact or any"),
        ("vm.ndma=soon", "early, untracked or late"),
        ("vm.iommu=maybe", "on or off"),
        ("vm.name=", "a name is"),
        ("vm.space=00:01.0", "a name is"),
        ("vm.peers=a++b", "a name is"),
        ("vm.net=lopback", "is no wire; use none, loopback, unix:PATH or tap:NAME"),
        ("vm.net=tap:", "tap: names no interface"),
        ("vm.net8=none", "There is no key"),
        ("vm.pcap=", "the name of a file"),
        ("vm.net=none,vm.net0=none", "vm.net is given twice"),
        ("vm.name=a,vm.name=b", "vm.name is given twice"),
        ("vm.tracker=all,vm.tracker=iommu", "vm.tracker is given twice"),
        ("vm.peers=a,vm.peers=b", "vm.peers is given twice"),
    ] {
        let error = keys(text).expect_err(text).to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
}
