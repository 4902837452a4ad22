//! Two fake devices through a migration's tracking, in mixes of address spaces and providers.

use std::sync::Arc;

use drogher_iommu_types::{DirtyBitmap, Gpa};
use drogher_tracking::{Choice, Class, ProviderKind, RefusalCode, Wish};

use super::{Require, TrackingControl, TrackingError, TrackingStatus, Wishes, blockers};
use crate::device::fake::{ALL, Can};
use crate::device::testing::{RAM, Rig};

/// Pages of RAM.
const PAGES: u64 = RAM >> 12;
/// The page that a fake writes to.
const PAGE: u64 = 1;
const NO_NDMA: Can = Can { ndma: false, ..ALL };

struct Bed {
    rig: Rig,
    control: TrackingControl,
}

impl Bed {
    fn new(devices: &[Can], keys: &[&str]) -> Self {
        let rig = Rig::with_keys(devices, keys);
        rig.run();
        for slot in (1..).take(devices.len()) {
            rig.drive(slot);
        }
        Self { rig, control: TrackingControl::default() }
    }

    fn prepare(&self, wishes: &Wishes) -> Result<(), Vec<drogher_tracking::Refusal>> {
        self.control.prepare(&self.rig.set, &self.rig.spaces, wishes)
    }

    /// As a migration does before its rounds.
    fn begin(&self, wishes: &Wishes) {
        self.prepare(wishes).expect("a plan");
        self.control.start().expect("it starts");
        self.control.enter_early(&self.rig.set).expect("early NDMA");
    }

    fn end(&self) {
        self.control.stop(&self.rig.set).expect("it stops");
    }

    fn dma(&self, device: usize) -> bool {
        self.rig.fakes[device].dma()
    }

    fn try_harvest(&self) -> (Result<(), TrackingError>, Vec<u64>) {
        let bitmap = DirtyBitmap::new(Gpa(0)..Gpa(RAM)).expect("aligned");
        let result = self.control.harvest(&(Gpa(0)..Gpa(RAM)), &bitmap);
        (result, bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect())
    }

    fn harvest(&self) -> Vec<u64> {
        let (result, pages) = self.try_harvest();
        result.expect("harvested");
        pages
    }

    fn status(&self) -> TrackingStatus {
        self.control.status(&self.rig.set)
    }

    fn switch(&self, device: Option<&str>, choice: &str) -> Result<(), TrackingError> {
        let choice: Choice = choice.parse().expect("a choice");
        self.control.switch(&self.rig.set, device, choice)
    }

    fn unlimited(&self) -> Vec<u64> {
        self.status().spaces.iter().map(|space| space.unlimited).collect()
    }
}

fn tracker(wish: Wish) -> Wishes {
    Wishes { tracker: Some(wish), ..Wishes::default() }
}

fn early(names: &[&str]) -> Wishes {
    Wishes { early_ndma: names.iter().map(ToString::to_string).collect(), ..Wishes::default() }
}

fn codes(refusals: &[drogher_tracking::Refusal]) -> Vec<RefusalCode> {
    refusals.iter().map(|refusal| refusal.code).collect()
}

#[test]
fn writes_of_two_devices_are_reported_once_in_one_space_and_in_two() {
    for keys in [&["", ""][..], &["vm.space=a", "vm.space=b"], &["", "vm.space=b"]] {
        for wish in [Wish::Iommu, Wish::Fault] {
            let bed = Bed::new(&[ALL, ALL], keys);
            bed.begin(&tracker(wish));
            assert!(bed.harvest().is_empty(), "{keys:?}");
            for device in [0, 1] {
                assert!(bed.dma(device));
                assert_eq!(bed.harvest(), [PAGE], "{keys:?} {wish:?} device {device}");
                assert!(bed.harvest().is_empty());
            }
            let status = bed.status();
            let spaces = if keys == ["", ""] { 1 } else { 2 };
            assert_eq!((status.active, status.spaces.len()), (true, spaces));
            assert!(status.spaces.iter().all(|space| space.class == Class::Exact));
            let pages = |status: &TrackingStatus| {
                status.spaces.iter().map(|space| space.tracked_pages).sum::<u64>()
            };
            assert_eq!(pages(&status), 2);
            bed.end();
            let report = bed.control.report(&bed.rig.set).expect("the last one");
            assert_eq!((report.active, pages(&report)), (false, 2));
            assert!(!bed.status().active);
        }
    }
}

#[test]
fn an_untracked_device_widens_its_own_space_only() {
    let bed = Bed::new(&[ALL, ALL], &["vm.space=wide,vm.tracker=all", "vm.space=narrow"]);
    bed.begin(&Wishes::default());
    assert_eq!(bed.harvest().len() as u64, PAGES);
    let status = bed.status();
    let [wide, narrow] = &status.spaces[..] else { panic!("two spaces: {status:?}") };
    assert_eq!((wide.class, narrow.class), (Class::AllMapped, Class::Exact));
    assert_eq!((wide.unlimited, narrow.unlimited), (1, 0));
    assert!(wide.note.as_deref().is_some_and(|note| note.contains("degraded: no tracker")));
    assert_eq!(narrow.note, None);
    assert_eq!((wide.wide_pages, narrow.wide_pages), (PAGES, 0));
    assert!(bed.dma(1));
    bed.harvest();
    assert_eq!(bed.status().spaces[1].tracked_pages, 1, "the second stays small");
    let providers: Vec<_> = status.devices.iter().map(|device| device.provider).collect();
    assert_eq!(providers, [Some(ProviderKind::All), Some(ProviderKind::Iommu)]);
    assert!(status.devices.iter().all(|device| !device.reason.is_empty()));
    bed.end();
}

/// Caught mutant: `ndma-not-counted`.
#[test]
fn ndma_is_counted_by_the_address_space_in_and_out() {
    let bed = Bed::new(&[ALL, ALL], &["vm.tracker=all", ""]);
    bed.begin(&Wishes::default());
    assert_eq!(bed.unlimited(), [1]);
    assert!(bed.dma(0));
    bed.rig.stop();
    assert_eq!(bed.unlimited(), [0], "it is in NDMA");
    assert_eq!(bed.harvest().len() as u64, PAGES, "the last wide report");
    assert!(bed.harvest().is_empty(), "it dirties nothing any more");
    // A rollback.
    bed.rig.run();
    assert_eq!(bed.unlimited(), [1], "counted before it does DMA again");
    assert_eq!(bed.harvest().len() as u64, PAGES);
    bed.end();
}

#[test]
fn a_device_chosen_stands_early_and_the_others_go_on() {
    let bed = Bed::new(&[ALL, ALL], &["vm.tracker=all,vm.name=slow", ""]);
    let exact = Wishes { require: Some(Require::Exact), ..early(&["slow"]) };
    bed.begin(&exact);
    assert!(!bed.dma(0) && bed.rig.fakes[0].in_ndma(), "it stands");
    assert!(bed.dma(1), "the other does not");
    assert_eq!(bed.harvest().len() as u64, PAGES, "what it had written before");
    assert!(bed.dma(1));
    assert_eq!(bed.harvest(), [PAGE], "exact from now on");
    let stood = |status: &TrackingStatus| {
        status.devices.iter().map(|device| device.stood_us.is_some()).collect::<Vec<_>>()
    };
    assert_eq!(stood(&bed.status()), [true, false]);
    bed.end();
    assert!(bed.dma(0), "an abort lets it go on");
    let report = bed.control.report(&bed.rig.set).expect("a report");
    assert_eq!(stood(&report), [true, false]);
    let first = bed.rig.set.devices()[0].stood_early();
    assert_eq!(bed.rig.set.devices()[0].stood_early(), first, "and its time has ended");
    // The next migration begins anew.
    bed.prepare(&Wishes::default()).expect("a plan");
    assert_eq!(bed.rig.set.devices()[0].stood_early(), None);
}

#[test]
fn a_rollback_after_the_stop_lets_an_early_device_go_on() {
    let bed = Bed::new(&[ALL], &["vm.tracker=all"]);
    bed.begin(&early(&["00:01.0"]));
    bed.rig.stop();
    bed.rig.run();
    assert!(bed.dma(0) && !bed.rig.fakes[0].in_ndma());
    assert_eq!(bed.unlimited(), [1]);
    bed.end();
    assert!(bed.dma(0));
}

/// Offset of the advanced-features control register.
const AF_CONTROL: u32 = 0x50;

#[test]
fn a_reset_and_an_error_keep_the_counter_right() {
    let bed = Bed::new(&[ALL], &["vm.tracker=all"]);
    bed.begin(&early(&["test.fake"]));
    assert_eq!(bed.unlimited(), [0]);
    bed.rig.config_write(1, AF_CONTROL, 1);
    assert!(bed.rig.fakes[0].in_ndma(), "a reset device stands again");
    assert_eq!(bed.unlimited(), [0]);
    assert_eq!(bed.harvest().len() as u64, PAGES);
    bed.rig.fakes[0].break_down("broken");
    assert_eq!(bed.unlimited(), [0], "in ERROR it does no DMA either");
    bed.rig.config_write(1, AF_CONTROL, 1);
    assert_eq!((bed.unlimited(), bed.rig.fakes[0].in_ndma()), (vec![0], true));
    bed.rig.fakes[0].break_down("again");
    bed.end();
    bed.rig.config_write(1, AF_CONTROL, 1);
    bed.rig.drive(1);
    assert!(bed.dma(0), "after the migration a reset lets it go on");
    bed.begin(&Wishes::default());
    assert_eq!(bed.unlimited(), [1]);
    bed.end();
}

#[test]
fn a_device_that_refuses_early_ndma_is_named_and_the_others_go_on() {
    let bed = Bed::new(&[ALL, ALL], &[]);
    bed.rig.fakes[1].refuse("ndma");
    bed.prepare(&early(&["00:01.0", "00:02.0"])).expect("a plan");
    bed.control.start().expect("it starts");
    let error = bed.control.enter_early(&bed.rig.set).expect_err("it refuses");
    assert!(error.to_string().starts_with("00:02.0 test.fake"), "{error}");
    bed.end();
    assert!(bed.dma(0) && bed.dma(1));
}

#[test]
fn everything_that_stands_against_it_is_said_before_anything_starts() {
    let bed = Bed::new(
        &[ALL, NO_NDMA, ALL, ALL],
        &["vm.iommu=off,vm.name=raw", "", "vm.tracker=device", "vm.tracker=all,vm.require=exact"],
    );
    let refusals = bed.prepare(&early(&["00:02.0", "nobody"])).expect_err("not at all");
    let mut found = codes(&refusals);
    found.sort_by_key(|code| code.name());
    assert_eq!(
        found,
        [
            RefusalCode::NoNdma,
            RefusalCode::NoProvider,
            RefusalCode::NoSuchDevice,
            RefusalCode::RawDevice
        ]
    );
    let blockers = blockers(&bed.rig.set, &refusals);
    assert_eq!(blockers.len(), 4);
    let text = blockers.iter().map(|blocker| format!("{blocker}\n")).collect::<String>();
    for word in ["raw, 00:01.0", "past every IOMMU", "00:02.0", "early-ndma", "nobody"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(matches!(bed.control.start(), Err(TrackingError::NotPlanned)));
    assert!(bed.dma(0) && bed.dma(2), "nothing has changed for the devices");
    assert_eq!(codes(&bed.status().refusals).len(), 2, "at rest: raw and no provider");
}

#[test]
fn exact_is_required_or_refused() {
    let exact = Wishes { require: Some(Require::Exact), ..tracker(Wish::All) };
    let bed = Bed::new(&[ALL], &[]);
    assert_eq!(codes(&bed.prepare(&exact).expect_err("not exact")), [RefusalCode::NotExact]);
    bed.begin(&Wishes { tracker: None, ..exact });
    assert!(bed.dma(0));
    assert_eq!(bed.harvest(), [PAGE]);
    bed.end();
}

#[test]
fn a_migrations_own_wishes_win_and_do_not_last() {
    let bed = Bed::new(&[ALL], &["vm.tracker=iommu"]);
    bed.control.set_wishes(&bed.rig.set, &tracker(Wish::All)).expect("it names no device");
    let provider = |bed: &Bed| bed.status().devices[0].provider;
    assert_eq!(provider(&bed), Some(ProviderKind::Iommu), "of a device wins over of all");
    bed.begin(&tracker(Wish::Fault));
    assert_eq!(provider(&bed), Some(ProviderKind::Fault), "the migration's own over both");
    bed.end();
    assert_eq!(provider(&bed), Some(ProviderKind::Iommu));
}

#[test]
fn trackers_are_switched_while_devices_write() {
    let bed = Bed::new(&[ALL, ALL], &["vm.name=a", "vm.space=other"]);
    bed.begin(&tracker(Wish::All));
    assert_eq!(bed.harvest().len() as u64, PAGES);
    assert!(bed.dma(0));
    bed.switch(None, "provider=iommu").expect("it is switched");
    assert_eq!(bed.harvest().len() as u64, PAGES, "the wide report before the narrowing");
    assert!(bed.dma(0) && bed.dma(1));
    bed.switch(Some("a"), "provider=fault").expect("it is switched");
    assert!(bed.harvest().contains(&PAGE));
    assert!(bed.harvest().is_empty());
    let providers = |bed: &Bed| {
        let status = bed.status();
        status.devices.iter().map(|device| device.provider.unwrap().name()).collect::<Vec<_>>()
    };
    assert_eq!(providers(&bed), ["fault", "iommu"]);
    let refused = bed.switch(Some("a"), "provider=device").expect_err("it has no log");
    assert!(matches!(refused, TrackingError::Refused(_)), "{refused}");
    let refused = bed.switch(Some("b"), "provider=all").expect_err("there is none");
    assert!(refused.to_string().contains("no-such-device"), "{refused}");
    assert_eq!(providers(&bed), ["fault", "iommu"]);
    assert!(bed.dma(0));
    assert_eq!(bed.harvest(), [PAGE], "they go on as they were");
    bed.end();
    assert_eq!(providers(&bed), ["fault", "iommu"], "what was switched stays so");
}

#[test]
fn a_quirk_decides_unless_the_operator_does() {
    let quirk = |provider| drogher_tracking::Quirk {
        plugin: "test.fake".into(),
        iommu_model: Some(super::IOMMU_MODEL.into()),
        provider,
        page_size: None,
        reason: "its D bits are slow".into(),
    };
    let quirks = |provider| Wishes { quirks: vec![quirk(provider)], ..Wishes::default() };
    let bed = Bed::new(&[ALL, ALL], &["", "vm.tracker=all"]);
    bed.control.set_wishes(&bed.rig.set, &quirks(ProviderKind::Fault)).expect("it names no device");
    let status = bed.status();
    let providers: Vec<_> = status.devices.iter().map(|device| device.provider).collect();
    assert_eq!(providers, [Some(ProviderKind::Fault), Some(ProviderKind::All)]);
    assert!(status.devices[0].reason.contains("its D bits are slow"));
    bed.begin(&quirks(ProviderKind::Iommu));
    assert_eq!(bed.status().devices[0].provider, Some(ProviderKind::Iommu), "the migration's own");
    bed.end();
}

/// Caught mutant: `ndma-not-counted`.
#[test]
fn a_stopped_device_without_ndma_is_sent_widely_once() {
    let bed = Bed::new(&[NO_NDMA], &["vm.tracker=all"]);
    bed.begin(&Wishes::default());
    bed.harvest();
    assert!(bed.dma(0));
    bed.rig.stop();
    assert_eq!(bed.unlimited(), [0]);
    assert_eq!(bed.harvest().len() as u64, PAGES, "the final harvest");
    assert!(bed.harvest().is_empty(), "the last one");
    bed.rig.run();
    assert_eq!(bed.unlimited(), [1]);
    bed.end();
}

#[test]
fn one_space_records_in_one_way() {
    let bed = Bed::new(&[ALL, ALL], &["vm.tracker=iommu", "vm.tracker=fault"]);
    assert_eq!(codes(&bed.prepare(&Wishes::default()).unwrap_err()), [RefusalCode::Conflict]);
    let bed = Bed::new(&[ALL, ALL], &["vm.tracker=iommu", "vm.tracker=fault,vm.space=b"]);
    bed.begin(&Wishes::default());
    assert!(bed.dma(1));
    assert_eq!(bed.harvest(), [PAGE]);
    bed.end();
}

#[test]
fn address_spaces_are_shared_by_name_and_raw_devices_are_alone() {
    let rig = Rig::with_keys(
        &[ALL, ALL, ALL, ALL],
        &["vm.space=a", "vm.space=a", "vm.iommu=off", "vm.iommu=off,vm.space=a"],
    );
    let labels: Vec<_> = rig.spaces.all().iter().map(|space| space.label().to_owned()).collect();
    assert_eq!(labels, ["main", "a", "raw 00:03.0", "raw 00:04.0"]);
    let [first, second, ..] = rig.set.devices() else { panic!("four devices") };
    assert!(Arc::ptr_eq(first.space(), second.space()));
}

/// It is in NDMA by then; not to count it there must not leave it there for good.
#[test]
fn a_device_that_cannot_be_counted_in_early_ndma_does_dma_again_after_the_end() {
    let bed = Bed::new(&[ALL], &[""]);
    bed.prepare(&early(&["00:01.0"])).expect("a plan");
    bed.control.start().expect("it starts");
    let device = &bed.rig.set.devices()[0];
    // Stands for a drain that another device's access outlives.
    device.space().tracked().stopped(device.rid()).expect("attached");
    bed.control.enter_early(&bed.rig.set).expect_err("it is counted already");
    device.space().tracked().ndma_left(device.rid()).expect("counted");
    bed.end();
    assert!(bed.dma(0), "the migration was given up, and the guest goes on with its device");
}

/// With `untracked` the plan that a switch makes may count on a device's standing still.
#[test]
fn a_switch_puts_a_device_in_early_ndma_and_takes_it_out() {
    let bed = Bed::new(&[ALL, ALL], &["vm.name=a", ""]);
    bed.begin(&Wishes { require: Some(Require::Exact), ..early(&["untracked"]) });
    assert!(bed.dma(0), "the recorder sees it");
    bed.switch(Some("a"), "provider=all").expect("exact, once it stands");
    assert!(!bed.dma(0) && bed.rig.fakes[0].in_ndma());
    assert_eq!(bed.status().spaces[0].class, Class::Exact);
    assert_eq!(bed.harvest(), [PAGE], "what it had written before it stood");
    assert!(bed.dma(1));
    assert_eq!(bed.harvest(), [PAGE]);

    bed.switch(Some("a"), "provider=iommu").expect("it is switched");
    assert!(bed.dma(0), "it goes on, tracked");
    assert_eq!(bed.harvest(), [PAGE]);

    bed.rig.fakes[0].refuse("ndma");
    let refused = bed.switch(Some("a"), "provider=all").expect_err("it does not stand");
    assert!(matches!(refused, TrackingError::Device(_)), "{refused}");
    assert_eq!(bed.status().devices[0].provider, Some(ProviderKind::Iommu));
    assert!(bed.dma(0));
    assert_eq!(bed.harvest(), [PAGE], "all as before");
    bed.end();
}

#[test]
fn a_migration_that_did_not_start_has_no_say_in_what_comes_after_it() {
    let bed = Bed::new(&[ALL], &[""]);
    let exact = Wishes { require: Some(Require::Exact), ..Wishes::default() };
    bed.prepare(&exact).expect("a plan");
    bed.switch(None, "provider=all").expect_err("while it is about to start");
    bed.control.forget();
    bed.switch(None, "provider=all").expect("nothing requires exact reports");
    bed.begin(&Wishes::default());
    bed.control.forget();
    assert_eq!(bed.harvest().len() as u64, PAGES, "one that runs is not forgotten");
    bed.end();
}
