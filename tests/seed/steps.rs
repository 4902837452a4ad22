//! The seven steps, in a migration of a running guest whose device does DMA, and row 33: they are
//! phases with names.

use std::sync::OnceLock;

use drogher_control::api::MigrateLine;
use drogher_migrate::Report;
use drogher_migrate::phase::Phase;
use drogher_migrate::report::Event;
use drogher_tests::{Place, kvm};

/// DMA so often that there is some between any two harvests.
const LOAD: &str = "ws=32M rate=2000 dma=on dma_rate=4000 status_ms=200";

/// One migration under load, with every page compared.
struct Seen {
    /// Phases in the order in which they began, with their rounds.
    phases: Vec<(Phase, u32)>,
    report: Report,
    /// Pages that differ, as verification found.
    differing: u64,
}

impl Seen {
    fn first(&self, phase: Phase) -> usize {
        let found = self.phases.iter().position(|(other, _)| *other == phase);
        found.unwrap_or_else(|| panic!("no phase {phase:?} in {:?}", self.phases))
    }

    fn last(&self, phase: Phase) -> usize {
        let found = self.phases.iter().rposition(|(other, _)| *other == phase);
        found.unwrap_or_else(|| panic!("no phase {phase:?} in {:?}", self.phases))
    }
}

/// The migration, made once for all steps. `None` without KVM, which is said.
fn seen(test: &str) -> Option<&'static Seen> {
    static SEEN: OnceLock<Seen> = OnceLock::new();
    kvm(test).then(|| SEEN.get_or_init(|| migrate().expect("a guest that moves")))
}

fn migrate() -> anyhow::Result<Seen> {
    let place = Place::new();
    let mut source = place.run("source", LOAD, &[], &[])?;
    let mut destination = place.receive("destination", &[], &[])?;
    source.progress(3)?;
    // A limit that no forecast meets at once: there is more than one round.
    let migration = place.migrate(&source, &destination, &["--verify", "--downtime-ms", "5"])?;
    destination.progress(3)?;
    let (mut phases, mut differing) = (Vec::new(), None);
    for line in &migration.lines {
        match line {
            MigrateLine::Event { of: Event::Phase { phase, round, .. } } => {
                phases.push((*phase, *round));
            }
            MigrateLine::Event { of: Event::Verified(verified) } => {
                anyhow::ensure!(verified.differing_states.is_empty(), "{verified:?}");
                differing = Some(verified.differing);
            }
            _ => {}
        }
    }
    let report = migration.expect_moved()?;
    Ok(Seen { phases, report, differing: differing.expect("it was verified") })
}

#[test]
fn step_1_tracking_is_on_before_the_first_page_is_copied() {
    let Some(seen) = seen("step_1") else { return };
    assert!(seen.first(Phase::TrackStart) < seen.first(Phase::Bulk));
    assert_eq!(seen.last(Phase::TrackStart), seen.first(Phase::TrackStart), "and once");
    let bulk = seen.report.rounds[0];
    assert_eq!(bulk.pages, 64 << 20 >> 12, "every page of 64 MiB");
}

#[test]
fn step_2_device_state_is_read_while_the_device_runs() {
    let Some(seen) = seen("step_2") else { return };
    assert!(seen.first(Phase::DevicePrecopy) < seen.first(Phase::PauseVcpus));
    let early: u64 = seen.report.rounds.iter().map(|round| round.device_bytes).sum();
    assert!(early > 0, "nothing of the device was sent before the stop");
    assert!(early < seen.report.device_bytes, "and the rest after it");
}

#[test]
fn step_3_logs_are_read_and_cleared_while_everything_runs() {
    let Some(seen) = seen("step_3") else { return };
    assert!(seen.first(Phase::Bulk) < seen.first(Phase::Harvest));
    assert!(seen.first(Phase::Harvest) < seen.first(Phase::PauseVcpus));
    let by_dma: u64 = seen.report.rounds.iter().map(|round| round.dirty_by_dma).sum();
    assert!(by_dma > 0, "the device has written, and was seen: {:?}", seen.report.rounds);
}

#[test]
fn step_4_what_was_dirtied_is_sent_again_round_by_round() {
    let Some(seen) = seen("step_4") else { return };
    let rounds = &seen.report.rounds;
    assert!(rounds.len() >= 2, "{rounds:?}");
    for (number, round) in (0..).zip(rounds) {
        assert_eq!(round.round, number);
    }
    for round in &rounds[1..] {
        assert!(round.pages > 0 && round.pages <= round.dirty_by_cpu + round.dirty_by_dma);
    }
    // Each harvest is followed by its resend, before the next one.
    let harvests = seen.phases.iter().filter(|(phase, _)| *phase == Phase::Harvest).count();
    let resends = seen.phases.iter().filter(|(phase, _)| *phase == Phase::Resend).count();
    assert_eq!(harvests, resends);
}

#[test]
fn step_5_all_devices_are_quiet_before_any_is_stopped() {
    let Some(seen) = seen("step_5") else { return };
    let order = [Phase::PauseVcpus, Phase::Quiesce, Phase::Stop, Phase::FinalHarvest];
    let at: Vec<_> = order.iter().map(|phase| seen.first(*phase)).collect();
    assert!(at.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", seen.phases);
    assert_eq!(seen.last(Phase::Quiesce), seen.first(Phase::Quiesce));
}

#[test]
fn step_6_after_the_last_harvest_no_page_is_dirty() {
    let Some(seen) = seen("step_6") else { return };
    assert!(seen.first(Phase::Stop) < seen.first(Phase::FinalHarvest));
    assert!(seen.first(Phase::DeviceState) < seen.first(Phase::LastHarvest));
    assert_eq!(seen.differing, 0, "pages that nobody reported");
}

#[test]
fn step_7_device_state_is_sent_to_its_end_and_arrives() {
    let Some(seen) = seen("step_7") else { return };
    assert!(seen.first(Phase::FinalHarvest) < seen.first(Phase::DeviceState));
    assert!(seen.first(Phase::LastHarvest) < seen.first(Phase::Commit));
    // The state was compared as a whole when it was verified, see `migrate`.
    assert!(seen.report.device_bytes > 0);
}

#[test]
fn seed_33_the_progression_is_a_machine_of_named_phases() {
    let Some(seen) = seen("seed_33") else { return };
    let order = [
        Phase::Setup,
        Phase::TrackStart,
        Phase::Bulk,
        Phase::Harvest,
        Phase::Resend,
        Phase::PauseVcpus,
        Phase::Quiesce,
        Phase::Stop,
        Phase::FinalHarvest,
        Phase::DeviceState,
        Phase::LastHarvest,
        Phase::Ready,
        Phase::Commit,
        Phase::Running,
    ];
    let at: Vec<_> = order.iter().map(|phase| seen.first(*phase)).collect();
    assert!(at.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", seen.phases);
    assert!(!seen.phases.iter().any(|(phase, _)| *phase == Phase::Rollback));
}
