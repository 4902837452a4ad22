//! Machine state from a peer that means no good: every lie is refused by name, or is one that a
//! guest could have told its own processor. Nothing hangs, nothing panics.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{LONG, asm, machine, over, skipped};
use drogher_machine::console::ConsoleConfig;
use drogher_machine::machine::Machine;
use drogher_machine::memory::GuestRam;
use drogher_machine::record::{Reader, StateError, Tag, Writer, stable_parts};
use drogher_machine::vcpu::msrs::MsrError;

type Record = (Tag, u16, Vec<u8>);

/// A machine that has just been made, and the state of one like it as records.
struct Peer {
    ram: Arc<GuestRam>,
    records: Vec<Record>,
}

impl Peer {
    fn new() -> Self {
        let source = machine(asm::SPIN, ConsoleConfig::None);
        source.start(vec![()]).expect("it starts");
        source.pause_vcpus(LONG).expect("it stops");
        source.park_io(LONG).expect("I/O stops");
        let state = saved(&source);
        let reader = Reader::new(&state, 1).expect("it is well formed");
        let records = reader.records().map(|(tag, vcpu, bytes)| (tag, vcpu, bytes.to_vec()));
        Self { records: records.collect(), ram: Arc::clone(source.ram()) }
    }

    fn target(&self) -> Machine {
        over(&self.ram, 1, ConsoleConfig::None)
    }

    /// The state with one record changed.
    fn with(&self, tag: Tag, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut records = self.records.clone();
        let record = records.iter_mut().find(|record| record.0 == tag).expect("it is there");
        change(&mut record.2);
        state(&records)
    }
}

fn state(records: &[Record]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut writer = Writer::new(&mut out, 1);
    records.iter().for_each(|(tag, vcpu, bytes)| writer.put(*tag, *vcpu, bytes));
    out
}

fn saved(machine: &Machine) -> Vec<u8> {
    let mut state = machine.state_buffer();
    machine.save_cpu_state(&mut state).expect("it is saved");
    state
}

#[test]
fn every_record_has_to_be_there_once_and_whole_before_any_is_taken() {
    if skipped("every_record_has_to_be_there_once_and_whole_before_any_is_taken") {
        return;
    }
    let peer = Peer::new();
    let target = peer.target();
    let fresh = stable_parts(&saved(&target), 1).expect("records");
    let refused = |what: String, state: &[u8]| {
        let error = target.load_cpu_state(state).expect_err(&what);
        // A refusal for form comes before anything is set.
        let now = stable_parts(&saved(&target), 1).expect("records");
        assert_eq!(now, fresh, "{what}: refused ({error}) and yet taken in part");
        error
    };
    for (at, (tag, _, bytes)) in peer.records.iter().enumerate() {
        let mut without = peer.records.clone();
        without.remove(at);
        let error = refused(format!("{tag:?} is missing"), &state(&without));
        assert!(error.to_string().contains("without"), "{tag:?}: {error}");
        let twice = state(&[&peer.records[..], &[(*tag, 0, bytes.clone())]].concat());
        let error = refused(format!("{tag:?} comes twice"), &twice);
        assert!(matches!(error, StateError::Superfluous { .. }), "{tag:?}: {error}");
        let mut elsewhere = peer.records.clone();
        elsewhere[at].1 = 1;
        let error = refused(format!("{tag:?} of vCPU 1"), &state(&elsewhere));
        assert!(matches!(error, StateError::Superfluous { vcpu: 1, .. }), "{tag:?}: {error}");
        // The console's record may be longer: it has the received bytes at its end.
        let longest = if *tag == Tag::Serial { 9 + 65 } else { bytes.len() + 1 };
        for len in [0, 1, bytes.len().saturating_sub(1), longest, 1 << 20] {
            let usual = len == bytes.len() || *tag == Tag::Cmos && len == 1;
            if usual || *tag == Tag::Serial && (9..=9 + 64).contains(&len) {
                continue;
            }
            let error = refused(
                format!("{tag:?} of {len} bytes"),
                &peer.with(*tag, |bytes| bytes.resize(len, 0)),
            );
            let by_name = match &error {
                StateError::Size { tag: named, .. } => named == tag,
                StateError::Device { device, .. } => *device == "serial console",
                StateError::Msr(_) => *tag == Tag::Msrs,
                _ => false,
            };
            assert!(by_name, "{tag:?} of {len} bytes: {error}");
        }
    }
    let old = peer.records.iter().find(|record| record.0 == Tag::Sregs2);
    if old.is_some() {
        // struct kvm_sregs is eight bytes longer than its successor without the PDPTRs.
        let both = [&peer.records[..], &[(Tag::Sregs, 0, vec![0; 312])]].concat();
        let error = refused("both kinds of sregs".into(), &state(&both));
        assert!(matches!(error, StateError::Superfluous { tag: Tag::Sregs, .. }), "{error}");
    }
    target.load_cpu_state(&state(&peer.records)).expect("the truth is taken");
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    if skipped("what_makes_no_sense_is_refused_by_name") {
        return;
    }
    let peer = Peer::new();
    let target = peer.target();
    let load = |tag, change: &dyn Fn(&mut Vec<u8>)| {
        let refused = target.load_cpu_state(&peer.with(tag, |bytes| change(bytes)));
        refused.expect_err("it makes no sense")
    };
    let unknown = load(Tag::Msrs, &|bytes| put(bytes, 0, &0xDEAD_u32.to_le_bytes()));
    assert!(matches!(unknown, StateError::Msr(MsrError::Refused(0xDEAD))), "{unknown}");
    let twice = load(Tag::Msrs, &|bytes| {
        let first = bytes[..16].to_vec();
        put(bytes, 16, &first);
    });
    assert!(matches!(twice, StateError::Msr(MsrError::Twice(_))), "{twice}");
    let missing = load(Tag::Msrs, &|bytes| bytes.truncate(bytes.len() - 16));
    assert!(matches!(missing, StateError::Msr(MsrError::Missing(_))), "{missing}");
    let extra = load(Tag::Msrs, &|bytes| bytes.extend_from_slice(&[0xEE; 16]));
    assert!(matches!(extra, StateError::Msr(MsrError::Refused(0xEEEE_EEEE))), "{extra}");

    // A PIT channel of 24 bytes: count at 0, access mode, mode, BCD and gate from 12 on.
    for (at, value) in
        [(0, 0), (2, 0xFF), (24 + 3, 1), (48, 0), (12, 4), (24 + 13, 6), (14, 2), (48 + 15, 2)]
    {
        let pit = load(Tag::Pit, &|bytes| {
            if at % 24 == 0 {
                put(bytes, at, &[0; 4]);
            }
            bytes[at] = value;
        });
        assert!(matches!(pit, StateError::Value { tag: Tag::Pit, .. }), "{at} {value}: {pit}");
    }
    let ioapic = load(Tag::IoApic, &|bytes| put(bytes, 8, &0x10_0000_u64.to_le_bytes()));
    assert!(matches!(ioapic, StateError::Value { tag: Tag::IoApic, .. }), "{ioapic}");

    // struct kvm_sregs2: eight segments and two tables, then CR0, CR2, CR3, CR4, CR8, EFER.
    let (cr4, efer) = (8 * 24 + 2 * 16 + 3 * 8, 8 * 24 + 2 * 16 + 5 * 8);
    if peer.records.iter().any(|record| record.0 == Tag::Sregs2) {
        for (at, bit) in [(cr4 + 1, 0x20), (efer + 1, 0x10)] {
            let nested = load(Tag::Sregs2, &|bytes| bytes[at] |= bit);
            assert!(matches!(nested, StateError::Nested { vcpu: 0 }), "{nested}");
        }
    }
    // Offset, value and host's TSC, u64 each; then kHz and the flag, u32 each.
    let khz = load(Tag::Tsc, &|bytes| put(bytes, 24, &1_u32.to_le_bytes()));
    assert!(matches!(khz, StateError::TscFrequency { saved: 1, .. }), "{khz}");
    let flag = load(Tag::Tsc, &|bytes| put(bytes, 28, &2_u32.to_le_bytes()));
    assert!(matches!(flag, StateError::Value { tag: Tag::Tsc, .. }), "{flag}");
    target.load_cpu_state(&state(&peer.records)).expect("the truth is taken");
}

/// What no check of ours catches goes to KVM. It refuses, or the guest is a broken one, which is
/// stopped as any other.
#[test]
fn absurd_contents_are_refused_or_stopped_in_time() {
    if skipped("absurd_contents_are_refused_or_stopped_in_time") {
        return;
    }
    let peer = Peer::new();
    let (mut taken, mut refused) = (0, 0);
    for (tag, _, bytes) in &peer.records {
        for fill in [0x00, 0xFF, 0x5A] {
            for range in [0..bytes.len(), 0..bytes.len() / 2, bytes.len() / 2..bytes.len()] {
                let target = peer.target();
                let bad = peer.with(*tag, |bytes| bytes[range.clone()].fill(fill));
                match target.load_cpu_state(&bad) {
                    Err(error) => {
                        refused += 1;
                        assert!(!error.to_string().is_empty());
                    }
                    Ok(()) => {
                        taken += 1;
                        target.unpark_io().expect("I/O goes on");
                        target.start(vec![()]).expect("it starts");
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                let what = format!("{tag:?}, {range:?} filled with {fill:#x}");
                target.stop(LONG).unwrap_or_else(|error| panic!("{what}: {error}"));
            }
        }
    }
    assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
}
