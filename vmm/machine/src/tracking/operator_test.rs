//! What the operator's words are about.

use drogher_iommu_types::Rid;
use drogher_tracking::{Choice, DeviceCaps, Dma, Pins, ProviderKind, Wish};

use super::super::plan::Subject;
use super::Operator;

fn device(slot: u16, label: Option<&str>, plugin: &str) -> Subject {
    let rid = Rid(slot << 3);
    let caps = DeviceCaps {
        rid,
        label: label.map_or_else(|| rid.to_string(), str::to_owned),
        plugin: plugin.into(),
        version: "1".into(),
        dma: Dma::ThroughIommu,
        log: None,
        pins: Pins::default(),
        ndma: true,
        migratable: true,
        preference: None,
    };
    Subject { caps, space: "main".into(), choice: Choice::default() }
}

/// What a rule about `asked` says of each device.
fn about(asked: &str, devices: &[Subject]) -> Vec<bool> {
    let mut operator = Operator::default();
    let fault = Choice { provider: Some(Wish::from(ProviderKind::Fault)), ..Choice::default() };
    operator.say(asked, fault);
    let policy = operator.policy(devices);
    devices.iter().map(|device| policy.of(&device.caps) == fault).collect()
}

#[test]
fn a_plugin_is_called_by_its_id_or_the_last_part_of_it() {
    let devices = [device(1, None, "org.a.ndma"), device(2, None, "org.a.net")];
    assert_eq!(about("org.a.ndma", &devices), [true, false]);
    assert_eq!(about("ndma", &devices), [true, false]);
    assert_eq!(about("00:02.0", &devices), [false, true]);
    assert_eq!(about("dma", &devices), [false, false]);
}

#[test]
fn a_devices_name_comes_before_a_plugins() {
    let devices = [device(1, None, "org.a.ndma"), device(2, Some("ndma"), "org.a.ndma")];
    assert_eq!(about("ndma", &devices), [false, true]);
    assert_eq!(about("org.a.ndma", &devices), [true, true]);
}

#[test]
fn a_short_name_of_two_plugins_is_nobodys() {
    let devices = [device(1, None, "org.a.net"), device(2, None, "org.b.net")];
    assert_eq!(about("net", &devices), [false, false]);
}
