//! Two real ndma devices that write to each other's windows, through migrations at any moment.

use std::path::PathBuf;

use drogher_iommu::{Memory, Oa};
use drogher_ndma::{descriptor, regs};

use super::testing::{RAM, Rig, letter_sum, wait};
use super::{DeviceSet, DeviceSpec};

const ENTRIES: u64 = 64;
/// The numbers that are sent.
const NUMBERS: u64 = 0x10_0000;
/// Each device copies the next number into the other's window, again and again.
const TOTAL: u64 = 20_000;

fn dirs() -> Vec<PathBuf> {
    let exe = std::env::current_exe().expect("a path");
    exe.ancestors().skip(1).take(2).map(PathBuf::from).collect()
}

fn machine() -> Rig {
    let specs =
        ["ndma,scratch_kib=4,vm.name=a,vm.peers=b", "ndma,scratch_kib=4,vm.name=b,vm.peers=a"];
    let specs = specs.map(|spec| spec.parse::<DeviceSpec>().expect("good keys"));
    let make = |spaces: &_, wiring: &_| DeviceSet::new(&specs, &dirs(), spaces, wiring);
    Rig::with(make).expect("the plugin is built with this test")
}

/// A driver of one device, which outlives machines.
struct Sender {
    slot: u32,
    /// Descriptors given to the device, and of those taken back.
    given: u64,
    back: u64,
    /// Number of each descriptor in the ring.
    numbers: Vec<u64>,
    /// Numbers that have been sent.
    sent: Vec<u64>,
    /// Numbers to send again: the other device took no more.
    again: Vec<u64>,
    next: u64,
}

impl Sender {
    fn new(rig: &Rig, slot: u32) -> Self {
        rig.drive(slot);
        let sender = Self {
            slot,
            given: 0,
            back: 0,
            numbers: vec![0; ENTRIES as usize],
            sent: Vec::new(),
            again: Vec::new(),
            next: 0,
        };
        let bar = rig.bar(slot, 0);
        rig.write32(bar + regs::RING_ENTRIES, ENTRIES as u32);
        rig.write32(bar + regs::RING_BASE, sender.ring() as u32);
        rig.write32(bar + regs::CONTROL, regs::CONTROL_ENABLE);
        sender
    }

    fn ring(&self) -> u64 {
        0x1000 * u64::from(self.slot)
    }

    fn quad(rig: &Rig, at: u64) -> u64 {
        let mut quad = [0; 8];
        rig.memory.read(Oa(at), &mut quad).expect("inside memory");
        u64::from_le_bytes(quad)
    }

    /// Takes back what is done.
    fn collect(&mut self, rig: &Rig) {
        while self.back < self.given {
            let place = self.back % ENTRIES;
            let at = self.ring() + place * descriptor::SIZE;
            let head = Self::quad(rig, at);
            if head >> 16 & u64::from(descriptor::FLAG_OWN) != 0 {
                return;
            }
            let (number, result) = (self.numbers[place as usize], Self::quad(rig, at + 0x28));
            match (head >> 32, result) {
                (1, 8) => self.sent.push(number),
                (6, 0) => self.again.push(number),
                other => panic!("descriptor {} of device {}: {other:?}", self.back, self.slot),
            }
            self.back += 1;
        }
    }

    /// Fills the ring and rings; false when all is sent.
    fn step(&mut self, rig: &Rig) -> bool {
        self.collect(rig);
        while self.given - self.back < ENTRIES - 1 {
            let number = match self.again.pop() {
                Some(number) => number,
                None if self.next < TOTAL => {
                    self.next += 1;
                    self.next - 1
                }
                None => break,
            };
            let place = self.given % ENTRIES;
            self.numbers[place as usize] = number;
            let at = self.ring() + place * descriptor::SIZE;
            let window = rig.bar(3 - self.slot, 0) + regs::WINDOW + number % 128 * 8;
            let write = |at: u64, value: u64| {
                rig.memory.write(Oa(at), &value.to_le_bytes()).expect("inside memory");
            };
            let quads = [NUMBERS + number * 8, window, 8, 0, 0, 0, 0];
            (1..).zip(quads).for_each(|(n, quad): (u64, u64)| write(at + n * 8, quad));
            write(at, 1 | u64::from(descriptor::FLAG_OWN) << 16);
            self.given += 1;
        }
        rig.wiring.ring(rig.bar(self.slot, 0) + regs::DOORBELL, 4);
        self.back < self.given
    }

    /// What the other device has got is what this one has sent: all of it, once, in order.
    fn check(&self, rig: &Rig, when: &str) {
        let other = rig.bar(3 - self.slot, 0);
        let quad = |at: u64| {
            let mut quad = [0; 8];
            rig.set.mmio().read(other + at, &mut quad);
            u64::from_le_bytes(quad)
        };
        let got = (quad(regs::WINDOW_WRITES), quad(regs::WINDOW_SUM));
        let sent = (self.sent.len() as u64, letter_sum(self.sent.iter().copied()));
        assert_eq!(got, sent, "writes of device {} {when}", self.slot);
    }
}

/// Goes on in another machine.
fn migrate(from: &Rig, pre_copy: bool) -> Rig {
    let mut early = vec![Vec::new(), Vec::new()];
    if pre_copy {
        from.set.start_precopy().expect("it can");
        early = vec![from.precopy(0), from.precopy(1)];
    }
    from.stop();
    early.iter_mut().zip(from.state()).for_each(|(all, rest)| all.extend(rest));
    let configs = from.set.describe().expect("they answer");
    let make = |spaces: &_, wiring: &_| DeviceSet::for_configs(&configs, &dirs(), spaces, wiring);
    let to = Rig::with(make).expect("the same plugin");
    to.arrive(&early, &from.set.save());
    let mut memory = vec![0; RAM as usize];
    from.memory.read(Oa(0), &mut memory).expect("all of it");
    to.memory.write(Oa(0), &memory).expect("as large");
    to.run();
    to
}

fn started() -> (Rig, [Sender; 2]) {
    let rig = machine();
    rig.run();
    for number in 0..TOTAL {
        let at = Oa(NUMBERS + number * 8);
        rig.memory.write(at, &number.to_le_bytes()).expect("inside memory");
    }
    let senders = [Sender::new(&rig, 1), Sender::new(&rig, 2)];
    (rig, senders)
}

#[test]
fn no_transfer_between_two_devices_is_lost_or_doubled() {
    let (mut rig, mut senders) = started();
    let mut turn = 0_u64;
    let mut moves = 0;
    loop {
        let busy = senders.iter_mut().fold(false, |busy, sender| sender.step(&rig) | busy);
        if !busy {
            break;
        }
        turn += 1;
        // Now and then, at a moment that the scheduler chooses.
        if turn.is_multiple_of(6) {
            rig.set.to_p2p_and_ndma().expect("quiet");
            // Nobody sends any more, and all has arrived.
            for sender in &mut senders {
                sender.collect(&rig);
                sender.check(&rig, "at the stop");
            }
            if turn.is_multiple_of(18) {
                rig = migrate(&rig, turn.is_multiple_of(36));
                moves += 1;
            } else {
                rig.run();
            }
        }
        std::thread::yield_now();
    }
    for sender in &senders {
        wait("the last write", || {
            let counts = rig.set.devices().iter().map(|device| device.peer_counts());
            counts.into_iter().all(|counts| counts.taken == counts.delivered)
        });
        assert_eq!(sender.sent.len() as u64, TOTAL);
        sender.check(&rig, "at the end");
    }
    assert!(moves >= 10, "only {moves} moves");
}
