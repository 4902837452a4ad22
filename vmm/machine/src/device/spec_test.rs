use super::*;

#[test]
fn names_paths_and_parameters_are_read() {
    assert_eq!("ndma".parse(), Ok(DeviceSpec::new("ndma")));
    let spec = DeviceSpec::new("/x/y.so").with("a", "1").with("b", "=");
    assert_eq!("/x/y.so,a=1,b==".parse(), Ok(spec));
}

#[test]
fn what_is_no_device_is_refused_by_name() {
    let parse = |text: &str| text.parse::<DeviceSpec>().expect_err(text);
    assert_eq!(parse(""), SpecError::NoName { text: String::new() });
    assert_eq!(parse(",a=1"), SpecError::NoName { text: ",a=1".into() });
    for param in ["a", "", "=1"] {
        let error = parse(&format!("ndma,{param}"));
        assert_eq!(error, SpecError::Param { device: "ndma".into(), param: param.into() });
    }
    let twice = parse("ndma,a=1,a=1");
    assert_eq!(twice, SpecError::Twice { device: "ndma".into(), key: "a".into() });
}

#[test]
fn keys_of_the_vmm_are_split_off() {
    let spec: DeviceSpec = "ndma,a=1,vm.name=nic,b=2,vm.space=x".parse().expect("good keys");
    assert_eq!(spec.params, [("a".into(), "1".into()), ("b".into(), "2".into())]);
    assert_eq!(spec.keys.to_string(), "vm.name=nic,vm.space=x");
    let error = "ndma,vm.nmae=nic".parse::<DeviceSpec>().expect_err("a wrong key");
    let error = error.to_string();
    assert!(error.contains("ndma") && error.contains("vm.nmae") && error.contains("vm.name,"));
}
