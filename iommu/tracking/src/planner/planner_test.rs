use drogher_iommu_types::Rid;

use crate::caps::{DeviceCaps, Dma, LogCaps, Pins, Preference, SpaceCaps};
use crate::plan::{Decider, Plan, Refusal, RefusalCode};
use crate::planner::{Inputs, plan};
use crate::policy::{DeviceRule, Policy, Quirk, Quirks};
use crate::{Class, Costs, Explanation, Measured, ProviderKind, TrackingPageSize};

const K4: TrackingPageSize = TrackingPageSize::K4;
const K64: TrackingPageSize = TrackingPageSize::K64;

fn space(label: &str) -> SpaceCaps {
    SpaceCaps {
        label: label.into(),
        iommu_model: "model-a".into(),
        d_bits: true,
        write_fault: true,
    }
}

/// An IOMMU that records nothing.
fn blind(label: &str) -> SpaceCaps {
    SpaceCaps { d_bits: false, write_fault: false, ..space(label) }
}

/// A device behind the IOMMU without anything of its own.
fn plain(number: u16) -> DeviceCaps {
    DeviceCaps {
        rid: Rid(number << 3),
        label: format!("dev{number}"),
        plugin: "test.plain".into(),
        version: "1".into(),
        dma: Dma::ThroughIommu,
        log: None,
        pins: Pins::None,
        ndma: false,
        migratable: true,
        preference: None,
    }
}

fn logging(number: u16) -> DeviceCaps {
    let log = LogCaps { min_page_size: K4, max_page_size: TrackingPageSize::K64, max_ranges: 16 };
    DeviceCaps { log: Some(log), plugin: "test.log".into(), ..plain(number) }
}

fn pinning(number: u16) -> DeviceCaps {
    DeviceCaps { pins: Pins::All, plugin: "test.pins".into(), ..plain(number) }
}

fn ndma(number: u16) -> DeviceCaps {
    DeviceCaps { ndma: true, plugin: "test.ndma".into(), ..plain(number) }
}

fn raw(device: DeviceCaps) -> DeviceCaps {
    DeviceCaps { dma: Dma::Raw, ..device }
}

fn prefers(device: DeviceCaps, provider: ProviderKind, page_size: Option<&str>) -> DeviceCaps {
    let preference = Preference {
        provider,
        page_size: page_size.map(|text| text.parse().expect("a size")),
        cost_hint_ns: Some(900),
        reason: "its tracker is free".into(),
    };
    DeviceCaps { preference: Some(preference), ..device }
}

#[derive(Default)]
struct Case {
    global: &'static str,
    rules: Vec<(&'static str, &'static str)>,
    quirks: Vec<Quirk>,
    costs: Vec<Measured>,
}

impl Case {
    fn global(choice: &'static str) -> Self {
        Self { global: choice, ..Self::default() }
    }

    fn plan(&self, spaces: &[(SpaceCaps, Vec<DeviceCaps>)]) -> Result<Vec<Plan>, Vec<Refusal>> {
        let rules = self.rules.iter().map(|(device, choice)| DeviceRule {
            device: (*device).into(),
            choice: choice.parse().expect("a choice"),
        });
        let policy =
            Policy { global: self.global.parse().expect("a choice"), devices: rules.collect() };
        let costs = Costs { measured: self.costs.clone() };
        let quirks = Quirks(self.quirks.clone());
        plan(spaces, Inputs { policy: &policy, quirks: &quirks, costs: &costs })
    }

    fn one(&self, devices: &[DeviceCaps]) -> Plan {
        let plans = self.plan(&[(space("s"), devices.to_vec())]).expect("a plan");
        plans.into_iter().next().expect("one")
    }

    fn refused(&self, spaces: &[(SpaceCaps, Vec<DeviceCaps>)]) -> Vec<(RefusalCode, String)> {
        let refusals = self.plan(spaces).expect_err("refusals");
        refusals
            .into_iter()
            .map(|refusal| {
                assert!(!refusal.reason.is_empty() && !refusal.hint.is_empty());
                (refusal.code, refusal.device.unwrap_or_default())
            })
            .collect()
    }
}

/// The provider, the page size and who decided on the first device's provider.
fn first(plan: &Plan) -> (ProviderKind, String, Decider) {
    let device = &plan.devices[0];
    (device.provider.expect("it does DMA"), device.page_size.to_string(), device.reason.by)
}

fn providers(plan: &Plan) -> Vec<(ProviderKind, String)> {
    plan.providers.iter().map(|plan| (plan.provider, plan.covers.join("+"))).collect()
}

fn quirk(provider: ProviderKind, page_size: Option<TrackingPageSize>) -> Quirk {
    Quirk {
        plugin: "test.log".into(),
        iommu_model: Some("model-a".into()),
        provider,
        page_size,
        reason: "D bits of model-a flush slowly".into(),
    }
}

fn cost(provider: ProviderKind, page_size: TrackingPageSize, ns: u64) -> Measured {
    Measured { provider, page_size, harvest_ns: ns, dma_ns: 10, resend_ns: 5 }
}

#[test]
fn who_decides_in_which_order() {
    let liking = || prefers(logging(1), ProviderKind::Fault, Some("16K"));
    let quirks = vec![quirk(ProviderKind::Device, Some(K64))];
    let costs = vec![
        cost(ProviderKind::Iommu, K4, 500),
        cost(ProviderKind::Device, K4, 300),
        cost(ProviderKind::Device, K64, 100),
        cost(ProviderKind::All, K4, 900),
    ];
    use Decider as D;
    use ProviderKind as P;
    // (operator, quirks?, preference?, costs?) -> provider, page size, decided by.
    for (global, quirked, wished, measured, expected) in [
        ("provider=iommu,page-size=2M", true, true, true, (P::Iommu, "2M", D::Operator)),
        // The operator names the provider only: of its sizes the cheapest.
        ("provider=device", true, true, true, (P::Device, "64K", D::Operator)),
        ("provider=auto", true, true, true, (P::Device, "64K", D::Quirk)),
        ("", true, true, true, (P::Device, "64K", D::Quirk)),
        ("page-size=8K", true, true, true, (P::Device, "8K", D::Quirk)),
        ("", false, true, true, (P::Fault, "16K", D::Preference)),
        ("page-size=4K", false, true, true, (P::Fault, "4K", D::Preference)),
        ("", false, false, true, (P::Device, "64K", D::Measured)),
        ("", false, false, false, (P::Iommu, "4K", D::Default)),
        ("provider=all", true, true, true, (P::All, "4K", D::Operator)),
    ] {
        let case = Case {
            global,
            quirks: if quirked { quirks.clone() } else { Vec::new() },
            costs: if measured { costs.clone() } else { Vec::new() },
            ..Case::default()
        };
        let device = if wished { liking() } else { logging(1) };
        let (kind, size, by) = first(&case.one(&[device]));
        assert_eq!((kind, &*size, by), expected, "{global:?} {quirked} {wished} {measured}");
    }
}

#[test]
fn classes_are_compared_by_what_they_cost_in_all() {
    use ProviderKind as P;
    let pinned = cost(P::Pinned, K4, 100);
    for (device, global, costs, expected) in [
        (plain(1), "", vec![cost(P::Iommu, K4, 500), cost(P::All, K4, 100)], P::All),
        (plain(1), "", vec![cost(P::Iommu, K4, 500), cost(P::All, K4, 480)], P::Iommu),
        (plain(1), "require=exact", vec![cost(P::Iommu, K4, 500), cost(P::All, K4, 1)], P::Iommu),
        // Nothing narrow was measured: that says nothing for the wide one.
        (plain(1), "", vec![cost(P::All, K4, 1)], P::Iommu),
        // Beside a recorder the pins are harvested too.
        (pinning(1), "", vec![cost(P::Iommu, K4, 1), pinned], P::Pinned),
        (
            logging(1),
            "",
            vec![cost(P::Iommu, K4, 500), pinned, cost(P::Device, K4, 400)],
            P::Device,
        ),
    ] {
        let text = format!("{} {global} {costs:?}", device.plugin);
        let case = Case { global, costs, ..Case::default() };
        assert_eq!(first(&case.one(&[device])).0, expected, "{text}");
    }
}

#[test]
fn every_reason_is_told() {
    let reason = |plan: Plan| plan.devices[0].reason.text.clone();
    assert_eq!(reason(Case::global("provider=iommu").one(&[plain(1)])), "operator");
    let quirked = Case { quirks: vec![quirk(ProviderKind::Device, None)], ..Case::default() };
    assert_eq!(reason(quirked.one(&[logging(1)])), "quirk: D bits of model-a flush slowly");
    let liked = Case::default().one(&[prefers(logging(1), ProviderKind::Device, None)]);
    assert_eq!(liked.providers[0].expected_ns, Some(900), "the plugin's hint");
    assert_eq!(reason(liked), "the plugin prefers device: its tracker is free");
    let costs = vec![cost(ProviderKind::Device, K4, 300)];
    let measured = Case { costs, ..Case::default() }.one(&[logging(1)]);
    assert_eq!(measured.providers[0].expected_ns, Some(315));
    assert!(reason(measured).starts_with("measured: device at 4K costs 315 ns"));
    assert!(reason(Case::default().one(&[plain(1)])).contains("for want of measurements"));
}

#[test]
fn a_quirk_or_a_preference_that_cannot_be_met_is_passed_over() {
    let quirked = Case { quirks: vec![quirk(ProviderKind::Pinned, None)], ..Case::default() };
    assert_eq!(first(&quirked.one(&[logging(1)])).0, ProviderKind::Iommu);
    let liked = Case::default().one(&[prefers(plain(1), ProviderKind::Device, None)]);
    assert_eq!(first(&liked), (ProviderKind::Iommu, "4K".into(), Decider::Default));
    // Nor is one that is less than what the operator requires.
    let liked = prefers(plain(1), ProviderKind::All, None);
    assert_eq!(first(&Case::default().one(std::slice::from_ref(&liked))).0, ProviderKind::All);
    assert_eq!(first(&Case::global("require=exact").one(&[liked])).0, ProviderKind::Iommu);
}

#[test]
fn a_page_size_outside_the_log_is_brought_inside() {
    let plan = Case::global("provider=device,page-size=2M").one(&[logging(1)]);
    assert_eq!(plan.devices[0].page_size, K64);
    let reason = &plan.devices[0].page_size_reason;
    assert_eq!(reason.text, "operator: 2M, but the log does 4K to 64K");
}

#[test]
fn mixes_of_devices_in_one_space() {
    use Class::{AllMapped, Exact, Pinned};
    use ProviderKind as P;
    let only = |device: &str, kind| (kind, device.to_owned());
    // Devices, policy by device -> providers with what they cover, class, class after early NDMA.
    let recorder_sees_both = only("dev1+dev2", P::Iommu);
    for (devices, rules, expected, class, after) in [
        (vec![plain(1), plain(2)], vec![], vec![recorder_sees_both.clone()], Exact, Exact),
        // Overlap: both see dev2, and what they report is ORed.
        (
            vec![plain(1), logging(2)],
            vec![("dev2", "provider=device")],
            vec![recorder_sees_both.clone(), only("dev2", P::Device)],
            Exact,
            Exact,
        ),
        (
            vec![logging(1), logging(2)],
            vec![("test.log", "provider=device")],
            vec![only("dev1", P::Device), only("dev2", P::Device)],
            Exact,
            Exact,
        ),
        // A device that pins writes past the recorder: its pins are harvested too.
        (
            vec![plain(1), DeviceCaps { pins: Pins::Some, ..plain(2) }],
            vec![],
            vec![recorder_sees_both.clone(), only("dev2", P::Pinned)],
            Pinned,
            Pinned,
        ),
        (
            vec![logging(1), pinning(2)],
            vec![("dev1", "provider=device"), ("dev2", "provider=pinned")],
            vec![only("dev1", P::Device), only("dev2", P::Pinned)],
            Pinned,
            Pinned,
        ),
        // One that nothing narrower covers makes the whole space so.
        (
            vec![plain(1), plain(2)],
            vec![("dev2", "provider=all")],
            vec![recorder_sees_both.clone(), only("dev1+dev2", P::All)],
            AllMapped,
            AllMapped,
        ),
        // Unless it is quiesced early.
        (
            vec![plain(1), ndma(2)],
            vec![("dev2", "provider=all,early-ndma=on")],
            vec![recorder_sees_both, only("dev1+dev2", P::All)],
            AllMapped,
            Exact,
        ),
        (vec![DeviceCaps { dma: Dma::None, ..plain(1) }], vec![], vec![], Exact, Exact),
    ] {
        let case = Case { rules, ..Case::default() };
        let plan = case.one(&devices);
        assert_eq!(providers(&plan), expected, "{:?}", case.rules);
        assert_eq!((plan.class, plan.class_after_ndma), (class, after), "{:?}", case.rules);
    }
}

#[test]
fn mixes_of_devices_in_two_spaces_do_not_touch_each_other() {
    let spaces = [(blind("wide"), vec![plain(1)]), (space("narrow"), vec![plain(2)])];
    let plans = Case::default().plan(&spaces).expect("plans");
    let classes: Vec<_> = plans.iter().map(|plan| (plan.space.as_str(), plan.class)).collect();
    assert_eq!(classes, [("wide", Class::AllMapped), ("narrow", Class::Exact)]);
    // The same two together.
    let together = Case { rules: vec![("dev1", "provider=all")], ..Case::default() };
    assert_eq!(together.one(&[plain(1), plain(2)]).class, Class::AllMapped);
    // Exactness is asked of one, and the other may be what it is.
    let case = Case { rules: vec![("dev2", "require=exact")], ..Case::default() };
    let plans = case.plan(&spaces).expect("plans");
    assert_eq!((plans[0].require_exact, plans[1].require_exact), (false, true));
    // Refusals of both come together.
    let spaces = [
        (space("a"), vec![raw(plain(1))]),
        (space("b"), vec![DeviceCaps { migratable: false, ..plain(2) }]),
    ];
    let codes: Vec<_> = Case::default().refused(&spaces).into_iter().map(|r| r.0).collect();
    assert_eq!(codes, [RefusalCode::RawDevice, RefusalCode::NotMigratable]);
}

#[test]
fn what_is_refused_and_by_name() {
    let named = |code, number: u16, plugin: &str| {
        (code, format!("dev{number}, 00:0{number}.0, test.{plugin}"))
    };
    use RefusalCode as R;
    let cannot_save = DeviceCaps { migratable: false, ..plain(1) };
    let silent = DeviceCaps { dma: Dma::None, ..cannot_save.clone() };
    let forced = vec![("dev1", "provider=iommu"), ("dev2", "provider=fault")];
    for (devices, global, rules, expected) in [
        (vec![raw(plain(1))], "", vec![], vec![named(R::RawDevice, 1, "plain")]),
        // Not even everything mapped says what a raw device reaches.
        (vec![raw(plain(1))], "provider=all", vec![], vec![named(R::RawDevice, 1, "plain")]),
        (vec![cannot_save], "", vec![], vec![named(R::NotMigratable, 1, "plain")]),
        (vec![silent], "", vec![], vec![named(R::NotMigratable, 1, "plain")]),
        (vec![plain(1)], "provider=device", vec![], vec![named(R::NoProvider, 1, "plain")]),
        // Its other writes would be in no report.
        (
            vec![DeviceCaps { pins: Pins::Some, ..plain(1) }],
            "provider=pinned",
            vec![],
            vec![named(R::NoProvider, 1, "plain")],
        ),
        (vec![raw(logging(1))], "provider=all", vec![], vec![named(R::NoProvider, 1, "log")]),
        (
            vec![plain(1), pinning(2), ndma(3)],
            "require=exact",
            vec![("dev3", "provider=all")],
            vec![named(R::NotExact, 2, "pins"), named(R::NotExact, 3, "ndma")],
        ),
        (vec![plain(1)], "", vec![("dev1", "early-ndma=on")], vec![named(R::NoNdma, 1, "plain")]),
        (vec![plain(1), plain(2)], "", forced, vec![named(R::Conflict, 2, "plain")]),
        (
            vec![plain(1)],
            "",
            vec![("dev7", "provider=all")],
            vec![(R::NoSuchDevice, String::new())],
        ),
    ] {
        let case = Case { global, rules, ..Case::default() };
        assert_eq!(case.refused(&[(space("s"), devices)]), expected, "{global} {:?}", case.rules);
    }
}

#[test]
fn a_short_name_of_several_plugins_is_said_to_be_one() {
    let other = DeviceCaps { plugin: "other.log".into(), ..logging(2) };
    let spaces = [(space("s"), vec![logging(1), other])];
    let of = |name| {
        let case = Case { rules: vec![(name, "provider=all")], ..Case::default() };
        case.plan(&spaces).expect_err("refusals")[0].to_string()
    };
    let text = of("log");
    assert!(text.contains("several plugins") && text.contains("other.log, test.log"), "{text}");
    let text = of("logs");
    assert!(text.contains("no device") && text.contains("dev1, dev2"), "{text}");
}

#[test]
fn a_raw_device_with_a_tracker_of_its_own_is_fine() {
    let plan = Case::default().one(&[raw(logging(1)), raw(pinning(2))]);
    let kinds: Vec<_> = plan.devices.iter().map(|device| device.provider).collect();
    assert_eq!(kinds, [Some(ProviderKind::Device), Some(ProviderKind::Pinned)]);
}

#[test]
fn early_ndma_is_given_to_whom_it_is_meant_for() {
    let early = |case: Case, spaces: SpaceCaps, devices: &[DeviceCaps]| {
        let plans = case.plan(&[(spaces, devices.to_vec())]).expect("a plan");
        plans[0].devices.iter().map(|device| device.early_ndma).collect::<Vec<_>>()
    };
    let devices = [ndma(1), plain(2)];
    assert_eq!(early(Case::default(), space("s"), &devices), [false, false]);
    assert_eq!(early(Case::global("early-ndma=on"), space("s"), &devices), [true, false]);
    let untracked = "early-ndma=untracked";
    assert_eq!(early(Case::global(untracked), space("s"), &devices), [false, false]);
    assert_eq!(early(Case::global(untracked), blind("s"), &devices), [true, false]);
    let off = Case {
        global: "early-ndma=on",
        rules: vec![("dev1", "early-ndma=off")],
        ..Case::default()
    };
    assert_eq!(early(off, space("s"), &devices), [false, false]);
    // Exact is possible with a device that nothing tracks, if it stands still.
    let exact = Case::global("require=exact,early-ndma=untracked");
    assert_eq!(early(exact, blind("s"), &[ndma(1)]), [true]);
}

#[test]
fn one_space_records_in_one_way_and_in_the_smallest_size_asked_for() {
    let rules = vec![("dev1", "page-size=64K"), ("dev2", "provider=fault,page-size=16K")];
    let plan = Case { rules, ..Case::default() }.one(&[plain(1), plain(2)]);
    assert_eq!(plan.recorder(), Some((ProviderKind::Fault, TrackingPageSize::K16)));
    assert_eq!(plan.devices[0].reason.text, "its address space records by fault, for dev2");
    assert_eq!(
        plan.devices[0].page_size_reason.text,
        "16K, the smallest asked for in this address space"
    );
    assert_eq!(plan.devices[1].reason.text, "operator");
}

#[test]
fn an_explanation_as_text_and_as_data() {
    let case = Case {
        rules: vec![("dev2", "provider=all,early-ndma=on")],
        costs: vec![cost(ProviderKind::Iommu, K4, 100)],
        ..Case::default()
    };
    let spaces = [(space("s"), vec![plain(1), ndma(2), DeviceCaps { dma: Dma::None, ..plain(3) }])];
    let explanation = Explanation::from(case.plan(&spaces));
    let text = explanation.to_string();
    let expected = "\
Address space s: all-mapped, exact after early NDMA
  provider iommu at 4K: exact, covers dev1, dev2, 115 ns a round (measured: iommu at 4K costs \
115 ns a round, the least of what covers it)
  provider all at 4K: all-mapped, covers dev1, dev2, cost unknown (degraded: nothing narrower \
covers dev2 (operator))
  device dev1 (00:01.0): iommu (measured: iommu at 4K costs 115 ns a round, the least of what \
covers it), 4K (measured: 4K costs the least of all sizes)
  device dev2 (00:02.0): all (operator), 4K (mapped pages are reported as 4K), early NDMA \
(operator: on)
  device dev3 (00:03.0): nothing (it does no DMA)
";
    assert_eq!(text, expected);
    let json = serde_json::to_string(&explanation).expect("plain");
    assert_eq!(serde_json::from_str::<Explanation>(&json).expect("its own"), explanation);
    assert!(json.contains(r#""rid":"00:02.0""#) && json.contains(r#""by":"operator""#));

    let refused = Explanation::from(Case::default().plan(&[(space("s"), vec![raw(plain(1))])]));
    let expected = "\
Tracking would not start:
  raw-device (dev1, 00:01.0, test.plain): It reaches memory past every IOMMU and has no tracker \
of its own; unplug it, or put it behind the IOMMU
";
    assert_eq!(refused.to_string(), expected);
    assert!(!refused.possible);
}

#[test]
fn device_capabilities_travel_as_json() {
    let device = prefers(logging(1), ProviderKind::Device, Some("64K"));
    let json = serde_json::to_string(&device).expect("plain");
    assert_eq!(serde_json::from_str::<DeviceCaps>(&json).expect("its own"), device);
    for rid in ["", "1:02.0", "00:20.0", "00:1f.8", "00:1f", "0g:00.0", "+1:00.0"] {
        let bad = json.replace("00:01.0", rid);
        assert!(serde_json::from_str::<DeviceCaps>(&bad).is_err(), "{rid}");
    }
}
