use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::pci::HostBridge;

/// 256 bytes holding their own offset, and a list of the writes.
#[derive(Default)]
struct Ramp {
    writes: Mutex<Vec<(u16, Vec<u8>)>>,
}

impl Function for Ramp {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = at.to_le_bytes()[0];
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.writes.lock().expect("no panic").push((offset, data.to_vec()));
    }
}

fn ports() -> (ConfigPorts, Arc<Ramp>) {
    let ramp = Arc::new(Ramp::default());
    let mut bus = Bus::new();
    assert!(bus.insert(0, Arc::new(HostBridge::new().expect("a constant"))).is_ok());
    assert!(bus.insert(3, Arc::clone(&ramp) as Arc<dyn Function>).is_ok());
    (ConfigPorts::new(bus), ramp)
}

fn select(ports: &ConfigPorts, slot: u32, register: u32) {
    ports.write(0xcf8, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
}

fn read(ports: &ConfigPorts, port: u16, len: usize) -> Vec<u8> {
    let mut data = vec![0x55; len];
    ports.read(port, &mut data);
    data
}

#[test]
fn the_host_bridge_answers_at_slot_0() {
    let (ports, _) = ports();
    select(&ports, 0, 0);
    assert_eq!(read(&ports, 0xcfc, 4), [0x0e, 0xd7, 0xff, 0x00]);
    select(&ports, 0, 8);
    assert_eq!(read(&ports, 0xcfe, 2), [0x00, 0x06], "class bridge, host");
    assert_eq!(read(&ports, 0xcff, 1), [0x06]);
}

#[test]
fn address_register_reads_back_without_reserved_bits() {
    let (ports, _) = ports();
    ports.write(0xcf8, &0xffff_ffff_u32.to_le_bytes());
    assert_eq!(read(&ports, 0xcf8, 4), 0x80ff_fffc_u32.to_le_bytes());
    ports.reset();
    assert_eq!(read(&ports, 0xcf8, 4), [0; 4]);
}

#[test]
fn only_a_dword_reaches_the_address_register() {
    let (ports, _) = ports();
    select(&ports, 3, 0x40);
    for port in 0xcf8..0xcfc {
        ports.write(port, &[0]);
        assert_eq!(read(&ports, port, 1), [0xff]);
    }
    ports.write(0xcf8, &[0, 0]);
    ports.write(0xcfa, &[0, 0]);
    assert_eq!(read(&ports, 0xcf8, 2), [0xff; 2]);
    assert_eq!(read(&ports, 0xcf8, 4), 0x8000_1840_u32.to_le_bytes());
}

#[test]
fn bytes_and_words_of_the_data_port_are_lanes() {
    let (ports, ramp) = ports();
    select(&ports, 3, 0x40);
    assert_eq!(read(&ports, 0xcfc, 4), [0x40, 0x41, 0x42, 0x43]);
    assert_eq!(read(&ports, 0xcfd, 1), [0x41]);
    assert_eq!(read(&ports, 0xcfd, 2), [0x41, 0x42]);
    assert_eq!(read(&ports, 0xcfe, 2), [0x42, 0x43]);
    assert_eq!(read(&ports, 0xcff, 1), [0x43]);
    assert_eq!(read(&ports, 0xcfe, 4), [0x42, 0x43, 0xff, 0xff], "beyond the port: ones");
    ports.write(0xcfd, &[1, 2]);
    ports.write(0xcff, &[3]);
    ports.write(0xcfe, &[4, 5, 6, 7]);
    let writes = ramp.writes.lock().expect("no panic").clone();
    assert_eq!(writes, [(0x41, vec![1, 2]), (0x43, vec![3]), (0x42, vec![4, 5])]);
}

#[test]
fn nothing_there_reads_as_ones() {
    let (ports, ramp) = ports();
    for address in [
        0x0000_1800_u32, // not enabled
        0x8000_1000,     // slot 2
        0x8000_1900,     // slot 3, function 1
        0x8001_1800,     // bus 1
        0x80ff_f800,
    ] {
        ports.write(0xcf8, &address.to_le_bytes());
        assert_eq!(read(&ports, 0xcfc, 4), [0xff; 4], "{address:#x}");
        ports.write(0xcfc, &[0; 4]);
    }
    assert_eq!(read(&ports, 0xcf7, 1), [0xff]);
    assert_eq!(read(&ports, 0xd00, 4), [0xff; 4]);
    assert!(ramp.writes.lock().expect("no panic").is_empty());
}

#[test]
fn a_slot_holds_one_function() {
    let mut bus = Bus::new();
    assert!(bus.insert(31, Arc::new(Ramp::default())).is_ok());
    assert!(bus.insert(31, Arc::new(Ramp::default())).is_err());
    assert!(bus.insert(32, Arc::new(Ramp::default())).is_err());
}

#[test]
fn the_address_register_is_saved() {
    let (ports, _) = ports();
    select(&ports, 3, 0x40);
    let mut out = Writer::new();
    ports.save(&mut out);
    let saved = out.finish();
    ports.reset();
    let address = ports.parse(&mut Reader::new(&saved)).expect("its own state");
    ports.accept(address);
    assert_eq!(read(&ports, 0xcfc, 1), [0x40]);
    let reserved = ports.parse(&mut Reader::new(&[1, 0, 0, 0]));
    assert!(matches!(reserved, Err(StateError::Invalid { field: "CONFIG_ADDRESS", .. })));
    assert!(ports.parse(&mut Reader::new(&[0; 3])).is_err());
    assert_eq!(read(&ports, 0xcfc, 1), [0x40], "a refused state changes nothing");
}

proptest! {
    #[test]
    fn any_port_access_is_harmless(
        accesses in prop::collection::vec((0xcf0_u16..0xd10, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..100)
    ) {
        let (ports, _) = ports();
        for (port, mut data, write) in accesses {
            if write { ports.write(port, &data) } else { ports.read(port, &mut data) }
        }
    }
}
