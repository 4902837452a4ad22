use std::sync::Arc;

use super::super::bus::{Bus, Function};
use super::super::config::{ConfigSpace, Identity};
use super::*;
use crate::pci::HostBridge;
use std::sync::Mutex;

struct Plain(Mutex<ConfigSpace>);

impl Function for Plain {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.lock().expect("no panic").read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.0.lock().expect("no panic").write(offset, data);
    }
}

fn read(ecam: &Ecam, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0x55; len];
    ecam.mmio_read(MmioAddress(0xFEB0_0000), offset, &mut data);
    data
}

#[test]
fn it_is_the_same_space_as_behind_the_ports() {
    let identity = Identity { vendor: 0x1234, device: 0x5678, ..Identity::default() };
    let config = ConfigSpace::new(&identity, &[]).expect("a header");
    let mut bus = Bus::new();
    assert!(bus.insert(0, Arc::new(HostBridge::new().expect("a constant"))).is_ok());
    assert!(bus.insert(3, Arc::new(Plain(Mutex::new(config)))).is_ok());
    let ports = Arc::new(ConfigPorts::new(bus));
    let ecam = Ecam::new(Arc::downgrade(&ports));
    assert_eq!(read(&ecam, 0, 4), [0x0e, 0xd7, 0xff, 0x00], "the host bridge");
    assert_eq!(read(&ecam, 3 << 15, 4), [0x34, 0x12, 0x78, 0x56]);
    assert_eq!(read(&ecam, 3 << 15 | 2, 2), [0x78, 0x56]);
    // Bus master enable, written here and read behind the ports.
    ecam.mmio_write(MmioAddress(0xFEB0_0000), 3 << 15 | 4, &[4, 0]);
    ports.write(0xcf8, &(0x8000_0000u32 | 3 << 11 | 4).to_le_bytes());
    let mut command = [0; 2];
    ports.read(0xcfc, &mut command);
    assert_eq!(command, [4, 0]);
    // No function, another function of the slot, behind 256 bytes, over the end, another bus.
    for offset in [2 << 15, 3 << 15 | 1 << 12, 3 << 15 | 0x100, 0xF_FFFE, 1 << 20, u64::MAX] {
        assert_eq!(read(&ecam, offset, 4), [0xFF; 4], "{offset:#x}");
        ecam.mmio_write(MmioAddress(0xFEB0_0000), offset, &[0xFF; 8]);
    }
    drop(ports);
    assert_eq!(read(&ecam, 0, 4), [0xFF; 4], "the bus is gone");
}
