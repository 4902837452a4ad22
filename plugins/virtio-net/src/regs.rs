//! The registers, as the virtio specification has them ("Virtio Over PCI Bus"), and what each write
//! means.

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use crate::net::Options;
use crate::ring::Queue;

/// Bytes of BAR 0.
pub const REGION_BYTES: u64 = 0x4000;
/// Where the structures lie in it, and how long they are.
pub const COMMON: (u64, u32) = (0, 0x38);
/// The interrupt status.
pub const ISR: (u64, u32) = (0x1000, 1);
/// The network card's own: address and link.
pub const NET: (u64, u32) = (0x2000, 8);
/// Where queues are rung for, [`NOTIFY_STEP`] bytes apart.
pub const NOTIFY: (u64, u32) = (0x3000, 8);
/// Bytes between two queues' places in [`NOTIFY`].
pub const NOTIFY_STEP: u32 = 4;

/// Queues.
pub const QUEUES: u16 = 2;
/// The queue that frames come in by.
pub const RX: usize = 0;
/// The queue that frames go out by.
pub const TX: usize = 1;
/// MSI-X vectors: one for changes of the device, one for each queue.
pub const VECTORS: u16 = 3;
/// No vector.
pub const NO_VECTOR: u16 = 0xffff;

/// The driver has reset the device, or not begun.
pub const RESET: u8 = 0;
/// The driver is ready.
pub const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
/// The features are agreed on.
pub const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
/// The device is broken.
pub const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

/// Bits of the interrupt status: a queue, the device.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// All features offered.
pub const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registers {
    /// Features that the driver has taken.
    pub driver_features: u64,
    /// Which half of the features is seen.
    pub feature_select: [u32; 2],
    /// Vector for changes of the device.
    pub config_vector: u16,
    /// Device status.
    pub status: u8,
    /// Counts changes of the device's configuration.
    pub generation: u8,
    /// Which queue is seen.
    pub queue_select: u16,
    /// Interrupt status.
    pub isr: u8,
    /// The queues.
    pub queues: [Queue; QUEUES as usize],
    max: u16,
    mac: [u8; 6],
}

/// A write that is to wait until the worker is idle.
#[must_use]
pub fn needs_idle(offset: u64, data: &[u8]) -> bool {
    offset == 0x14 && data == [RESET]
}

impl Registers {
    /// As after power-on.
    #[must_use]
    pub fn new(max: u16, mac: [u8; 6]) -> Self {
        let queue = Queue { size: max, vector: NO_VECTOR, ..Queue::default() };
        Self {
            driver_features: 0,
            feature_select: [0; 2],
            config_vector: NO_VECTOR,
            status: RESET,
            generation: 0,
            queue_select: 0,
            isr: 0,
            queues: [queue; QUEUES as usize],
            max,
            mac,
        }
    }

    /// As after power-on, with the same parameters.
    pub fn reset(&mut self) {
        *self = Self::new(self.max, self.mac);
    }

    /// Most descriptors of a queue.
    #[must_use]
    pub fn max(&self) -> u16 {
        self.max
    }

    /// A queue may be looked at.
    #[must_use]
    pub fn is_live(&self, queue: usize) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
            && self.queues.get(queue).is_some_and(|queue| queue.enabled)
    }

    /// What the driver has accepted.
    #[must_use]
    pub fn options(&self) -> Options {
        let has = |bit: u32| self.driver_features & 1 << bit != 0;
        Options { event_idx: has(VIRTIO_RING_F_EVENT_IDX), merge: has(VIRTIO_NET_F_MRG_RXBUF) }
    }

    /// The driver has broken a rule. Returns the vector to trigger, if any.
    pub fn break_down(&mut self) -> Option<u16> {
        self.status |= NEEDS_RESET;
        self.generation = self.generation.wrapping_add(1);
        if self.status & DRIVER_OK == 0 {
            return None;
        }
        self.isr |= ISR_CONFIG;
        Some(self.config_vector).filter(|vector| *vector != NO_VECTOR)
    }

    /// A queue's buffers were used. Returns the vector to trigger, if any.
    pub fn used(&mut self, queue: usize) -> Option<u16> {
        self.isr |= ISR_QUEUE;
        self.queues.get(queue).map(|queue| queue.vector).filter(|vector| *vector != NO_VECTOR)
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    fn common(&self) -> Vec<u8> {
        let half = |features: u64, select: u32| match select {
            0 => features as u32,
            1 => (features >> 32) as u32,
            _ => 0,
        };
        let [device_select, driver_select] = self.feature_select;
        // A queue that is not there has size 0.
        let queue = self.selected().copied().unwrap_or_default();
        let mut bytes = Vec::with_capacity(COMMON.1 as usize);
        for word in [
            device_select,
            half(FEATURES, device_select),
            driver_select,
            half(self.driver_features, driver_select),
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.config_vector.to_le_bytes());
        bytes.extend(QUEUES.to_le_bytes());
        bytes.extend([self.status, self.generation]);
        let vector = if self.selected().is_some() { queue.vector } else { NO_VECTOR };
        let off = if self.selected().is_some() { self.queue_select } else { 0 };
        for half in [self.queue_select, queue.size, vector, queue.enabled.into(), off] {
            bytes.extend(half.to_le_bytes());
        }
        for address in [queue.desc, queue.avail, queue.used] {
            bytes.extend(address.to_le_bytes());
        }
        bytes
    }

    /// Reads registers, of any size and alignment; places without one read 0.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let image = match offset & !0xfff {
            0 => self.common(),
            // Reading clears.
            0x1000 if offset == ISR.0 => vec![std::mem::take(&mut self.isr)],
            0x2000 => {
                let mut bytes = self.mac.to_vec();
                bytes.extend((VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
                bytes
            }
            _ => return,
        };
        let from = usize::try_from(offset & 0xfff).ok().and_then(|from| image.get(from..));
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Writes a register of the common structure: whole ones, and halves of addresses. Anything else
    /// changes nothing. Returns a vector to trigger.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<u16> {
        let number = data.iter().rev().fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
        let vector = |number: u64| {
            // One that is not there reads back as none.
            if number < u64::from(VECTORS) { number as u16 } else { NO_VECTOR }
        };
        let (max, queue_select) = (self.max, usize::from(self.queue_select));
        let configurable = self.queues.get_mut(queue_select).filter(|queue| !queue.enabled);
        match (offset, data.len()) {
            (0x00, 4) => self.feature_select = [number as u32, self.feature_select[1]],
            (0x08, 4) => self.feature_select[1] = number as u32,
            (0x0c, 4) if self.status & FEATURES_OK == 0 => {
                let shift = match self.feature_select[1] {
                    0 => 0,
                    1 => 32,
                    _ => return None,
                };
                self.driver_features &= !(0xffff_ffff << shift);
                self.driver_features |= number << shift;
            }
            (0x10, 2) => self.config_vector = vector(number),
            (0x14, 1) => return self.set_status(number as u8),
            (0x16, 2) => self.queue_select = number as u16,
            (0x18, 2) => configurable?.size = number as u16,
            (0x1a, 2) => self.queues.get_mut(queue_select)?.vector = vector(number),
            (0x1c, 2) if number == 1 => {
                let queue = configurable?;
                if !queue.is_sound(max) {
                    return self.break_down();
                }
                queue.enabled = true;
                (queue.next_avail, queue.next_used) = (0, 0);
            }
            (0x20..0x38, 4 | 8) if offset.is_multiple_of(data.len() as u64) => {
                let queue = configurable?;
                let address = match offset & !7 {
                    0x20 => &mut queue.desc,
                    0x28 => &mut queue.avail,
                    _ => &mut queue.used,
                };
                let (shift, mask) = match (data.len(), offset & 4) {
                    (8, _) => (0, u64::MAX),
                    (_, 0) => (0, 0xffff_ffff),
                    _ => (32, 0xffff_ffff << 32),
                };
                *address = *address & !mask | number << shift;
            }
            _ => {}
        }
        None
    }

    /// Bits are set by the driver, one after the other, and only cleared by a reset.
    fn set_status(&mut self, status: u8) -> Option<u16> {
        if status == RESET {
            self.reset();
            return None;
        }
        let mut status = status | self.status;
        if status & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            let version_1 = self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
            if self.driver_features & !FEATURES != 0 || !version_1 {
                status &= !FEATURES_OK;
            }
        }
        if status & DRIVER_OK != 0 && status & FEATURES_OK == 0 {
            self.status = status;
            return self.break_down();
        }
        self.status = status;
        None
    }
}

#[cfg(test)]
#[path = "regs_test.rs"]
mod tests;
