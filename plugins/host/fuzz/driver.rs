//! Calls of a plugin to the host, made from bytes: DMA, its own log, pins, between maps and unmaps.
//!
//! The functions are called through the C tables, as a device in C calls them. What must come of each
//! is known from a model of memory, mappings and dirty pages: a status that the header does not name,
//! a byte too many or too few, a page that was written and is not reported is a panic.
//! Pointers are good, as the interface demands of plugins; all else may be anything.

use super::bed::{Bed, MEMORY};
use super::tracked::{IOVA, LEN, LOGGED, PAGE, Tracked, gpas};
use core::ffi::c_void;
use core::ptr::null_mut;
use drogher_iommu::{Memory, Perm};
use drogher_iommu_types::{DirtyBitmap, Gpa, Oa};
use drogher_plugin_abi as abi;
use drogher_plugin_host::{Plugin, State};
use drogher_tracking::{DeviceLog, PinBoard, TrackingPageSize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Pages, from GPA 0, whose mappings change; those behind them stay.
const WINDOW: u64 = 16;
const BUFFER: usize = 3 * PAGE as usize;
/// What the functions may answer.
const STATUS: [i32; 8] = [
    abi::DROGHER_OK,
    abi::DROGHER_ERR_PERM,
    abi::DROGHER_ERR_NOENT,
    abi::DROGHER_ERR_NOMEM,
    abi::DROGHER_ERR_FAULT,
    abi::DROGHER_ERR_BUSY,
    abi::DROGHER_ERR_INVAL,
    abi::DROGHER_ERR_RANGE,
];

/// Takes values off bytes; zeros once they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u64 {
        (0..8).fold(0, |word, _| word << 8 | u64::from(self.byte()))
    }

    fn page(&mut self) -> u64 {
        u64::from(self.byte()) % WINDOW
    }

    /// Addresses of the window for the most part; edges; anything.
    fn address(&mut self) -> u64 {
        let kind = self.byte();
        let near = u64::from(self.byte() % 32);
        match kind {
            0..96 => self.page() * PAGE + near * 8,
            96..192 => (self.page() * PAGE + near).wrapping_sub(16),
            192..208 => MEMORY - 16 + near,
            208..220 => (1 << 48) - 16 + near,
            220..232 => near.wrapping_sub(16),
            _ => self.word(),
        }
    }

    fn length(&mut self) -> u64 {
        let kind = self.byte();
        match kind {
            0..128 => u64::from(kind) % 17,
            128..192 => PAGE - 8 + u64::from(kind % 16),
            192..240 => u64::from(kind - 192) * 256,
            240..248 => u64::MAX - u64::from(kind),
            _ => self.word(),
        }
    }

    fn requester(&mut self) -> u32 {
        u32::from(self.byte()).saturating_sub(250)
    }
}

#[derive(Clone, Copy, PartialEq)]
struct Mapping {
    oa: u64,
    perm: Perm,
}

struct Held {
    gpa: core::ops::Range<u64>,
    oa: u64,
    writes: bool,
}

/// Pages of a range of bytes.
fn pages(start: u64, len: u64) -> core::ops::Range<u64> {
    if len == 0 { 0..0 } else { start / PAGE..(start + len - 1) / PAGE + 1 }
}

/// A device in its domain, and what is known of both.
pub struct Driver {
    tracked: Tracked,
    // Its functions are called: it must not be unloaded.
    _library: libloading::Library,
    ctx: *mut abi::HostCtx,
    dma: &'static abi::Dma,
    log_host: &'static abi::DmaLogHost,
    pin_host: &'static abi::DmaPinHost,
    board: Arc<PinBoard>,
    log: Arc<dyn DeviceLog>,
    shadow: Vec<u8>,
    window: [Option<Mapping>; WINDOW as usize],
    /// Written and not reported yet; and all that may be reported.
    dirty: BTreeSet<u64>,
    touched: BTreeSet<u64>,
    /// Unpinned or marked, and not reported yet.
    once: BTreeSet<u64>,
    /// Marked as far as it went.
    tried_once: BTreeSet<u64>,
    pins: BTreeMap<u64, Held>,
    /// The ranges and page size of the log that runs, and what must be in it.
    logging: Option<(Vec<core::ops::Range<u64>>, TrackingPageSize)>,
    logged: BTreeSet<u64>,
    buffer: Vec<u8>,
}

impl Driver {
    /// With the plugin `tracked` of the examples.
    pub fn new(plugin: &Path) -> Driver {
        let loaded = Plugin::open(plugin).expect("loads");
        let bed = Bed::new();
        let device = bed.create(&loaded, &[]).expect("creates");
        device.set_state(State::Running).expect("runs");
        // SAFETY: it is loaded already; its variables are what the source says, and set by `create`.
        let (library, host, ctx) = unsafe {
            let library = libloading::Library::new(plugin).expect("is loaded");
            let host =
                **library.get::<*const *const abi::HostTable>(b"tracked_host").expect("there");
            let ctx = **library.get::<*const *mut abi::HostCtx>(b"tracked_ctx").expect("there");
            (library, host, ctx)
        };
        let ask = |id: &core::ffi::CStr| {
            // SAFETY: the host's table and context, of an instance that lives as long as `self`.
            let table = unsafe {
                (*host).get_extension.expect("there")(ctx, id.as_ptr(), id.to_bytes().len() as u64)
            };
            assert!(!table.is_null());
            table
        };
        // SAFETY: the tables of these ids are constants of the host.
        let (dma, log_host, pin_host) = unsafe {
            (
                &*ask(abi::DROGHER_EXT_DMA).cast::<abi::Dma>(),
                &*ask(abi::DROGHER_EXT_DMA_LOG).cast::<abi::DmaLogHost>(),
                &*ask(abi::DROGHER_EXT_DMA_PIN).cast::<abi::DmaPinHost>(),
            )
        };
        let board = device.pin_board().expect("it pins");
        let (_, log) = device.device_log().expect("it logs");
        bed.domain.unmap(Gpa(0)..Gpa(WINDOW * PAGE)).expect("unmaps");
        bed.domain.start_tracking().expect("tracks");
        board.start_recording().expect("records");
        Driver {
            tracked: Tracked { bed, device },
            _library: library,
            ctx,
            dma,
            log_host,
            pin_host,
            board,
            log,
            shadow: vec![0; MEMORY as usize],
            window: [None; WINDOW as usize],
            dirty: BTreeSet::new(),
            touched: BTreeSet::new(),
            once: BTreeSet::new(),
            tried_once: BTreeSet::new(),
            pins: BTreeMap::new(),
            logging: None,
            logged: BTreeSet::new(),
            buffer: vec![0; BUFFER],
        }
    }

    /// All calls that `input` stands for, from a state that is always the same.
    pub fn run(&mut self, input: &[u8]) {
        for page in 0..WINDOW {
            let wanted = Mapping { oa: page, perm: Perm::READ_WRITE };
            if self.window[page as usize] == Some(wanted) {
                continue;
            }
            if self.window[page as usize].is_some() {
                self.unmap(page);
            }
            self.map(page, page, Perm::READ_WRITE);
        }
        let mut bytes = Bytes(input);
        while !bytes.0.is_empty() {
            self.call(&mut bytes);
        }
        if self.logging.is_some() {
            self.report_all();
            self.log.stop().expect("a log that runs");
            self.logging = None;
        }
        for handle in self.pins.keys().copied().collect::<Vec<_>>() {
            self.unpin(handle);
        }
        if !(self.touched.is_empty() && self.once.is_empty() && self.tried_once.is_empty()) {
            self.harvest();
        }
        assert!(self.tracked.error().is_none(), "{:?}", self.tracked.error());
    }

    fn call(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() % 20 {
            0..3 => self.write(bytes),
            3..5 => self.fill(bytes),
            5..7 => self.read(bytes),
            7..9 => self.atomic(bytes),
            9 => {
                let (page, oa) = (bytes.page(), u64::from(bytes.byte()));
                let perm = [Perm::READ_WRITE, Perm::READ_WRITE, Perm::READ, Perm::WRITE];
                let perm = perm[usize::from(bytes.byte() % 4)];
                if self.window[page as usize].is_none() {
                    self.map(page, oa, perm);
                }
            }
            10 => {
                let page = bytes.page();
                self.unmap(page);
            }
            11 => self.harvest(),
            12 | 13 => self.pin(bytes),
            14 => {
                let nth = usize::from(bytes.byte());
                let handle = self.pins.keys().nth(nth % 8).copied();
                self.unpin(handle.unwrap_or(nth as u64));
            }
            15 => self.mark(bytes),
            16 => self.log_start(bytes),
            17 => self.log_report(bytes),
            18 => {
                let result = self.log.stop();
                assert_eq!(result.is_ok(), self.logging.take().is_some(), "{result:?}");
                self.logged.clear();
            }
            _ => self.logged_by_the_device(bytes),
        }
    }

    fn map(&mut self, page: u64, oa: u64, perm: Perm) {
        let gpa = Gpa(page * PAGE)..Gpa((page + 1) * PAGE);
        self.tracked.bed.domain.map(gpa, Oa(oa * PAGE), perm).expect("maps");
        self.window[page as usize] = Some(Mapping { oa, perm });
    }

    fn unmap(&mut self, page: u64) {
        let gpa = Gpa(page * PAGE)..Gpa((page + 1) * PAGE);
        self.tracked.bed.domain.unmap(gpa).expect("unmaps");
        self.window[page as usize] = None;
    }

    /// Where a byte lies, if it may be accessed so.
    fn resolve(&self, iova: u64, writes: bool, reads: bool) -> Option<u64> {
        let page = iova / PAGE;
        let mapping = match self.window.get(usize::try_from(page).ok()?) {
            Some(mapping) => (*mapping)?,
            None if iova < MEMORY => Mapping { oa: page, perm: Perm::READ_WRITE },
            None => return None,
        };
        let allowed = (!writes || mapping.perm.write) && (!reads || mapping.perm.read);
        allowed.then_some(mapping.oa * PAGE + iova % PAGE)
    }

    /// The bytes from `iova` on that may be accessed, as pieces of physical memory; none of a range
    /// that wraps.
    fn pieces(&self, iova: u64, len: u64, writes: bool) -> Vec<(u64, u64)> {
        if len > 0 && iova.checked_add(len - 1).is_none() {
            return Vec::new();
        }
        let (mut pieces, mut at) = (Vec::new(), 0);
        while at < len {
            let Some(next) = iova.checked_add(at) else { break };
            let Some(oa) = self.resolve(next, writes, !writes) else { break };
            let piece = (PAGE - next % PAGE).min(len - at);
            pieces.push((oa, piece));
            at += piece;
        }
        pieces
    }

    fn wrote(&mut self, iova: u64, done: u64) {
        self.dirty.extend(pages(iova, done));
        self.touched.extend(pages(iova, done));
    }

    /// A pin to write sets the D bits of what it translates.
    fn translated(&mut self, iova: u64, len: u64) {
        let end = iova.saturating_add(len).min(MEMORY);
        self.touched.extend(pages(iova, end.saturating_sub(iova)));
    }

    /// A write that was faulted may have marked the page at which it was.
    fn tried(&mut self, iova: u64, done: u64) {
        self.touched.insert(iova.wrapping_add(done) / PAGE);
    }

    /// Checks the end of an access of which `possible` of `len` bytes may be done.
    fn check(status: i32, requester: u32, len: u64, possible: u64, done: u64) {
        let expected = if requester != 0 {
            (abi::DROGHER_ERR_NOENT, 0)
        } else if possible < len {
            (abi::DROGHER_ERR_FAULT, possible)
        } else {
            (abi::DROGHER_OK, len)
        };
        assert_eq!((status, done), expected, "{len} bytes, {possible} possible");
    }

    fn write(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, len, requester) = (bytes.address(), bytes.length(), bytes.requester());
        let (kind, first) = (bytes.byte(), bytes.byte());
        let len = len.min(BUFFER as u64);
        for (at, byte) in self.buffer[..len as usize].iter_mut().enumerate() {
            *byte = first.wrapping_add(at as u8);
        }
        let data = self.buffer.as_ptr().cast::<c_void>();
        let mut done = 77;
        if kind % 16 == 0 && len > 0 {
            // SAFETY: NULL is allowed to be given, and refused.
            let status = unsafe {
                self.dma.write.expect("there")(
                    self.ctx,
                    requester,
                    iova,
                    core::ptr::null(),
                    len,
                    &mut done,
                )
            };
            assert_eq!(status, abi::DROGHER_ERR_INVAL);
            return;
        }
        let pieces = self.pieces(iova, len, true);
        let possible: u64 = pieces.iter().map(|(_, len)| len).sum();
        // SAFETY: `data` is good for `len` bytes, the others are this function's.
        let status = unsafe {
            if kind % 2 == 0 {
                self.dma.write.expect("there")(self.ctx, requester, iova, data, len, &mut done)
            } else {
                let mut runs = Runs::new(kind);
                let write = self.log_host.write.expect("there");
                let status = write(self.ctx, requester, iova, data, len, &mut done, &mut runs.raw);
                if runs.check(status, iova, done) {
                    return;
                }
                status
            }
        };
        Self::check(status, requester, len, possible, done);
        if requester == 0 {
            let source = self.buffer[..possible as usize].to_vec();
            self.stored(&pieces, &source);
            self.wrote(iova, done);
            self.tried(iova, done);
        }
    }

    fn stored(&mut self, pieces: &[(u64, u64)], data: &[u8]) {
        let mut at = 0;
        for (oa, len) in pieces {
            let (oa, len) = (*oa as usize, *len as usize);
            self.shadow[oa..oa + len].copy_from_slice(&data[at..at + len]);
            at += len;
        }
        self.compare(pieces);
    }

    /// Memory and the model's agree.
    fn compare(&self, pieces: &[(u64, u64)]) {
        for (oa, len) in pieces {
            let mut found = vec![0; *len as usize];
            self.tracked.bed.memory.read(Oa(*oa), &mut found).expect("inside");
            let oa = *oa as usize;
            assert!(found == self.shadow[oa..oa + found.len()], "memory at {oa:#x}");
        }
    }

    fn fill(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, len, requester) = (bytes.address(), bytes.length(), bytes.requester());
        let (kind, byte) = (bytes.byte(), bytes.byte());
        let pieces = self.pieces(iova, len, true);
        let possible: u64 = pieces.iter().map(|(_, len)| len).sum();
        let mut done = 77;
        // SAFETY: all pointers are this function's.
        let status = unsafe {
            if kind % 2 == 0 {
                self.dma.fill.expect("there")(self.ctx, requester, iova, byte, len, &mut done)
            } else {
                let mut runs = Runs::new(kind);
                let fill = self.log_host.fill.expect("there");
                let status = fill(self.ctx, requester, iova, byte, len, &mut done, &mut runs.raw);
                if runs.check(status, iova, done) {
                    return;
                }
                status
            }
        };
        Self::check(status, requester, len, possible, done);
        if requester == 0 {
            self.stored(&pieces, &vec![byte; possible as usize]);
            self.wrote(iova, done);
            self.tried(iova, done);
        }
    }

    fn read(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, len, requester) = (bytes.address(), bytes.length(), bytes.requester());
        let (kind, mut done) = (bytes.byte(), 77);
        if kind % 16 == 0 && len > 0 || len > BUFFER as u64 && isize::try_from(len).is_err() {
            // SAFETY: NULL is allowed to be given, and refused.
            let status = unsafe {
                self.dma.read.expect("there")(self.ctx, requester, iova, null_mut(), len, &mut done)
            };
            assert_eq!(status, abi::DROGHER_ERR_INVAL);
            return;
        }
        let len = len.min(BUFFER as u64);
        self.buffer.fill(0xEE);
        let data = self.buffer.as_mut_ptr().cast::<c_void>();
        // SAFETY: `data` is good for `len` bytes.
        let status = unsafe {
            self.dma.read.expect("there")(self.ctx, requester, iova, data, len, &mut done)
        };
        let pieces = self.pieces(iova, len, false);
        let possible: u64 = pieces.iter().map(|(_, len)| len).sum();
        Self::check(status, requester, len, possible, done);
        let mut at = 0;
        for (oa, len) in pieces.iter().filter(|_| requester == 0) {
            let (oa, len) = (*oa as usize, *len as usize);
            assert!(self.buffer[at..at + len] == self.shadow[oa..oa + len], "read at {iova:#x}");
            at += len;
        }
        assert!(self.buffer[at..].iter().all(|byte| *byte == 0xEE), "beyond what was read");
    }

    fn atomic(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, requester) = (bytes.address(), bytes.requester());
        let (kind, operand) = (bytes.byte(), bytes.word());
        let size = if kind & 1 == 0 { 4 } else { 8 };
        let place = self.resolve(iova, true, true).filter(|_| requester == 0);
        let place = place.filter(|_| iova.is_multiple_of(size));
        let before = place.map(|oa| {
            let oa = oa as usize;
            let mut word = [0; 8];
            word[..size as usize].copy_from_slice(&self.shadow[oa..oa + size as usize]);
            u64::from_le_bytes(word)
        });
        let expected = if kind & 4 == 0 { before.unwrap_or(0) } else { operand.rotate_left(9) };
        let (mut old4, mut old8) = (0_u32, 0_u64);
        let (dma, logged, ctx) = (self.dma, self.log_host, self.ctx);
        let mut runs = Runs::new(kind);
        let (low, expected_low) = (operand as u32, expected as u32);
        let raw = &raw mut runs.raw;
        let (old4p, old8p) = (&raw mut old4, &raw mut old8);
        // SAFETY: all pointers are this function's.
        let status = unsafe {
            match kind & 0b1011 {
                0b0000 => dma.fetch_add_u32.expect("there")(ctx, requester, iova, low, old4p),
                0b0001 => dma.fetch_add_u64.expect("there")(ctx, requester, iova, operand, old8p),
                0b0010 => dma.compare_swap_u32.expect("there")(
                    ctx,
                    requester,
                    iova,
                    expected_low,
                    low,
                    old4p,
                ),
                0b0011 => dma.compare_swap_u64.expect("there")(
                    ctx, requester, iova, expected, operand, old8p,
                ),
                0b1000 => {
                    logged.fetch_add_u32.expect("there")(ctx, requester, iova, low, old4p, raw)
                }
                0b1001 => {
                    logged.fetch_add_u64.expect("there")(ctx, requester, iova, operand, old8p, raw)
                }
                0b1010 => logged.compare_swap_u32.expect("there")(
                    ctx,
                    requester,
                    iova,
                    expected_low,
                    low,
                    old4p,
                    raw,
                ),
                _ => logged.compare_swap_u64.expect("there")(
                    ctx, requester, iova, expected, operand, old8p, raw,
                ),
            }
        };
        if kind & 8 != 0 {
            let done = if status == abi::DROGHER_OK { size } else { 0 };
            if runs.check(status, iova, done) {
                return;
            }
        }
        let Some((oa, before)) = place.zip(before) else {
            let misaligned = !iova.is_multiple_of(size);
            let wanted = match (requester, misaligned) {
                (1.., _) => abi::DROGHER_ERR_NOENT,
                (0, true) => abi::DROGHER_ERR_INVAL,
                (0, false) => abi::DROGHER_ERR_FAULT,
            };
            assert_eq!(status, wanted, "{iova:#x}");
            if requester == 0 {
                self.tried(iova, 0);
            }
            return;
        };
        assert_eq!(status, abi::DROGHER_OK, "{iova:#x}");
        let old = if size == 4 { u64::from(old4) } else { old8 };
        assert_eq!(old, before, "{iova:#x}");
        let equal = if size == 4 { expected_low == old4 } else { expected == old8 };
        let after = match kind & 2 {
            0 => Some(before.wrapping_add(operand)),
            _ => equal.then_some(operand),
        };
        self.touched.insert(iova / PAGE);
        if let Some(after) = after {
            self.stored(&[(oa, size)], &after.to_le_bytes()[..size as usize]);
            self.wrote(iova, size);
        }
    }

    fn pin(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, len, requester) = (bytes.address(), bytes.length(), bytes.requester());
        let access = u32::from(bytes.byte() % 5);
        let mut out = abi::Pinned { ptr: null_mut(), len: 99, handle: 99, gpa: 99 };
        // SAFETY: the pointer is this function's.
        let status = unsafe {
            self.pin_host.pin.expect("there")(self.ctx, requester, iova, len, access, &mut out)
        };
        assert!(STATUS.contains(&status), "{status}");
        self.translated(iova, len);
        let wraps = len == 0 || iova.checked_add(len - 1).is_none();
        if requester == 0 && (wraps || !(1..=3).contains(&access)) {
            assert_eq!(status, abi::DROGHER_ERR_INVAL, "{iova:#x}, {len:#x}, {access}");
        }
        if status != abi::DROGHER_OK {
            assert!(out.ptr.is_null() && out.handle == 0, "a pin that was refused");
            assert!(status == abi::DROGHER_ERR_RANGE || out.len == 0);
            return;
        }
        assert_eq!((out.gpa, out.len), (iova, len));
        let (reads, writes) = (access & 1 != 0, access & 2 != 0);
        let oa = self.resolve(iova, writes, reads).expect("what is pinned is mapped");
        for at in (0..len).step_by(PAGE as usize).chain([len - 1]) {
            assert_eq!(self.resolve(iova + at, writes, reads), Some(oa + at), "lies together");
        }
        // SAFETY: pinned for `len` bytes; nobody else accesses the memory now.
        let first = unsafe { out.ptr.cast::<u8>().read_volatile() };
        assert_eq!(first, self.shadow[oa as usize]);
        if writes {
            let byte = first.wrapping_add(1);
            // SAFETY: as above, to write.
            unsafe { out.ptr.cast::<u8>().write_volatile(byte) };
            self.stored(&[(oa, 1)], &[byte]);
        }
        let held = Held { gpa: pages(out.gpa, len), oa, writes };
        assert!(self.pins.insert(out.handle, held).is_none(), "a handle twice");
    }

    fn unpin(&mut self, handle: u64) {
        // SAFETY: any number may be given.
        let status = unsafe { self.pin_host.unpin.expect("there")(self.ctx, handle) };
        let Some(held) = self.pins.remove(&handle) else {
            assert_eq!(status, abi::DROGHER_ERR_NOENT, "{handle}");
            return;
        };
        assert_eq!(status, abi::DROGHER_OK, "{handle}, memory at {:#x}", held.oa);
        if held.writes {
            self.once.extend(held.gpa);
        }
    }

    fn mark(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, len, requester) = (bytes.address(), bytes.length(), bytes.requester());
        // SAFETY: any numbers may be given.
        let status =
            unsafe { self.pin_host.mark_dirty.expect("there")(self.ctx, requester, iova, len) };
        assert!(STATUS.contains(&status), "{status}");
        self.translated(iova, len);
        if requester == 0 && (len == 0 || iova.checked_add(len - 1).is_none()) {
            assert_eq!(status, abi::DROGHER_ERR_INVAL);
        }
        if status == abi::DROGHER_OK {
            assert!(self.resolve(iova, true, false).is_some(), "{iova:#x} may be written");
            self.once.extend(pages(iova, len));
        } else {
            let end = iova.saturating_add(len).min(MEMORY);
            self.tried_once.extend(pages(iova, end.saturating_sub(iova)));
        }
    }

    /// What was written is reported, by the domain and by the board of the pins; nothing else.
    fn harvest(&mut self) {
        let all = Gpa(0)..Gpa(MEMORY);
        let bitmap = DirtyBitmap::new(all.clone()).expect("aligned");
        self.tracked.bed.domain.read_and_clear_dirty(all.clone(), &bitmap).expect("harvests");
        let found: BTreeSet<u64> =
            bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect();
        let missing: Vec<_> = self.dirty.difference(&found).collect();
        assert!(missing.is_empty(), "written, not reported: {missing:?}");
        let idle: Vec<_> = found.difference(&self.touched).collect();
        assert!(idle.is_empty(), "reported, not written: {idle:?}");
        self.dirty.clear();
        self.touched.clear();

        let bitmap = DirtyBitmap::new(all.clone()).expect("aligned");
        self.board.harvest(&all, &bitmap).expect("harvests");
        let found: BTreeSet<u64> =
            bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect();
        let mut wanted = std::mem::take(&mut self.once);
        for held in self.pins.values().filter(|held| held.writes) {
            wanted.extend(held.gpa.clone());
        }
        let missing: Vec<_> = wanted.difference(&found).collect();
        assert!(missing.is_empty(), "pinned, unpinned or marked, not reported: {missing:?}");
        wanted.append(&mut self.tried_once);
        let idle: Vec<_> = found.difference(&wanted).collect();
        assert!(idle.is_empty(), "reported, not pinned nor marked: {idle:?}");
    }

    fn log_start(&mut self, bytes: &mut Bytes<'_>) {
        let sizes = [4 << 10, 4 << 10, 16 << 10, 64 << 10, 2 << 20, 3 << 10, 0, 1 << 63];
        let size = sizes[usize::from(bytes.byte() % 8)];
        let Ok(size) = TrackingPageSize::new(size) else {
            assert!([3 << 10, 0, 1 << 63].contains(&size), "{size} is a tracking page size");
            return;
        };
        let mut ranges = Vec::new();
        for _ in 0..bytes.byte() % 4 {
            let start = bytes.address();
            let start =
                if bytes.byte() < 200 { start / size.bytes() * size.bytes() } else { start };
            let len = if bytes.byte() < 200 { size.bytes() } else { bytes.length() };
            ranges.push(start..start.wrapping_add(len));
        }
        let sound = !ranges.is_empty()
            && ranges.iter().all(|r| {
                r.start < r.end && r.start % size.bytes() == 0 && r.end % size.bytes() == 0
            })
            && ranges.windows(2).all(|pair| pair[0].end <= pair[1].start);
        match self.log.start(&gpas(&ranges), size) {
            Ok(chosen) => {
                assert!(self.logging.is_none(), "started twice");
                assert!(sound, "{ranges:x?} of {size:?} is wrong");
                self.logged.clear();
                self.logging = Some((ranges, chosen));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }

    fn log_report(&mut self, bytes: &mut Bytes<'_>) {
        let start = bytes.address() & !(PAGE - 1);
        let end = start.saturating_add(u64::from(bytes.byte()) * PAGE);
        let within = u64::from(bytes.byte() % 64) * PAGE;
        // Sometimes too short for the range, or beside it.
        let Ok(bitmap) = DirtyBitmap::new(Gpa(within)..Gpa(within + 128 * PAGE)) else { return };
        let size = self.logging.as_ref().map_or(TrackingPageSize::K4, |(_, size)| *size);
        let result = self.log.report(&(Gpa(start)..Gpa(end)), size, &bitmap);
        if self.logging.is_none() {
            assert!(result.is_err(), "of a log that does not run");
            return;
        }
        let asked = |page: &u64| (start / PAGE..end / PAGE).contains(page);
        match result {
            Ok(()) => {
                for page in self.logged.iter().filter(|page| asked(page)) {
                    assert!(bitmap.test(Gpa(page * PAGE)), "page {page} is not in the log");
                }
                // At the end of the bitmap a page is taken whole.
                let taken = start / PAGE..end.next_multiple_of(size.bytes()) / PAGE;
                self.logged.retain(|page| !taken.contains(page));
            }
            // All memory counts as dirty.
            Err(_) => self.logged.clear(),
        }
    }

    fn report_all(&mut self) {
        let Some((ranges, size)) = self.logging.clone() else { return };
        for range in ranges.iter().filter(|range| range.end <= MEMORY * 2) {
            let range = Gpa(range.start)..Gpa(range.end);
            let bitmap = DirtyBitmap::new(range.clone()).expect("aligned");
            self.log.report(&range, size, &bitmap).expect("reports");
            for page in self.logged.iter().filter(|page| range.contains(&Gpa(**page * PAGE))) {
                assert!(bitmap.test(Gpa(page * PAGE)), "page {page} is not in the log");
            }
        }
        self.logged.clear();
    }

    /// The device itself writes, and logs what the host says of it.
    fn logged_by_the_device(&mut self, bytes: &mut Bytes<'_>) {
        let (iova, len) = (bytes.address(), bytes.length() % (2 * PAGE));
        let pieces = self.pieces(iova, len, true);
        let possible: u64 = pieces.iter().map(|(_, len)| len).sum();
        let status = self.tracked.act(LOGGED, &[(IOVA, iova), (LEN, len)]);
        let wanted = if possible < len { abi::DROGHER_ERR_FAULT } else { abi::DROGHER_OK };
        assert_eq!(status, i64::from(wanted));
        self.stored(&pieces, &vec![0x55; possible as usize]);
        self.wrote(iova, possible);
        self.tried(iova, possible);
        let Some((ranges, _)) = &self.logging else { return };
        let inside = |page: &u64| ranges.iter().any(|range| range.contains(&(page * PAGE)));
        self.logged.extend(pages(iova, possible).filter(inside));
    }
}

/// Room for runs, with a guard behind it.
struct Runs {
    _room: Box<[abi::GpaRange; 2]>,
    raw: abi::GpaRuns,
    too_small: bool,
}

impl Runs {
    fn new(kind: u8) -> Runs {
        let guard = abi::GpaRange { gpa: 0xEE, len: 0xEE };
        let mut room = Box::new([guard; 2]);
        let capacity = u64::from(kind & 0x60 != 0);
        let null = kind & 0x18 == 0x10;
        let runs = if null { null_mut() } else { room.as_mut_ptr() };
        let raw = abi::GpaRuns { runs, capacity, count: 99 };
        Runs { _room: room, raw, too_small: null || capacity == 0 }
    }

    /// True if the call had to be refused, and was.
    fn check(&self, status: i32, iova: u64, done: u64) -> bool {
        if self.too_small {
            assert_eq!(status, abi::DROGHER_ERR_INVAL);
            return true;
        }
        assert_eq!(self.raw.count, u64::from(done > 0), "runs for {done} bytes");
        // SAFETY: this call's own room.
        let [run, guard] = unsafe { *self.raw.runs.cast::<[abi::GpaRange; 2]>() };
        if done > 0 {
            assert_eq!((run.gpa, run.len), (iova, done));
        }
        assert_eq!((guard.gpa, guard.len), (0xEE, 0xEE), "beyond the room");
        false
    }
}
