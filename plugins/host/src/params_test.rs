use super::*;

fn raw(name: &str, kind: u32, default: &str) -> RawParam {
    RawParam {
        kind,
        flags: 0,
        reserved: 0,
        name: name.as_bytes().to_vec(),
        default: default.as_bytes().to_vec(),
        doc: b"what it is".to_vec(),
        min: 0,
        max: 0,
    }
}

fn number(min: u64, max: u64, default: &str) -> Result<ParamInfo, ParamError> {
    ParamInfo::new(0, &RawParam { min, max, ..raw("n", abi::DROGHER_PARAM_U64, default) }, &[])
}

fn wrong(raw: &RawParam) -> String {
    match ParamInfo::new(7, raw, &[]) {
        Err(ParamError::Description { number: 7, what }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn descriptions() {
    let text = ParamInfo::new(0, &raw("a_1", abi::DROGHER_PARAM_TEXT, ""), &[]).expect("good");
    assert_eq!((text.name.as_str(), text.kind), ("a_1", ParamKind::Text));
    assert!(!text.runtime && !text.compat && text.doc == "what it is");
    let flags = abi::DROGHER_PARAM_RUNTIME | abi::DROGHER_PARAM_COMPAT;
    let both = RawParam { flags, ..raw("b", abi::DROGHER_PARAM_BOOL, "true") };
    let both = ParamInfo::new(1, &both, std::slice::from_ref(&text)).expect("good");
    assert!(both.runtime && both.compat && both.kind == ParamKind::Bool);
    let again = ParamInfo::new(2, &raw("a_1", abi::DROGHER_PARAM_TEXT, ""), &[text]);
    assert!(again.expect_err("twice").to_string().contains("a_1 was there before"));
}

#[test]
fn impossible_descriptions() {
    let text = abi::DROGHER_PARAM_TEXT;
    let long = "x".repeat(65);
    for name in ["", "Big", "a-b", "a b", "a=b", "a,b", "\u{e9}", &long] {
        assert!(wrong(&raw(name, text, "")).contains("is not 1 to 64 of a-z 0-9 _"), "{name}");
    }
    assert!(wrong(&RawParam { name: vec![0xFF], ..raw("x", text, "") }).contains("no UTF-8"));
    assert!(wrong(&RawParam { doc: b"a\nb".to_vec(), ..raw("x", text, "") }).contains("control"));
    assert!(wrong(&RawParam { doc: vec![b'x'; 4097], ..raw("x", text, "") }).contains("too long"));
    assert!(wrong(&RawParam { flags: 4, ..raw("x", text, "") }).contains("reserved"));
    assert!(wrong(&RawParam { reserved: 1, ..raw("x", text, "") }).contains("reserved"));
    for kind in [0, 4, u32::MAX] {
        assert!(wrong(&raw("x", kind, "")).contains("does not exist"), "{kind}");
    }
    assert!(wrong(&raw("x", abi::DROGHER_PARAM_BOOL, "")).contains("must be true or false"));
    assert!(number(5, 4, "5").is_err(), "no number is between these");
    assert!(number(2, 4, "5").is_err());
}

#[test]
fn numbers() {
    let info = number(3, 10, "4").expect("good");
    for good in ["3", "10", "007"] {
        info.check(good).expect(good);
    }
    for bad in
        ["2", "11", "", "+4", "-4", " 4", "4 ", "0x4", "4.0", "18446744073709551616", "\u{664}"]
    {
        let error = info.check(bad).expect_err(bad).to_string();
        assert!(error.contains("must be a number from 3 to 10"), "{error}");
    }
    // Both bounds 0: none.
    let info = number(0, 0, "0").expect("good");
    info.check("18446744073709551615").expect("the largest");
    info.check("18446744073709551616").expect_err("larger than that");
    let info = number(0, 5, "0").expect("good");
    info.check("6").expect_err("a lower bound of 0 is none, the upper one holds");
}

#[test]
fn flags_and_texts() {
    let info = ParamInfo::new(0, &raw("b", abi::DROGHER_PARAM_BOOL, "false"), &[]).expect("good");
    info.check("true").expect("true");
    for bad in ["", "True", "1", "yes"] {
        info.check(bad).expect_err(bad);
    }
    let info = ParamInfo::new(0, &raw("t", abi::DROGHER_PARAM_TEXT, ""), &[]).expect("good");
    let longest = "x".repeat(4096);
    for good in ["", "any \u{e9} =,", &longest] {
        info.check(good).expect("text");
    }
    for bad in ["two\nlines", "\u{1b}", &(longest + "x")] {
        info.check(bad).expect_err("no text");
    }
}

#[test]
fn what_is_given() {
    let infos = [
        ParamInfo::new(0, &raw("a", abi::DROGHER_PARAM_TEXT, ""), &[]).expect("good"),
        number(1, 9, "1").expect("good"),
    ];
    let own = |given: &[(&str, &str)]| -> Vec<(String, String)> {
        given.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    check_all(&infos, &[]).expect("all have defaults");
    check_all(&infos, &own(&[("n", "9"), ("a", "x")])).expect("any order");
    let unknown = check_all(&infos, &own(&[("m", "1")])).expect_err("unknown");
    let known = ParamError::Unknown { name: "m".to_owned(), known: "a, n".to_owned() };
    assert_eq!(unknown, known);
    let twice = check_all(&infos, &own(&[("n", "1"), ("a", ""), ("n", "1")]));
    assert_eq!(twice, Err(ParamError::Twice { name: "n".to_owned() }));
    let value = check_all(&infos, &own(&[("n", "0")]));
    assert!(matches!(value, Err(ParamError::Value { .. })), "{value:?}");
    assert!(find(&[], "x").expect_err("none").to_string().ends_with("there are: none"));
}
