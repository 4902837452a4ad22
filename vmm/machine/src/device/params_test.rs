use super::super::testing::{ALL, Rig};

#[test]
fn parameters_are_listed_and_set_by_whatever_names_one_device() {
    let rig = Rig::with_keys(&[ALL, ALL], &["vm.name=nic"]);
    for (asked, value) in [("nic", "red"), ("00:01.0", "green"), ("00:02.0", "grey")] {
        rig.set.set_param(asked, "colour", value).expect(asked);
    }
    let all = rig.set.params();
    let values: Vec<_> = all.iter().map(|device| device.params[0].value.as_str()).collect();
    assert_eq!(values, ["green", "grey"]);
    assert_eq!((all[0].name.as_deref(), all[0].slot.as_str()), (Some("nic"), "00:01.0"));
    let param = &all[0].params[0];
    assert_eq!((param.kind.as_str(), param.default.as_str()), ("text", "blue"));
    assert!(param.runtime && !param.compat && param.doc.contains("looks"));
}

#[test]
fn the_only_device_of_a_plugin_is_named_by_it() {
    let rig = Rig::with_keys(&[ALL], &["vm.name=nic"]);
    for (asked, value) in [("test.fake", "red"), ("fake", "green")] {
        rig.set.set_param(asked, "colour", value).expect(asked);
        assert_eq!(rig.set.params()[0].params[0].value, value);
    }
    let error = rig.set.set_param("ake", "colour", "red").expect_err("no name").to_string();
    assert!(error.ends_with("there are: 00:01.0 (nic, test.fake)"), "{error}");
}

#[test]
fn what_cannot_be_set_is_refused_by_name() {
    let rig = Rig::new(&[ALL, ALL]);
    let set = |device, name, value| {
        let error = rig.set.set_param(device, name, value).expect_err("it is wrong");
        drogher_migrate::error::chain(&error)
    };
    let error = set("nic", "colour", "red");
    assert!(error.contains("nic") && error.contains("00:02.0 (test.fake)"), "{error}");
    for plugin in ["test.fake", "fake"] {
        let error = set(plugin, "colour", "red");
        assert!(error.contains("any of 00:01.0 (test.fake), 00:02.0"), "{error}");
    }
    let error = set("00:01.0", "color", "red");
    assert!(error.starts_with("00:01.0 test.fake") && error.contains("color"), "{error}");
    assert!(set("00:01.0", "colour", "r\ned").contains("one line"));
    assert_eq!(rig.set.params()[0].params[0].value, "blue");
}

#[test]
fn a_value_that_was_set_is_described_to_a_destination() {
    let rig = Rig::with_keys(&[ALL], &["vm.name=nic,vm.tracker=fault"]);
    rig.set.set_param("nic", "colour", "red").expect("it can be set");
    let config = &rig.set.describe().expect("described")[0];
    let params: Vec<_> = config.params.iter().map(|p| (p.key.as_str(), p.value.as_str())).collect();
    assert_eq!(params, [("colour", "red"), ("vm.name", "nic"), ("vm.tracker", "fault")]);
    let keys = super::super::keys_of(config).expect("known keys");
    assert_eq!(keys.to_string(), "vm.name=nic,vm.tracker=fault");
}
