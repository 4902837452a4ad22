use super::*;

#[test]
fn sizes_have_units_and_bounds() {
    assert_eq!(parse_size("4096").unwrap(), 4096);
    assert_eq!(parse_size("64K").unwrap(), 64 << 10);
    assert_eq!(parse_size("256M").unwrap(), 256 << 20);
    assert_eq!(parse_size("2 GiB").unwrap(), 2 << 30);
    for bad in ["", "M", "-1M", "1T", "99999999999999999999", "18446744073709551615G"] {
        assert!(parse_size(bad).unwrap_err().to_string().contains("is no size"), "{bad}");
    }
}

#[test]
fn flags_win_over_the_file_and_devices_add_up() {
    let file: Partial = toml::from_str(
        "memory = '64M'\ncpus = 2\ncpu = 'baseline'\ndevices = ['ndma']\nplugin-path = ['/a']",
    )
    .unwrap();
    let flags =
        Partial { memory: Some("32M".into()), devices: vec!["x.so".into()], ..Partial::default() };
    let config = file.overridden_by(flags).complete().unwrap();
    assert_eq!((config.memory_bytes, config.cpus), (32 << 20, 2));
    assert_eq!(config.cpu.to_string(), "baseline");
    assert_eq!(
        config.devices.iter().map(|d| &d.name_or_path).collect::<Vec<_>>(),
        ["ndma", "x.so"]
    );
    assert_eq!(config.kernel, Kernel::Probe);
}

#[test]
fn tracking_is_a_table_of_its_own_and_flags_win_field_by_field() {
    let text = "[tracking]\ntracker = 'fault'\npage = '64K'\nrequire = 'exact'\nearly-ndma = ['a']";
    let file: Partial = toml::from_str(text).unwrap();
    let flags: Partial = toml::from_str("[tracking]\npage = '4K'\nearly-ndma = ['b']").unwrap();
    let tracking = file.overridden_by(flags).complete().unwrap().tracking;
    let whole: Partial =
        toml::from_str(&text.replace("64K", "4K").replace("'a'", "'a', 'b'")).unwrap();
    assert_eq!(tracking, whole.tracking);
    let quirk = "[[tracking.quirks]]\nplugin = 'a'\nprovider = 'fault'\nreason = 'slow'";
    let quirks = toml::from_str::<Partial>(quirk).unwrap().tracking.quirks;
    assert_eq!((quirks.len(), quirks[0].reason.as_str()), (1, "slow"));
    for (wrong, word) in [("tracker = 'magic'", "magic"), ("page = '3K'", "3072"), ("x = 1", "x")] {
        let error = toml::from_str::<Partial>(&format!("[tracking]\n{wrong}")).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
    let keys = Partial { devices: vec!["ndma,vm.spcae=a".into()], ..Partial::default() };
    let error = keys.complete().unwrap_err().to_string();
    assert!(error.contains("vm.space"), "{error}");
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let path = std::env::temp_dir().join(format!("drogher-config-{}.toml", std::process::id()));
    std::fs::write(&path, "cpus = 1\nmemroy = '1G'\n").unwrap();
    let error = Partial::from_file(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("memroy") && cause.contains("line 2"), "{cause}");
}

#[test]
fn values_out_of_range_are_refused() {
    let memory = |text: &str| {
        Partial { memory: Some(text.into()), ..Partial::default() }.complete().unwrap_err()
    };
    assert!(matches!(memory("1M"), ConfigError::Memory(_)));
    assert!(matches!(memory("33554433"), ConfigError::Memory(_)));
    let cpus = Partial { cpus: Some(9), ..Partial::default() }.complete().unwrap_err();
    assert!(cpus.to_string().contains('9'), "{cpus}");
}
