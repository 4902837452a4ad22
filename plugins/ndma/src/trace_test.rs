//! Migration at every point of a random run of driver and host actions leaves the rest of the run
//! as it would have been without.

use drogher_plugin_sdk::{Device, State};
use proptest::prelude::*;

use crate::regs;
use crate::testing::{Desc, RING, Rig, TestBus};

/// Memory of this test: small, since every observation compares all of it.
const MEMORY: usize = 0x10000;
const ENTRIES: u64 = 16;

#[derive(Debug, Clone)]
enum Action {
    /// Put descriptors into the ring; ring the doorbell or not; wait for the end or not.
    Submit {
        descs: Vec<Desc>,
        ring: bool,
        wait: bool,
    },
    /// Any other register.
    Write(u64, u32),
    EnterNdma,
    LeaveNdma,
    ReEnable,
}

/// What can be seen from outside.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    registers: Vec<u32>,
    memory: Vec<u8>,
    irqs: Vec<u16>,
}

struct Run {
    rig: Rig,
    ndma: bool,
    /// Interrupts of the devices before this one.
    irqs: Vec<u16>,
    /// State read so far, if a save is going on.
    state: Vec<u8>,
}

impl Run {
    fn new() -> Self {
        let bus = TestBus::with_memory(crate::testing::noise(MEMORY, 5));
        bus.put(RING, &[0; 64 * ENTRIES as usize]);
        let mut rig = Rig::on(bus, &[("scratch_kib", "8")]);
        rig.enable(ENTRIES as u32);
        Self { rig, ndma: false, irqs: Vec::new(), state: Vec::new() }
    }

    fn settle(&mut self) {
        if !self.ndma {
            self.rig.settle();
        }
    }

    fn act(&mut self, action: &Action) {
        self.settle();
        match action {
            Action::Submit { descs, ring, .. } => {
                let next = u64::from(self.rig.get(regs::NEXT));
                for (index, desc) in descs.iter().enumerate() {
                    self.rig.put((next + index as u64) % ENTRIES, *desc);
                }
                if *ring {
                    self.rig.device.doorbell(0).unwrap();
                }
            }
            Action::Write(offset, value) => self.rig.set(*offset, *value),
            Action::EnterNdma => {
                self.rig.device.enter_ndma().unwrap();
                self.ndma = true;
            }
            Action::LeaveNdma => {
                self.rig.device.leave_ndma().unwrap();
                self.ndma = false;
            }
            Action::ReEnable => {
                self.rig.set(regs::CONTROL, 0);
                self.rig.set(regs::CONTROL, regs::CONTROL_ENABLE);
            }
        }
    }

    fn see(&mut self) -> Seen {
        self.settle();
        let registers = (0..16).map(|index| self.rig.get(index * 4)).collect();
        let irqs = [self.irqs.clone(), self.rig.bus.irqs()].concat();
        Seen { registers, memory: self.rig.bus.world().memory.clone(), irqs }
    }

    /// Moves to a new device on a copy of the memory; the old one must do nothing any more.
    fn migrate(mut self) -> Self {
        self.state.extend(self.rig.stop_and_save());
        self.rig.bus.world().silent = true;
        self.rig.device.doorbell(0).unwrap();
        let irqs = [self.irqs.clone(), self.rig.bus.irqs()].concat();
        let memory = self.rig.bus.world().memory.clone();

        let mut rig = Rig::stopped(TestBus::with_memory(memory), &[("scratch_kib", "8")]);
        rig.go(&[State::Resuming]);
        rig.device.write_state(&self.state).unwrap();
        rig.go(&[State::Stop, State::RunningP2p]);
        if self.ndma {
            rig.device.enter_ndma().unwrap();
        }
        rig.go(&[State::Running]);

        drop(self.rig.device);
        assert_eq!(self.rig.bus.world().violations, []);
        Self { rig, ndma: self.ndma, irqs, state: Vec::new() }
    }
}

/// Does all actions; observes after each that waits, and at the end. `cut`: start of the save,
/// and after how many actions to migrate.
fn run(actions: &[Action], cut: Option<(usize, usize)>) -> Vec<Option<Seen>> {
    let mut run = Run::new();
    let mut seen = Vec::new();
    for (index, action) in actions.iter().enumerate() {
        if cut.is_some_and(|(start, _)| start == index) {
            run.rig.go(&[State::PreCopy]);
        }
        run.act(action);
        if run.rig.state == State::PreCopy {
            let more = run.rig.read_state(3000, 700);
            run.state.extend(more);
        }
        let waits = !matches!(action, Action::Submit { wait: false, .. });
        seen.push(waits.then(|| run.see()));
        if cut.is_some_and(|(_, end)| end == index) {
            run = run.migrate();
            if waits {
                assert_eq!(seen.last(), Some(&Some(run.see())), "right after the move");
            }
        }
    }
    seen.push(Some(run.see()));
    seen
}

fn desc() -> impl Strategy<Value = Desc> {
    // 0x2000.. is payload; the ring is below it, and addresses from MEMORY on fault.
    let address =
        prop_oneof![8 => (0x400_u64..0x1800).prop_map(|a| a * 8), 1 => Just(u64::MAX - 20)];
    let scratch = 0_u64..8200;
    let len = prop_oneof![6 => (1_u64..40).prop_map(|n| n * 8), 2 => 1_u64..5000, 1 => Just(0)];
    let flags = prop_oneof![Just(1_u16), Just(3)];
    (0_u16..8, address.clone(), address, scratch, len, flags, any::<u64>()).prop_map(
        |(opcode, src, dst, scratch, len, flags, arg)| match opcode {
            5 => Desc { opcode, flags, src, dst: scratch, len, arg },
            6 => Desc { opcode, flags, src: scratch, dst, len, arg },
            _ => Desc { opcode, flags, src, dst, len, arg },
        },
    )
}

fn action() -> impl Strategy<Value = Action> {
    let submit = (prop::collection::vec(desc(), 1..ENTRIES as usize), any::<bool>(), any::<bool>());
    prop_oneof![
        8 => submit.prop_map(|(descs, ring, wait)| Action::Submit { descs, ring, wait }),
        1 => Just(Action::Write(regs::CONTROL, regs::CONTROL_ENABLE)),
        1 => Just(Action::Write(regs::CONTROL, regs::CONTROL_ENABLE | regs::CONTROL_IRQ_ENABLE)),
        1 => Just(Action::Write(regs::CONTROL, 0)),
        1 => Just(Action::Write(regs::CONTROL, regs::CONTROL_RESET)),
        1 => Just(Action::Write(regs::RING_BASE, 0x1000)),
        1 => Just(Action::Write(regs::RING_ENTRIES, ENTRIES as u32)),
        1 => Just(Action::Write(regs::RING_BASE + 4, 1)),
        1 => Just(Action::Write(regs::DOORBELL, 1)),
        1 => Just(Action::Write(regs::ERROR, 0)),
        2 => Just(Action::ReEnable),
        1 => Just(Action::EnterNdma),
        2 => Just(Action::LeaveNdma),
    ]
}

proptest! {
    // Nothing is written into the tree: a mutant fails here too.
    #![proptest_config(ProptestConfig {
        cases: 48, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn a_move_at_any_point_changes_nothing(
        actions in prop::collection::vec(action(), 1..10), lead in 0_usize..4
    ) {
        let expected = run(&actions, None);
        for end in 0..actions.len() {
            let moved = run(&actions, Some((end.saturating_sub(lead), end)));
            for (index, (moved, expected)) in moved.iter().zip(&expected).enumerate() {
                if moved != expected {
                    let (moved, expected) = (moved.as_ref().unwrap(), expected.as_ref().unwrap());
                    prop_assert_eq!(&moved.registers, &expected.registers, "{}, move {}", index, end);
                    prop_assert_eq!(&moved.irqs, &expected.irqs, "{}, move {}", index, end);
                    prop_assert!(moved.memory == expected.memory, "memory {}, move {}", index, end);
                }
            }
        }
    }
}
