use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Answers reads with its offset and remembers the last write.
#[derive(Default)]
struct Probe {
    last: AtomicU64,
    moves: Mutex<Option<(Arc<Bus>, u64, u64)>>,
}

impl DevicePio for Probe {
    fn pio_read(&self, _base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn pio_write(&self, _base: PioAddress, offset: PioAddressOffset, _data: &[u8]) {
        self.last.store(offset.into(), Ordering::SeqCst);
    }
}

impl DeviceMmio for Probe {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, _data: &[u8]) {
        self.last.store(offset, Ordering::SeqCst);
        if let Some((bus, from, to)) = self.moves.lock().expect("not poisoned").take() {
            bus.move_mmio(from, to).expect("moved from inside an access");
        }
    }
}

#[test]
fn ports_go_to_their_device_whole_or_not_at_all() {
    let bus = Bus::default();
    let device = Arc::new(Probe::default());
    bus.claim_pio(0x100..0x104, device.clone()).expect("free");
    let mut data = [0; 4];
    bus.pio_read(0x100, &mut data);
    assert_eq!(data, [0; 4]);
    bus.pio_read(0x101, &mut data);
    assert_eq!(data, [0xFF; 4], "it ends outside");
    bus.pio_read(0x103, &mut data[..1]);
    assert_eq!(data[0], 3);
    bus.pio_read(0xFFFF, &mut data);
    assert_eq!(data, [0xFF; 4]);
    assert_eq!(bus.pio_write(0x102, &[0, 0]), None);
    assert_eq!(device.last.load(Ordering::SeqCst), 2);
    bus.pio_write(0x103, &[0, 0]);
    assert_eq!(device.last.load(Ordering::SeqCst), 2);
    for bad in [0x103..0x105, 0xFF..0x101, 0x100..0x104, 5..5] {
        assert!(bus.claim_pio(bad.clone(), device.clone()).is_err(), "{bad:?}");
    }
    bus.claim_pio(0xFFFF..0xFFFF, device.clone()).expect_err("empty");
}

#[test]
fn power_ports_come_first() {
    let bus = Bus::default();
    bus.claim_pio(0xCF8..0xD00, Arc::new(Probe::default())).expect("free");
    assert_eq!(bus.pio_write(0xCF9, &[0x06]), Some(GuestEvent::Reset));
    assert_eq!(bus.pio_write(0xCF8, &[0x06, 0, 0, 0x80]), None);
    assert_eq!(bus.pio_write(0x604, &[0, 0x20]), Some(GuestEvent::Shutdown));
}

#[test]
fn mmio_moves_and_goes() {
    let bus = Arc::new(Bus::default());
    let device = Arc::new(Probe::default());
    bus.claim_mmio(0x1000..0x2000, device.clone()).expect("free");
    bus.claim_mmio(0x5000..0x6000, device.clone()).expect("free");
    assert!(matches!(
        bus.move_mmio(0x1000, 0x5800),
        Err(WiringError::Range { bus: "MMIO", start: 0x5800, end: 0x6800 })
    ));
    let mut data = [0; 2];
    bus.mmio_read(0x1010, &mut data);
    assert_eq!(data, [0x10; 2], "a refused move changes nothing");
    bus.move_mmio(0x1000, 0x1800).expect("over its own old place");
    bus.mmio_read(0x1010, &mut data);
    assert_eq!(data, [0xFF; 2]);
    bus.mmio_read(0x1820, &mut data);
    assert_eq!(data, [0x20; 2]);
    assert!(matches!(bus.move_mmio(0x1000, 0x9000), Err(WiringError::NotClaimed { .. })));
    assert!(matches!(bus.move_mmio(0x1900, 0x9000), Err(WiringError::NotClaimed { .. })));
    assert!(bus.move_mmio(0x1800, u64::MAX - 5).is_err());
    bus.mmio_read(0x1820, &mut data);
    assert_eq!(data, [0x20; 2]);
    *device.moves.lock().expect("not poisoned") = Some((Arc::clone(&bus), 0x1800, 0x9000));
    bus.mmio_write(0x1800, &[0]);
    bus.mmio_read(0x9007, &mut data);
    assert_eq!(data, [7; 2]);
    bus.release_mmio(0x9001).expect_err("not its base");
    bus.release_mmio(0x9000).expect("there");
    bus.mmio_read(0x9000, &mut data);
    assert_eq!(data, [0xFF; 2]);
    bus.mmio_read(u64::MAX, &mut data);
    assert_eq!(data, [0xFF; 2]);
}
