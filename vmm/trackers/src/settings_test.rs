use super::*;

#[test]
fn the_grids_that_there_are_can_be_measured() {
    Settings::default().check().unwrap();
    Settings::quick().check().unwrap();
    let cells = Settings::default().working_sets.len() * Settings::default().rates.len();
    assert!(cells >= 10, "or nine of ten mean nothing");
}

#[test]
fn pins_and_everything_mapped_are_measured_once() {
    let texts: Vec<String> = Settings::quick().choices().iter().map(ToString::to_string).collect();
    let expected = [
        "iommu 4K",
        "iommu 64K",
        "device 4K",
        "device 64K",
        "fault 4K",
        "fault 64K",
        "pinned 4K",
        "all 4K",
    ];
    assert_eq!(texts, expected);
    // They have no other page size, whatever is asked for.
    let large = Settings {
        providers: vec![ProviderKind::All],
        page_sizes: vec![TrackingPageSize::M2],
        ..Settings::quick()
    };
    assert_eq!(large.choices()[0].page_size, TrackingPageSize::K4);
}

#[test]
fn each_wrong_setting_is_named() {
    let quick = Settings::quick;
    let memory = quick().memory;
    for (settings, error) in [
        (Settings { memory: 3 << 20, ..quick() }, SettingError::Memory(3 << 20)),
        (Settings { memory: (8 << 20) + 4096, ..quick() }, SettingError::Memory((8 << 20) + 4096)),
        (Settings { memory: 8 << 30, ..quick() }, SettingError::Memory(8 << 30)),
        (
            Settings { working_sets: vec![4096, 32 << 20], ..quick() },
            SettingError::WorkingSet { bytes: 32 << 20, memory },
        ),
        (
            Settings { working_sets: vec![5000], ..quick() },
            SettingError::WorkingSet { bytes: 5000, memory },
        ),
        (
            Settings { working_sets: vec![0], ..quick() },
            SettingError::WorkingSet { bytes: 0, memory },
        ),
        (Settings { rates: vec![99], ..quick() }, SettingError::Rate(99)),
        (Settings { rates: vec![10_000_001], ..quick() }, SettingError::Rate(10_000_001)),
        (Settings { rates: vec![], ..quick() }, SettingError::None("rate")),
        (Settings { providers: vec![], ..quick() }, SettingError::None("provider")),
        (
            Settings { rates: vec![100, 200, 100], ..quick() },
            SettingError::Twice { what: "rate", value: "100".into() },
        ),
        (Settings { runs: 4, ..quick() }, SettingError::Runs(4)),
        (Settings { runs: 0, ..quick() }, SettingError::Runs(0)),
    ] {
        assert_eq!(settings.check(), Err(error));
    }
}

#[test]
fn sizes_and_rates_as_text() {
    for (text, size) in [("4096", 4096), ("256K", 256 << 10), ("8M", 8 << 20), ("1g", 1 << 30)] {
        assert_eq!(parse_size(text), Ok(size));
    }
    for (text, rate) in [("500", 500), ("20K", 20_000), ("20000/s", 20_000), ("1M/s", 1_000_000)] {
        assert_eq!(parse_rate(text), Ok(rate));
    }
    for text in ["", "K", "-1", "8X", "1.5M", "8 M", "99999999999G", "/s", "8M/s/s"] {
        assert!(parse_size(text).is_err(), "{text}");
        assert!(parse_rate(text).is_err(), "{text}");
    }
}
