use super::*;

const SPECS: &[ParamSpec] = &[
    ParamSpec::new("name", ParamKind::Text, "x", "any text"),
    ParamSpec::new("size", ParamKind::Number { min: 2, max: 9 }, "4", "a number").compat(),
    ParamSpec::new("wide", ParamKind::Bool, "false", "a flag").runtime(),
];

#[test]
fn defaults_and_what_is_given() {
    let params = Params::new(SPECS, &[("size", "9")]).expect("good");
    assert_eq!(params.text("name").expect("there"), "x");
    assert_eq!(params.number("size").expect("there"), 9);
    assert!(!params.flag("wide").expect("there"));
    assert!(Params::new(SPECS, &[("wide", "true")]).expect("good").flag("wide").expect("there"));
    assert_eq!(params.text("none").expect_err("none").kind(), FailureKind::NotFound);
    assert_eq!(params.number("name").expect_err("text").kind(), FailureKind::Invalid);
}

#[test]
fn wrong_values_name_the_parameter() {
    for value in ["1", "10", "", "+4", "-4", "4.0"] {
        let error = Params::new(SPECS, &[("size", value)]).expect_err(value);
        assert!(error.text().contains("size=") && error.text().contains("from 2 to 9"), "{error}");
    }
    let error = Params::new(SPECS, &[("wide", "yes")]).expect_err("no flag");
    assert!(error.text().contains("wide=yes"), "{error}");
    let error = Params::new(SPECS, &[("large", "1")]).expect_err("unknown");
    assert!(error.text().contains("there are: name, size, wide"), "{error}");
}

#[test]
fn a_default_that_is_wrong_is_found() {
    const WRONG: &[ParamSpec] =
        &[ParamSpec::new("size", ParamKind::Number { min: 2, max: 9 }, "1", "too small")];
    Params::new(WRONG, &[]).expect_err("the default is out of bounds");
}

#[test]
fn flags_of_the_interface() {
    let flags: Vec<_> = SPECS.iter().map(ParamSpec::flags).collect();
    assert_eq!(flags, [0, abi::DROGHER_PARAM_COMPAT, abi::DROGHER_PARAM_RUNTIME]);
}
