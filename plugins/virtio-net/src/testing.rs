//! A bus over an array of bytes, for one thread, and a driver's part of a ring.

use std::io;
use std::sync::Mutex;
use std::thread::JoinHandle;

use crate::bus::{Bus, Fault};
use crate::ring::Queue;

pub const MEMORY: usize = 1 << 20;
pub const DESC: u64 = 0x1000;
pub const AVAIL: u64 = 0x8000;
pub const USED: u64 = 0xa000;
pub const DATA: u64 = 0x2_0000;

pub struct Plain {
    memory: Mutex<Vec<u8>>,
    pub sent: Mutex<Vec<Vec<u8>>>,
}

impl Plain {
    pub fn new() -> Self {
        Self { memory: Mutex::new(vec![0; MEMORY]), sent: Mutex::default() }
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.write(at, bytes).unwrap();
    }

    pub fn put_u16(&self, at: u64, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(at, &mut bytes).unwrap();
        bytes
    }

    pub fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.bytes(at, 2).try_into().unwrap())
    }

    pub fn desc(&self, index: u16, iova: u64, len: u32, flags: u16, next: u16) {
        let mut raw = iova.to_le_bytes().to_vec();
        raw.extend(len.to_le_bytes());
        raw.extend(flags.to_le_bytes());
        raw.extend(next.to_le_bytes());
        self.put(DESC + 16 * u64::from(index), &raw);
    }

    /// Makes chain `head` available as number `index`.
    pub fn offer(&self, queue: &Queue, index: u16, head: u16) {
        self.put_u16(AVAIL + 4 + 2 * u64::from(index % queue.size), head);
        self.put_u16(AVAIL + 2, index.wrapping_add(1));
    }

    /// Used entry number `index`.
    pub fn used(&self, queue: &Queue, index: u16) -> (u32, u32) {
        let entry = self.bytes(USED + 4 + 8 * u64::from(index % queue.size), 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }
}

pub fn queue(size: u16) -> Queue {
    let (desc, avail, used) = (DESC, AVAIL, USED);
    Queue { size, vector: 1, enabled: true, desc, avail, used, next_avail: 0, next_used: 0 }
}

impl Bus for Plain {
    fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), Fault> {
        let memory = self.memory.lock().unwrap();
        let from = usize::try_from(iova).map_err(|_| Fault)?;
        let end = from.checked_add(data.len()).ok_or(Fault)?;
        data.copy_from_slice(memory.get(from..end).ok_or(Fault)?);
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8]) -> Result<(), Fault> {
        let mut memory = self.memory.lock().unwrap();
        let from = usize::try_from(iova).map_err(|_| Fault)?;
        let end = from.checked_add(data.len()).ok_or(Fault)?;
        memory.get_mut(from..end).ok_or(Fault)?.copy_from_slice(data);
        Ok(())
    }

    fn irq(&self, _vector: u16) {}

    fn send(&self, frame: &[u8]) {
        self.sent.lock().unwrap().push(frame.to_vec());
    }

    fn receive(&self) -> Option<Vec<u8>> {
        None
    }

    fn wait(&self) {}

    fn wake(&self) {}

    fn spawn(&self, _name: &str, _work: Box<dyn FnOnce() + Send>) -> io::Result<JoinHandle<()>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
