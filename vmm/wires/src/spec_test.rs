use super::WireSpec;

#[test]
fn a_wire_is_what_it_is_called() {
    for text in ["none", "loopback", "unix:/tmp/wire", "unix:a:b", "tap:drogher-tap.15"] {
        assert_eq!(text.parse::<WireSpec>().unwrap().to_string(), text);
    }
    for (text, part) in [
        ("", "is no wire"),
        ("loop", "is no wire"),
        ("unix", "is no wire"),
        ("unix:", "names no socket"),
        ("tap:", "names no interface"),
        ("tap:a/b", "names no interface"),
        ("tap:tap%d", "names no interface"),
        ("tap:sixteen-letters!", "at most 15 bytes"),
    ] {
        let error = text.parse::<WireSpec>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    let long = format!("unix:/{}", "x".repeat(100));
    assert!(long.parse::<WireSpec>().is_err());
}
