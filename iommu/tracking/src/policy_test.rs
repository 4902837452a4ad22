use drogher_iommu_types::Rid;

use crate::caps::{DeviceCaps, Dma, Pins, SpaceCaps};
use crate::policy::{Choice, ChoiceError, DeviceRule, EarlyNdma, Policy, Quirk, Quirks, Wish};
use crate::{ProviderKind, TrackingPageSize};

fn device() -> DeviceCaps {
    DeviceCaps {
        rid: Rid(0x0010),
        label: "net0".into(),
        plugin: "drogher.mlx5".into(),
        version: "1.0".into(),
        dma: Dma::ThroughIommu,
        log: None,
        pins: Pins::None,
        ndma: false,
        migratable: true,
        preference: None,
    }
}

#[test]
fn a_choice_as_text() {
    let choice: Choice =
        "provider=device,page-size=64K,require=exact,early-ndma=untracked".parse().expect("good");
    assert_eq!(
        choice,
        Choice {
            provider: Some(Wish::Device),
            page_size: Some(TrackingPageSize::K64),
            require_exact: Some(true),
            early_ndma: Some(EarlyNdma::Untracked),
        }
    );
    assert_eq!("".parse(), Ok(Choice::default()));
    for kind in ProviderKind::EACH {
        let choice: Choice = format!("provider={kind}").parse().expect("its name");
        assert_eq!(choice.provider.and_then(Wish::provider), Some(kind));
    }
    let auto: Choice = "provider=auto,require=any".parse().expect("good");
    assert_eq!((auto.provider, auto.require_exact), (Some(Wish::Auto), Some(false)));
}

#[test]
fn a_text_that_is_no_choice_is_refused_with_the_way_out() {
    for (text, part) in [
        ("provider", "key=value"),
        ("provider=dbits", "iommu, device, pinned, fault or all, or auto"),
        ("page=4K", "page-size"),
        ("page-size=3K", "4K..=2M"),
        ("require=yes", "exact or any"),
        ("early-ndma=1", "off, untracked or on"),
        ("require=any,require=exact", "require is given twice"),
    ] {
        let error = text.parse::<Choice>().expect_err(text);
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    assert_eq!("x=1".parse::<Choice>(), Err(ChoiceError::UnknownKey("x".into())));
}

#[test]
fn rules_override_field_by_field() {
    let rule = |device: &str, choice: &str| DeviceRule {
        device: device.into(),
        choice: choice.parse().expect("good"),
    };
    let policy = Policy {
        global: "provider=iommu,page-size=4K,require=exact".parse().expect("good"),
        devices: vec![
            rule("drogher.mlx5", "provider=device,page-size=64K"),
            rule("other", "provider=all"),
            rule("00:02.0", "page-size=2M"),
            rule("net0", "require=any"),
        ],
    };
    let of = policy.of(&device());
    assert_eq!(of, "provider=device,page-size=2M,require=any".parse().expect("good"));
    let other = DeviceCaps { rid: Rid(8), label: "x".into(), plugin: "y".into(), ..device() };
    assert_eq!(policy.of(&other), policy.global);
    let json = serde_json::to_string(&policy).expect("plain");
    assert_eq!(serde_json::from_str::<Policy>(&json).expect("its own"), policy);
    assert!(serde_json::from_str::<Policy>(r#"{"globall":{}}"#).is_err());
}

#[test]
fn quirks_match_plugin_and_model() {
    let quirk = |model: Option<&str>, provider| Quirk {
        plugin: "drogher.mlx5".into(),
        iommu_model: model.map(Into::into),
        provider,
        page_size: None,
        reason: "slow".into(),
    };
    let quirks =
        Quirks(vec![quirk(Some("vtd"), ProviderKind::Device), quirk(None, ProviderKind::Fault)]);
    let space = |model: &str| SpaceCaps {
        label: "s".into(),
        iommu_model: model.into(),
        d_bits: true,
        write_fault: true,
    };
    let found = |model| quirks.find(&device(), &space(model)).map(|quirk| quirk.provider);
    assert_eq!(found("vtd"), Some(ProviderKind::Device));
    assert_eq!(found("amd"), Some(ProviderKind::Fault));
    let other = DeviceCaps { plugin: "drogher.ndma".into(), ..device() };
    assert_eq!(quirks.find(&other, &space("vtd")), None);
}
