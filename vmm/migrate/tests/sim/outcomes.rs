//! Runs without a fault, and what they report.

use std::time::Duration;

use drogher_migrate::{
    Blocker, BlockerCode, DestinationOutcome, Error, Phase, Side, SourceOptions, SourceOutcome,
    TimeoutStrategy,
};

use super::guest::{BUSY, HIGH_PAGES, LOW_PAGES, Load};
use super::run::{LIMIT, Setup, deadlines, run};

#[test]
fn a_busy_guest_moves_whole_for_many_seeds() {
    for seed in 0..40 {
        let ended = run(&Setup { seed, ..Setup::default() });
        let (outcome, report) = ended.source.unwrap();
        assert!(
            matches!(outcome, SourceOutcome::Moved { confirmed: true }),
            "seed {seed}: {outcome:?}"
        );
        let (outcome, received) = ended.destination.unwrap();
        assert!(matches!(outcome, DestinationOutcome::Runs { paused: false, told: true }));
        // The bulk pass, at least one round, and what the stop sent.
        assert!(report.rounds.len() >= 2);
        assert_eq!(report.rounds[0].pages, LOW_PAGES + HIGH_PAGES);
        let rounds: u64 = report.rounds.iter().map(|r| r.pages).sum();
        assert_eq!(rounds + report.downtime.pages, report.pages);
        assert_eq!((report.pages, report.zero_pages), (received.pages, received.zero_pages));
        assert!(report.zero_pages > LOW_PAGES / 2, "holes are sent as zero pages");
        assert!(report.downtime.pages >= 2, "saving has dirtied two pages");
        assert!(report.downtime.total_us > 0 && report.downtime.total_us < 1_000_000);
        let round = report.rounds[1];
        assert!(round.dirty_by_cpu > 0 && round.dirty_by_dma > 0);
        assert!(Duration::from_micros(report.forecast.unwrap().downtime_us) <= LIMIT);
    }
}

#[test]
fn verification_compares_everything_and_finds_no_difference() {
    for hash_pages in [true, false] {
        let mut setup = Setup::default();
        setup.options.verify = true;
        setup.options.hash_pages = hash_pages;
        let ended = run(&setup);
        let (outcome, report) = ended.source.unwrap();
        assert!(matches!(outcome, SourceOutcome::Moved { confirmed: true }));
        let verified = report.verified.unwrap();
        assert_eq!(verified.pages, LOW_PAGES + HIGH_PAGES);
        assert_eq!((verified.differing, verified.states), (0, 2));
        assert_eq!(verified.differing_states, Vec::<String>::new());
        assert_eq!(ended.destination.unwrap().1.verified.unwrap(), verified);
        // Hashing is no part of the downtime.
        assert!(report.downtime.verify_us > 0);
        let terms = report.downtime;
        let sum = terms.pause_us
            + terms.quiesce_us
            + terms.stop_us
            + terms.final_us
            + terms.state_us
            + terms.last_us
            + terms.ready_us
            + terms.commit_us;
        assert!(sum.abs_diff(terms.total_us) <= 10, "{terms:?}");
    }
}

/// Zeroes take no room in a record, so a host that reads gigabytes of them would send nothing for
/// longer than the destination waits.
#[test]
fn a_long_stretch_of_zeroes_is_not_taken_for_silence() {
    let ended = run(&Setup { prepare: |source, _| source.slow_reads = 200, ..Setup::default() });
    let (outcome, report) = ended.source.unwrap();
    assert!(matches!(outcome, SourceOutcome::Moved { confirmed: true }), "{outcome:?}");
    assert!(report.total_us > 20_000_000);
}

#[test]
fn a_destination_shows_what_has_come_while_it_comes() {
    let ended = run(&Setup {
        prepare: |source, _| source.slow_reads = 200,
        at: |side, phase, _, destination| {
            // The bulk pass is over, and no phase of the destination has ended since its first page.
            if (side, phase) == (Side::Source, Phase::Harvest) {
                let status = destination.status();
                let pages = status.ram.normal + status.ram.duplicate;
                assert!(pages > (LOW_PAGES + HIGH_PAGES) / 2, "{status:?}");
                assert!(status.ram.transferred > status.ram.normal_bytes, "{status:?}");
                assert_eq!(status.drogher.side, Some(Side::Destination));
            }
        },
        ..Setup::default()
    });
    assert!(ended.world.lock().has_reached(Side::Source, Phase::Harvest));
}

#[test]
fn a_paused_guest_moves_and_arrives_paused() {
    let ended = run(&Setup { prepare: |source, _| source.paused = true, ..Setup::default() });
    assert!(matches!(ended.source.unwrap().0, SourceOutcome::Moved { confirmed: true }));
    assert!(matches!(ended.destination.unwrap().0, DestinationOutcome::Runs { paused: true, .. }));
    assert_eq!(ended.arrived_paused, Some(true));
}

#[test]
fn a_destination_refuses_with_every_reason_before_ram_moves() {
    let ended = run(&Setup {
        prepare: |_, destination| {
            destination.blockers = vec![
                Blocker::new(BlockerCode::Cpu, "too many", "use fewer"),
                Blocker::new(BlockerCode::PluginMissing, "no such", "install it")
                    .about("00:01.0 drogher.test"),
            ];
        },
        retry: true,
        ..Setup::default()
    });
    let (outcome, report) = ended.source.unwrap();
    let SourceOutcome::Stays { why: Error::Refused(blockers) } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(blockers.0.len(), 2);
    assert!(blockers.to_string().contains("plugin-missing (00:01.0 drogher.test)"));
    assert_eq!(report.pages, 0);
    assert!(ended.retried);
    let (outcome, _) = ended.destination.unwrap();
    assert!(matches!(outcome, DestinationOutcome::NotTaken { why: Error::Refused(_) }));
}

fn too_busy(strategy: TimeoutStrategy, timeout: Duration) -> Setup {
    Setup {
        load: Load { vcpu: 30, working_set: 3000, ..BUSY },
        options: SourceOptions {
            downtime: Duration::from_micros(800),
            timeout,
            timeout_strategy: strategy,
            deadlines: deadlines(),
            ..SourceOptions::default()
        },
        ..Setup::default()
    }
}

#[test]
fn a_guest_that_dirties_too_fast_is_given_up_or_forced() {
    let hour = Duration::from_secs(3600);
    let ended = run(&too_busy(TimeoutStrategy::Cancel, hour));
    let (outcome, _) = ended.source.unwrap();
    assert!(
        matches!(outcome, SourceOutcome::Stays { why: Error::NotConverging { .. } }),
        "{outcome:?}"
    );
    assert!(matches!(
        ended.destination.unwrap().0,
        DestinationOutcome::NotTaken { why: Error::Peer { .. } }
    ));
    let ended = run(&too_busy(TimeoutStrategy::Ignore, hour));
    let (outcome, report) = ended.source.unwrap();
    assert!(matches!(outcome, SourceOutcome::Moved { confirmed: true }));
    assert!(report.forecast.unwrap().downtime_us > 800);
}

/// 40 MiB at the end, on a link that takes 4 s for them: longer than a stop may take by itself.
#[test]
fn a_long_downtime_is_possible_for_who_wants_it() {
    let mut setup = too_busy(TimeoutStrategy::Ignore, Duration::from_millis(1));
    setup.load = Load { vcpu: 300, dma: 1, working_set: 12_000 };
    setup.prepare = |source, _| source.world.lock().slow_link = true;
    let ended = run(&setup);
    let (outcome, report) = ended.source.unwrap();
    assert!(matches!(outcome, SourceOutcome::Moved { confirmed: true }), "{outcome:?}");
    assert!(report.downtime.total_us > 3_000_000, "{:?}", report.downtime);
}

#[test]
fn the_time_limit_cancels_or_forces() {
    let short = Duration::from_millis(20);
    let ended = run(&too_busy(TimeoutStrategy::Cancel, short));
    let (outcome, _) = ended.source.unwrap();
    assert!(matches!(outcome, SourceOutcome::Stays { why: Error::Timeout { .. } }), "{outcome:?}");
    assert!(ended.retried);
    let ended = run(&too_busy(TimeoutStrategy::Ignore, short));
    assert!(matches!(ended.source.unwrap().0, SourceOutcome::Moved { confirmed: true }));
}
