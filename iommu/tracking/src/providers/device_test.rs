use std::ops::Range;
use std::sync::{Arc, Mutex};

use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE, Rid};

use crate::log_ranges::LogRangesError;
use crate::provider::{Class, Coverage, Provider, ProviderError, ProviderKind};
use crate::providers::{DeviceLog, DeviceProvider, LogFailure};
use crate::{Sink, TrackingPageSize};

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

/// A log that says what it was asked, and reports page 21 once.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    fails: Mutex<Option<&'static str>>,
    pending: Mutex<bool>,
}

impl Fake {
    fn call(&self, name: &str, what: String) -> Result<(), LogFailure> {
        self.calls.lock().expect("no panic").push(format!("{name} {what}"));
        let fails = *self.fails.lock().expect("no panic");
        if fails == Some(name) { Err("broken".into()) } else { Ok(()) }
    }
}

impl DeviceLog for Fake {
    fn start(
        &self,
        ranges: &[Range<Gpa>],
        page_size: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogFailure> {
        self.call("start", format!("{} {page_size}", ranges.len()))?;
        // It cannot do less than 16K.
        Ok(page_size.max(TrackingPageSize::K16))
    }

    fn report(
        &self,
        range: &Range<Gpa>,
        page_size: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogFailure> {
        let pages = format!("{}..{}", range.start.page(), range.end.page());
        self.call("report", format!("{pages} {page_size}"))?;
        if std::mem::take(&mut *self.pending.lock().expect("no panic")) {
            into.set(page(21))?;
        }
        Ok(())
    }

    fn stop(&self) -> Result<(), LogFailure> {
        self.call("stop", String::new())
    }
}

fn provider(log: &Arc<Fake>, ranges: Vec<Range<Gpa>>) -> DeviceProvider {
    DeviceProvider::new(Rid(8), log.clone(), ranges, TrackingPageSize::K4)
}

fn harvest(provider: &mut DeviceProvider, range: Range<Gpa>) -> Result<Vec<u64>, ProviderError> {
    let ram = [page(0)..page(64)];
    let bitmap = || DirtyBitmap::new(page(0)..page(64)).expect("aligned");
    let (into, rest, scratch) = (bitmap(), bitmap(), bitmap());
    provider.harvest(&Sink::new(range, &ram, &into, &rest, &scratch))?;
    assert!(rest.is_clean());
    Ok(into.runs().flat_map(|run| run.start.page()..run.end.page()).collect())
}

#[test]
fn a_log_is_asked_in_its_own_page_size_and_reports_whole_pages_of_it() {
    let log = Arc::new(Fake::default());
    let mut provider = provider(&log, vec![page(0)..page(64)]);
    assert_eq!((provider.class(), provider.covers()), (Class::Exact, Coverage::Device(Rid(8))));
    provider.start().expect("it starts");
    assert_eq!(provider.page_size(), TrackingPageSize::K16, "as the log has chosen");
    *log.pending.lock().expect("no panic") = true;
    let found = harvest(&mut provider, page(0)..page(64)).expect("reported");
    assert_eq!(found, [20, 21, 22, 23]);
    assert_eq!(harvest(&mut provider, page(5)..page(7)).expect("reported"), [0u64; 0]);
    provider.stop().expect("it stops");
    assert_eq!(
        *log.calls.lock().expect("no panic"),
        ["start 1 4K", "report 0..64 16K", "report 4..8 16K", "stop "]
    );
}

#[test]
fn started_twice_stopped_twice_and_asked_while_off() {
    let log = Arc::new(Fake::default());
    let mut provider = provider(&log, vec![page(0)..page(64)]);
    let kind = ProviderKind::Device;
    let off = |error: &ProviderError| matches!(error, ProviderError::NotStarted { provider } if *provider == kind);
    assert!(off(&harvest(&mut provider, page(0)..page(64)).expect_err("off")));
    assert!(off(&provider.stop().expect_err("off")));
    provider.start().expect("it starts");
    let twice = provider.start().expect_err("on");
    assert!(matches!(twice, ProviderError::AlreadyStarted { .. }));
    provider.stop().expect("it stops");
    assert!(off(&provider.stop().expect_err("off")));
    let calls = log.calls.lock().expect("no panic").len();
    assert_eq!(calls, 2, "the log itself was asked once each");
}

#[test]
fn bad_ranges_do_not_reach_the_log() {
    let log = Arc::new(Fake::default());
    let mut provider = provider(&log, vec![page(8)..page(9), page(0)..page(4)]);
    let error = provider.start().expect_err("unsorted");
    assert!(matches!(
        error,
        ProviderError::LogRanges { source: LogRangesError::Unsorted { .. }, .. }
    ));
    assert!(log.calls.lock().expect("no panic").is_empty());
}

#[test]
fn a_failure_names_the_device_and_keeps_its_cause() {
    for (action, provider_is_on) in [("start", false), ("report", true), ("stop", false)] {
        let log = Arc::new(Fake::default());
        let mut provider = provider(&log, vec![page(0)..page(64)]);
        *log.fails.lock().expect("no panic") = Some(action);
        let error = match action {
            "start" => provider.start(),
            "report" => {
                provider.start().expect("it starts");
                harvest(&mut provider, page(0)..page(64)).map(drop)
            }
            _ => {
                provider.start().expect("it starts");
                provider.stop()
            }
        };
        let error = error.expect_err(action);
        assert_eq!(error.to_string(), format!("The log of device 00:01.0 failed to {action}"));
        let cause = std::error::Error::source(&error).expect("a cause");
        assert_eq!(cause.to_string(), "broken");
        assert_eq!(provider.stop().is_ok(), provider_is_on, "{action}");
    }
}

#[test]
fn a_log_is_not_left_running() {
    let log = Arc::new(Fake::default());
    let mut provider = provider(&log, vec![page(0)..page(64)]);
    provider.start().expect("it starts");
    drop(provider);
    assert_eq!(*log.calls.lock().expect("no panic"), ["start 1 4K", "stop "]);
}
