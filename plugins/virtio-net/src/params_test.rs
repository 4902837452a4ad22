use super::{SPECS, Settings};
use drogher_plugin_sdk::Params;

fn settings(given: &[(&str, &str)]) -> Result<Settings, String> {
    let params = Params::new(SPECS, given).map_err(|failure| failure.text().to_owned())?;
    Settings::new(&params).map_err(|failure| failure.text().to_owned())
}

#[test]
fn values_are_checked() {
    let default = Settings { mac: [0x52, 0x54, 0, 0xd7, 0x0e, 1], queue_size: 256, log: false };
    assert_eq!(settings(&[]), Ok(default));
    let given = settings(&[("mac", "02:00:00:00:00:FF"), ("queue_size", "2"), ("log", "on")]);
    assert_eq!(given, Ok(Settings { mac: [2, 0, 0, 0, 0, 255], queue_size: 2, log: true }));
    for (name, value) in [
        ("mac", "01:00:00:00:00:01"),
        ("mac", "00:00:00:00:00:00"),
        ("mac", "02:00:00:00:00"),
        ("mac", "02:00:00:00:00:00:01"),
        ("mac", "02:00:00:00:00:+1"),
        ("mac", ""),
        ("queue_size", "3"),
        ("queue_size", "2048"),
        ("log", "yes"),
    ] {
        let error = settings(&[(name, value)]).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
}
