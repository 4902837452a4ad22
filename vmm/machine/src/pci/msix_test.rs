use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Delivers by the routes that it was given, and keeps what it delivered.
#[derive(Default)]
struct Sink {
    routes: RefCell<BTreeMap<u16, MsixMessage>>,
    sent: RefCell<Vec<MsixMessage>>,
    updates: Cell<usize>,
    /// Messages to this address are refused.
    bad: Cell<u64>,
}

impl MsixSink for Sink {
    fn route(&self, routes: &[(u16, MsixMessage)]) -> Result<(), RouteRefused> {
        self.updates.set(self.updates.get() + 1);
        for &(vector, MsixMessage { address, .. }) in routes {
            if address == self.bad.get() {
                return Err(RouteRefused::Address { vector, address });
            }
        }
        self.routes.borrow_mut().extend(routes.iter().copied());
        Ok(())
    }

    fn signal(&self, vector: u16) -> Result<(), RouteRefused> {
        let routes = self.routes.borrow();
        let message = routes.get(&vector).expect("never signalled without a route");
        self.sent.borrow_mut().push(*message);
        Ok(())
    }
}

fn sink() -> Sink {
    let sink = Sink::default();
    sink.bad.set(u64::MAX);
    sink
}

const ADDRESS: u64 = 0xfee0_0000;

/// Writes the message of a vector, then its control dword, as a guest does.
fn set(table: &mut MsixTable, sink: &Sink, vector: u64, data: u32, masked: bool) {
    let at = vector * 16;
    table.write_table(at, &(ADDRESS as u32).to_le_bytes(), sink);
    table.write_table(at + 4, &0_u32.to_le_bytes(), sink);
    table.write_table(at + 8, &data.to_le_bytes(), sink);
    table.write_table(at + 12, &u32::from(masked).to_le_bytes(), sink);
}

/// Three vectors with data 0x40.., unmasked, MSI-X and bus master on.
fn running(sink: &Sink) -> MsixTable {
    let mut table = MsixTable::new(3);
    table.set_control(true, false, true, sink);
    for vector in 0..3_u32 {
        set(&mut table, sink, vector.into(), 0x40 + vector, false);
    }
    table
}

fn sent(sink: &Sink) -> Vec<u32> {
    sink.sent.borrow_mut().drain(..).map(|message| message.data).collect()
}

fn word(table: &MsixTable, offset: u64) -> u32 {
    let mut data = [0; 4];
    table.read_table(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn power_on_is_masked_and_drops() {
    let sink = sink();
    let mut table = MsixTable::new(2);
    assert_eq!(word(&table, 12), 1);
    assert_eq!(table.trigger(0, &sink), Trigger::Dropped, "MSI-X is off");
    table.set_control(true, false, false, &sink);
    assert_eq!(table.trigger(0, &sink), Trigger::Dropped, "bus master is off");
    assert!(!table.is_pending(0));
    assert_eq!(table.counts(), MsixCounts { dropped: 2, ..MsixCounts::default() });
}

#[test]
fn an_unmasked_vector_sends_its_message() {
    let sink = sink();
    let mut table = running(&sink);
    assert_eq!(table.trigger(1, &sink), Trigger::Sent);
    assert_eq!(table.trigger(2, &sink), Trigger::Sent);
    assert_eq!(table.trigger(3, &sink), Trigger::Dropped, "there is no vector 3");
    assert_eq!(table.trigger(u16::MAX, &sink), Trigger::Dropped);
    assert_eq!(sent(&sink), [0x41, 0x42]);
}

#[test]
fn a_masked_vector_waits_for_its_unmasking() {
    let sink = sink();
    let mut table = running(&sink);
    table.write_table(16 + 12, &1_u32.to_le_bytes(), &sink);
    assert_eq!(table.trigger(1, &sink), Trigger::Pending);
    assert_eq!(table.trigger(1, &sink), Trigger::Pending);
    let mut pba = [0; 8];
    table.read_pending(0, &mut pba);
    assert_eq!(pba, [2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(sent(&sink).is_empty());
    table.write_table(16 + 12, &0_u32.to_le_bytes(), &sink);
    assert_eq!(sent(&sink), [0x41], "once, however often it was asked for");
    assert!(!table.is_pending(1));
}

#[test]
fn the_function_mask_holds_all() {
    let sink = sink();
    let mut table = running(&sink);
    table.set_control(true, true, true, &sink);
    table.trigger(0, &sink);
    table.trigger(2, &sink);
    set(&mut table, &sink, 2, 0x42, true);
    table.set_control(true, false, true, &sink);
    assert_eq!(sent(&sink), [0x40], "vector 2 is masked itself now");
    assert!(table.is_pending(2));
    set(&mut table, &sink, 2, 0x52, false);
    assert_eq!(sent(&sink), [0x52], "with its new message");
}

#[test]
fn pending_waits_for_the_bus_master_bit() {
    let sink = sink();
    let mut table = running(&sink);
    table.set_control(true, true, true, &sink);
    table.trigger(0, &sink);
    table.set_control(true, false, false, &sink);
    assert!(sent(&sink).is_empty());
    table.set_control(true, false, true, &sink);
    assert_eq!(sent(&sink), [0x40]);
}

#[test]
fn a_message_change_while_unmasked_is_followed() {
    let sink = sink();
    let mut table = running(&sink);
    let updates = sink.updates.get();
    table.trigger(0, &sink);
    assert_eq!(sink.updates.get(), updates, "no routing on the hot path");
    table.write_table(8, &0x77_u32.to_le_bytes(), &sink);
    table.trigger(0, &sink);
    assert_eq!(sent(&sink), [0x40, 0x77]);
}

#[test]
fn a_message_that_leads_nowhere_is_dropped_and_costs_no_other() {
    let sink = sink();
    sink.bad.set(ADDRESS | 0x1000);
    let mut table = running(&sink);
    table.write_table(0, &(ADDRESS | 0x1000).to_le_bytes(), &sink);
    assert_eq!(table.trigger(0, &sink), Trigger::Dropped);
    let updates = sink.updates.get();
    assert_eq!(table.trigger(0, &sink), Trigger::Dropped);
    assert_eq!(sink.updates.get(), updates, "a refused message is not tried for ever");
    table.disconnect();
    table.connect(&sink);
    assert_eq!(table.trigger(1, &sink), Trigger::Sent);
    table.write_table(0, &ADDRESS.to_le_bytes(), &sink);
    assert_eq!(table.trigger(0, &sink), Trigger::Sent, "a good address mends it");
}

#[test]
fn interrupts_are_held_while_disconnected() {
    let sink = sink();
    let mut table = running(&sink);
    table.disconnect();
    assert_eq!(table.trigger(2, &sink), Trigger::Pending);
    set(&mut table, &sink, 0, 0x60, false);
    let updates = sink.updates.get();
    assert!(sent(&sink).is_empty());
    table.connect(&sink);
    assert_eq!(sink.updates.get(), updates + 1, "all routes in one update");
    assert_eq!(sent(&sink), [0x42]);
    table.trigger(0, &sink);
    assert_eq!(sent(&sink), [0x60]);
}

#[test]
fn table_accesses_of_four_and_eight_bytes() {
    let sink = sink();
    let mut table = MsixTable::new(2);
    table.write_table(16, &0x1111_2222_3333_4444_u64.to_le_bytes(), &sink);
    table.write_table(24, &0xffff_ffff_5555_6666_u64.to_le_bytes(), &sink);
    assert_eq!(word(&table, 16), 0x3333_4444);
    assert_eq!(word(&table, 20), 0x1111_2222);
    assert_eq!(word(&table, 24), 0x5555_6666);
    assert_eq!(word(&table, 28), 1, "reserved bits of vector control stay 0");
    // What the specification leaves undefined is ignored.
    for (offset, len) in [(16, 1), (16, 2), (18, 4), (20, 8), (17, 4), (16, 3), (16, 16)] {
        table.write_table(offset, &vec![0xee; len], &sink);
    }
    assert_eq!(word(&table, 16), 0x3333_4444);
    let mut odd = [0; 3];
    table.read_table(17, &mut odd);
    assert_eq!(odd, [0x44, 0x33, 0x33]);
    table.write_table(32, &[0; 4], &sink);
    table.write_table(u64::MAX - 3, &[0; 4], &sink);
    let mut end = [0xaa; 8];
    table.read_table(u64::MAX - 3, &mut end);
    assert_eq!(end[..4], [0; 4]);
}

#[test]
fn reset_forgets() {
    let sink = sink();
    let mut table = running(&sink);
    table.disconnect();
    table.trigger(0, &sink);
    table.reset();
    table.connect(&sink);
    assert!(sent(&sink).is_empty());
    assert_eq!((word(&table, 0), word(&table, 8), word(&table, 12)), (0, 0, 1));
}

fn saved(table: &MsixTable) -> Vec<u8> {
    let mut out = Writer::new();
    table.save(&mut out);
    out.finish()
}

/// Caught mutant: `masked-pending-dropped`.
#[test]
fn a_masked_vectors_pending_bit_survives_save_and_load() {
    let sink = sink();
    let mut table = running(&sink);
    set(&mut table, &sink, 1, 0x41, true);
    table.trigger(1, &sink);
    table.disconnect();
    table.trigger(2, &sink);
    let state = saved(&table);

    let arrived = self::sink();
    let mut other = MsixTable::new(3);
    other.disconnect();
    other.load(&mut Reader::new(&state)).expect("its own state");
    other.set_control(true, false, true, &arrived);
    other.connect(&arrived);
    assert_eq!(sent(&arrived), [0x42], "unmasked and pending: delivered");
    assert!(other.is_pending(1), "masked: still pending");
    set(&mut other, &arrived, 1, 0x41, false);
    assert_eq!(sent(&arrived), [0x41]);
}

#[test]
fn bad_states_are_refused_untouched() {
    let sink = sink();
    let table = running(&sink);
    let good = saved(&table);
    let mut other = MsixTable::new(3);
    for len in 0..good.len() {
        let cut = other.load(&mut Reader::new(&good[..len]));
        assert!(matches!(cut, Err(StateError::Truncated { .. })), "{len}");
    }
    let mut many = good.clone();
    many[0] = 4;
    assert_eq!(
        other.load(&mut Reader::new(&many)),
        Err(StateError::Mismatch { field: "MSI-X vectors", found: 4, here: 3 })
    );
    let mut reserved = good.clone();
    reserved[2 + 12] = 2;
    assert!(matches!(other.load(&mut Reader::new(&reserved)), Err(StateError::Invalid { .. })));
    let mut beyond = good.clone();
    beyond[2 + 3 * 16] = 8;
    assert!(matches!(other.load(&mut Reader::new(&beyond)), Err(StateError::Invalid { .. })));
    assert_eq!(word(&other, 12), 1, "still as after power-on");
}

#[derive(Clone, Debug)]
enum Act {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Trigger(u16),
    Control(bool, bool, bool),
    Hold,
    Go,
    SaveLoad,
}

fn act() -> impl Strategy<Value = Act> {
    let bytes = prop_oneof![
        Just(vec![0; 4]),
        Just(vec![1, 0, 0, 0]),
        prop::collection::vec(any::<u8>(), 4..5),
        prop::collection::vec(any::<u8>(), 0..10)
    ];
    let offset = || prop_oneof![8 => (0..20_u64).prop_map(|at| at * 4), 1 => any::<u64>()];
    prop_oneof![
        4 => (offset(), bytes).prop_map(|(at, bytes)| Act::Write(at, bytes)),
        1 => (offset(), 0..10_usize).prop_map(|(at, len)| Act::Read(at, len)),
        4 => (0..6_u16).prop_map(Act::Trigger),
        2 => any::<(bool, bool, bool)>().prop_map(|(e, m, b)| Act::Control(e, m, b)),
        1 => Just(Act::Hold),
        1 => Just(Act::Go),
        1 => Just(Act::SaveLoad),
    ]
}

proptest! {
    /// A request is sent, pending or dropped; a pending one is sent as soon as nothing holds it; and
    /// a save and a load in between change none of it.
    #[test]
    fn no_request_is_lost_or_made_up(acts in prop::collection::vec(act(), 0..150)) {
        let sink = sink();
        let mut table = MsixTable::new(4);
        let mut control = (false, false, false);
        let mut held = false;
        for act in acts {
            match act {
                Act::Write(at, bytes) => table.write_table(at, &bytes, &sink),
                Act::Read(at, len) => {
                    let mut data = vec![0; len];
                    table.read_table(at, &mut data);
                    table.read_pending(at, &mut data);
                }
                Act::Trigger(vector) => {
                    let before = sink.sent.borrow().len();
                    let was_pending = table.is_pending(vector);
                    let outcome = table.trigger(vector, &sink);
                    let sent = sink.sent.borrow().len() - before;
                    prop_assert_eq!(sent, usize::from(outcome == Trigger::Sent));
                    match outcome {
                        Trigger::Sent => prop_assert!(!table.is_pending(vector)),
                        Trigger::Pending => prop_assert!(table.is_pending(vector)),
                        Trigger::Dropped => prop_assert_eq!(table.is_pending(vector), was_pending),
                    }
                }
                Act::Control(enabled, masked, master) => {
                    control = (enabled, masked, master);
                    table.set_control(enabled, masked, master, &sink);
                }
                Act::Hold => { held = true; table.disconnect() }
                Act::Go => { held = false; table.connect(&sink) }
                Act::SaveLoad => {
                    let state = saved(&table);
                    let mut other = MsixTable::new(4);
                    prop_assert_eq!(other.load(&mut Reader::new(&state)), Ok(()));
                    prop_assert_eq!(&saved(&other), &state);
                    other.disconnect();
                    other.set_control(control.0, control.1, control.2, &sink);
                    if !held { other.connect(&sink) }
                    table = other;
                }
            }
            for vector in 0..4 {
                prop_assert!(!(table.is_open(vector) && table.is_pending(vector)));
            }
        }
    }

    #[test]
    fn random_states_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let mut table = MsixTable::new(4);
        let mut bytes = bytes;
        if let Some(count) = bytes.first_chunk_mut::<2>() { *count = [4, 0] }
        if table.load(&mut Reader::new(&bytes)).is_ok() {
            prop_assert_eq!(&saved(&table)[..], &bytes[..saved(&table).len()]);
        }
    }
}
