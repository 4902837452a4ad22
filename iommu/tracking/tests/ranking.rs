//! One trace of DMA through every provider: what each reports, harvest by harvest, against the
//! others. No report is smaller than what was written, and a wider class never reports less.

mod common;

use std::collections::BTreeSet;

use common::{Bench, Random, TestDevice, pages};
use drogher_iommu::{Iova, Oa};
use drogher_iommu_types::{Gpa, PAGE_SIZE};
use drogher_tracking::PinAccess;

/// 4 MiB.
const COUNT: u64 = 1024;

/// What a device does, in order.
enum Step {
    /// A buffer becomes the device's, for as long as it may write to it.
    Lend(std::ops::Range<u64>),
    /// It is given back.
    Return(std::ops::Range<u64>),
    /// Bytes written, from an address on; inside a buffer lent.
    Write(u64, usize),
    Harvest,
}

/// Buffers of some pages; writes inside them, most to the same few places; harvests now and then.
fn record() -> Vec<Step> {
    let mut random = Random(11);
    let mut steps = Vec::new();
    let mut lent: Vec<std::ops::Range<u64>> = Vec::new();
    for _ in 0..3000 {
        match random.below(20) {
            0 | 1 if lent.len() < 12 => {
                let start = random.below(COUNT - 20);
                let buffer = start..start + 1 + random.below(20);
                if lent.iter().all(|other| other.end <= buffer.start || buffer.end <= other.start) {
                    lent.push(buffer.clone());
                    steps.push(Step::Lend(buffer));
                }
            }
            2 if !lent.is_empty() => {
                let at = usize::try_from(random.below(lent.len() as u64)).expect("small");
                steps.push(Step::Return(lent.swap_remove(at)));
            }
            3 if random.below(4) == 0 => steps.push(Step::Harvest),
            _ if !lent.is_empty() => {
                let at = usize::try_from(random.below(lent.len() as u64)).expect("small");
                let buffer = &lent[at];
                let bytes = (buffer.end - buffer.start) * PAGE_SIZE;
                let offset = random.below(bytes);
                let len = (1 + random.below(6000)).min(bytes - offset);
                let len = usize::try_from(len).expect("small");
                steps.push(Step::Write(buffer.start * PAGE_SIZE + offset, len));
            }
            _ => {}
        }
    }
    steps.push(Step::Harvest);
    steps
}

/// Runs the trace; returns the pages of each harvest.
fn replay(trace: &[Step], choice: &str) -> Vec<BTreeSet<u64>> {
    let bench = Bench::new(COUNT);
    let device =
        if choice.starts_with("provider=pinned") { bench.pinning(1) } else { bench.logging(1) };
    bench.tracked.start(&bench.plan(choice, &[])).expect("started");
    let mut reports = Vec::new();
    for step in trace {
        match step {
            Step::Lend(buffer) => pin(&device, |board| {
                board.pin(pages(buffer.clone()), PinAccess::Write).expect("inside");
            }),
            Step::Return(buffer) => pin(&device, |board| {
                board.unpin(pages(buffer.clone()), PinAccess::Write).expect("pinned");
            }),
            Step::Write(at, len) => write(&device, *at, &vec![1; *len]),
            Step::Harvest => reports.push(bench.harvest().into_iter().collect()),
        }
    }
    reports
}

fn pin(device: &TestDevice, act: impl FnOnce(&drogher_tracking::PinBoard)) {
    if let Some(board) = &device.pins {
        act(board);
    }
}

fn write(device: &TestDevice, at: u64, data: &[u8]) {
    if device.pins.is_some() {
        device.memory.write(Oa(at), data).expect("inside");
        return;
    }
    device.requester.write(Iova(at), data).expect("mapped");
    if let Some(log) = &device.log {
        log.mark(Gpa(at)..Gpa(at + data.len() as u64));
    }
}

/// The pages that the trace writes to between harvests.
fn truth(trace: &[Step]) -> Vec<BTreeSet<u64>> {
    let mut all = Vec::new();
    let mut now = BTreeSet::new();
    for step in trace {
        match step {
            Step::Write(at, len) => {
                now.extend(at / PAGE_SIZE..(at + *len as u64).div_ceil(PAGE_SIZE));
            }
            Step::Harvest => all.push(std::mem::take(&mut now)),
            Step::Lend(_) | Step::Return(_) => {}
        }
    }
    all
}

fn sent(reports: &[BTreeSet<u64>]) -> usize {
    reports.iter().map(BTreeSet::len).sum()
}

fn inside(small: &[BTreeSet<u64>], large: &[BTreeSet<u64>]) -> bool {
    small.len() == large.len() && small.iter().zip(large).all(|(a, b)| a.is_subset(b))
}

#[test]
fn one_trace_through_every_provider() {
    let trace = record();
    let written = truth(&trace);
    assert!(written.len() > 10 && sent(&written) > 500, "a trace worth the name");

    let exact = replay(&trace, "provider=iommu");
    assert_eq!(exact, written, "exact at 4K is what was written, and nothing else");
    let mut sizes = vec![sent(&exact)];
    for provider in ["iommu", "fault", "device"] {
        let at = |size: &str| replay(&trace, &format!("provider={provider},page-size={size}"));
        let by_size = ["4K", "16K", "64K", "2M"].map(at);
        assert_eq!(by_size[0], exact, "{provider} tells the same as D bits");
        for (smaller, larger) in by_size.iter().zip(&by_size[1..]) {
            assert!(inside(smaller, larger), "{provider}: a larger page has more");
        }
        assert!(sent(&by_size[0]) < sent(&by_size[2]), "and 64K does cost something here");
        sizes.push(sent(&by_size[2]));
    }
    let pinned = replay(&trace, "provider=pinned");
    let all = replay(&trace, "provider=all");
    assert!(inside(&exact, &pinned) && inside(&pinned, &all));
    assert!(sent(&exact) < sent(&pinned) && sent(&pinned) < sent(&all));
    assert!(all.iter().all(|report| report.len() as u64 == COUNT));
    println!(
        "harvests={} exact, 64K={sizes:?} pinned={} all={}",
        all.len(),
        sent(&pinned),
        sent(&all)
    );
}
