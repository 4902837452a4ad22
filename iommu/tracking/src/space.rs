//! One address space under tracking.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drogher_iommu_types::{DirtyBitmap, Gpa, PageCount, Rid, mutant};

use crate::address_space::AddressSpace;
use crate::bits::{meet, move_bits, set_pages};
use crate::members::{Cover, Device, Members};
use crate::page_size::TrackingPageSize;
use crate::provider::{Class, HarvestStats, ProviderError, ProviderKind};
use crate::providers::AllProvider;
use crate::sink::Sink;
use crate::space_error::SpaceError;
use crate::tracker::Tracker;

/// What one harvest of an address space found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceHarvest {
    /// What the devices' reports are worth from here on: of the worst that may do DMA, or all-mapped
    /// if a tracker failed. What was written before a narrowing is in `carried`, wide as it was then.
    pub class: Class,
    /// What the trackers reported; a page that two report counts twice.
    pub tracked: HarvestStats,
    /// What was reported because some device could write anywhere, or a tracker had failed.
    pub wide: Option<PageCount>,
    /// What was carried over: from narrowings, unmaps and failures since the last harvest, and the
    /// rest of tracking pages that it had cut.
    pub carried: PageCount,
    /// Trackers that failed in it.
    pub failed: u32,
}

/// What a start or a switch has led to, by provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Which.
    pub provider: ProviderKind,
    /// The device, if it sees one alone.
    pub device: Option<Rid>,
    /// What its reports are worth.
    pub class: Class,
    /// The page size that was chosen.
    pub page_size: TrackingPageSize,
    /// Pages of 4 KiB that its harvests have reported so far.
    pub pages: PageCount,
}

/// How an address space is tracked at a moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The trackers that run; empty while tracking is off.
    pub trackers: Vec<Started>,
    /// Devices that could write anywhere now, as far as trackers know.
    pub n_unlimited: u64,
    /// What a harvest would be worth now, if no tracker fails in it; those that did are counted below.
    pub class: Class,
    /// Failures of trackers since the start.
    pub failures: u64,
    /// The last of them, with its causes.
    pub last_failure: Option<Arc<ProviderError>>,
    /// Pages that wait for the next harvest.
    pub carried: PageCount,
}

/// One address space: its devices, what tracks them, and what is still to be reported.
///
/// Any thread may call anything. All calls exclude one another (the harvest lock); DMA runs beside
/// them. A call takes as long as the providers' own deadlines allow.
///
/// While tracking is on, memory must be unmapped by [`Self::unmap`]: a page that is mapped no more
/// is in no report of what is mapped.
pub struct TrackedSpace {
    pub(crate) label: String,
    pub(crate) space: Arc<dyn AddressSpace>,
    pub(crate) ram: Vec<Range<Gpa>>,
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) members: Members,
    pub(crate) running: Option<Running>,
}

/// What there is while tracking is on.
pub(crate) struct Running {
    pub(crate) trackers: Vec<Tracker>,
    pub(crate) all: AllProvider,
    /// What the next harvest takes beside what trackers say.
    pub(crate) carry: DirtyBitmap,
    pub(crate) scratch: DirtyBitmap,
    pub(crate) require_exact: bool,
    failures: u64,
    last_failure: Option<Arc<ProviderError>>,
}

impl TrackedSpace {
    /// Tracking is off, and no device attached. `ram` is the guest's memory that devices may
    /// reach: sorted, apart, of whole pages.
    ///
    /// # Errors
    /// `Ram`.
    pub fn new(
        label: &str,
        space: Arc<dyn AddressSpace>,
        ram: &[Range<Gpa>],
    ) -> Result<Self, SpaceError> {
        let ram: Vec<_> = ram.iter().filter(|range| range.start != range.end).cloned().collect();
        let whole = |r: &Range<Gpa>| r.start.is_page_aligned() && r.end.is_page_aligned();
        let bad = ram.iter().find(|range| range.is_empty() || !whole(range));
        let touching = ram.windows(2).find_map(|pair| match pair {
            [a, b] if b.start < a.end => Some(b),
            _ => None,
        });
        if let Some(Range { start, end }) = bad.or(touching).cloned() {
            return Err(SpaceError::Ram { start, end });
        }
        Ok(Self { label: label.to_owned(), space, ram, state: Mutex::default() })
    }

    /// What this address space is called.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// From the first byte of RAM to the last, holes included.
    #[must_use]
    pub fn span(&self) -> Range<Gpa> {
        let start = self.ram.first().map_or(Gpa(0), |range| range.start);
        start..self.ram.last().map_or(start, |range| range.end)
    }

    /// ORs what devices have written in `range` since the last harvest of it into `into`, of which
    /// it clears nothing. `range` is inside [`Self::span`], of whole pages; holes are allowed.
    ///
    /// A tracker that fails costs exactness, not pages: all RAM is reported now, and once more next
    /// time.
    ///
    /// # Errors
    /// `NotTracking`, `Range`, `Bitmap`: then nothing was taken. `Failed`, `NotExact` only if an
    /// exact report is required: what there was to report is in `into` all the same.
    pub fn harvest(
        &self,
        range: Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<SpaceHarvest, SpaceError> {
        self.check(&range, into)?;
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        let running = running.as_mut().ok_or(SpaceError::NotTracking)?;
        let carried = move_bits(&running.carry, &range, into)?;
        let sink = Sink::new(range.clone(), &self.ram, into, &running.carry, &running.scratch);
        let (mut tracked, mut failed, mut first) = (HarvestStats::default(), 0, None);
        for tracker in &mut running.trackers {
            match tracker.provider.harvest(&sink) {
                Ok(stats) => {
                    tracked += stats;
                    tracker.pages += stats.pages;
                }
                Err(error) => {
                    failed += 1;
                    let error = Arc::new(error);
                    running.last_failure = Some(error.clone());
                    first.get_or_insert(error);
                }
            }
        }
        let wide = if failed > 0 {
            running.failures += u64::from(failed);
            // What the failed harvest has cleared may lie anywhere, be it mapped no more, and a
            // write in flight may land after its page was copied: the next harvest has it all again.
            self.all_ram(&self.span(), &running.carry)?;
            Some(self.all_ram(&range, into)?)
        } else if members.n_unlimited() > 0 {
            Some(self.wide(members, running, &range, into)?)
        } else {
            None
        };
        let class = if failed > 0 { Class::AllMapped } else { members.class() };
        if running.require_exact {
            if let Some(source) = first {
                return Err(SpaceError::Failed { space: self.label.clone(), source });
            }
            if class != Class::Exact {
                return Err(self.not_exact(members, class));
            }
        }
        Ok(SpaceHarvest { class, tracked, wide, carried, failed })
    }

    /// Unmaps `range`; what could be written in it without record, or is still to be recorded, is
    /// in the next harvest.
    ///
    /// # Errors
    /// The address space's. The pages are reported all the same.
    pub fn unmap(&self, range: Range<Gpa>) -> Result<PageCount, SpaceError> {
        let state = self.lock();
        let part = meet(&range, &self.span());
        let late = |tracker: &Tracker| !tracker.provider.last_read_is_complete();
        if let Some(running) = &state.running
            && (state.members.n_unlimited() > 0 || running.trackers.iter().any(late))
        {
            // No harvest takes it before the writes have ended: it waits for the lock.
            self.wide(&state.members, running, &part, &running.carry)?;
        }
        Ok(self.space.unmap(&range)?)
    }

    /// How it is tracked now. Waits for an operation under way.
    #[must_use]
    pub fn status(&self) -> Status {
        let state = self.lock();
        let running = state.running.as_ref();
        Status {
            trackers: running.map_or_else(Vec::new, Running::started),
            n_unlimited: state.members.n_unlimited(),
            class: state.members.class(),
            failures: running.map_or(0, |running| running.failures),
            last_failure: running.and_then(|running| running.last_failure.clone()),
            carried: running.map_or(PageCount(0), |running| running.carry.count()),
        }
    }

    /// Attaches a device, before it does any DMA. While tracking is on, the domain's recorder
    /// covers it if it can, else everything mapped is dirty until a [`Self::switch`] narrows.
    ///
    /// # Errors
    /// `Attached`. `Raw`: it could write anywhere, seen by nobody, while tracking is on.
    pub fn attach(&self, device: Device) -> Result<(), SpaceError> {
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        let cover = match running {
            None => Cover::none(),
            Some(running) => Cover::of_newcomer(&device.caps, running.recorder())
                .ok_or_else(|| SpaceError::raw(&device.caps))?,
        };
        members.add(device, cover)
    }

    /// Detaches a device whose DMA has ended. Waits for what is in flight, then reports what only
    /// the device's own tracker knows, and everything mapped once if it could write anywhere.
    ///
    /// # Errors
    /// `NoDevice`. `AddressSpace`: an access is still in flight; then it is attached still.
    pub fn detach(&self, rid: Rid) -> Result<(), SpaceError> {
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        members.get(rid)?;
        if let Some(running) = running {
            self.space.drain()?;
            let own = |tracker: &Tracker| tracker.device() == Some(rid);
            let (own, others) = std::mem::take(&mut running.trackers).into_iter().partition(own);
            running.trackers = others;
            self.last_read(running, own, |_| true)?;
            if members.is_unlimited(rid) {
                self.last_wide(members, running)?;
            }
        }
        members.remove(rid);
        Ok(())
    }

    /// The device has entered NDMA: it does no DMA any more. Waits for what is in flight; if it
    /// could write anywhere, everything mapped is reported once more, and then no longer for it.
    ///
    /// # Errors
    /// `NoDevice`, `InNdma`, `NoNdma`. `AddressSpace`: an access is still in flight; then it does
    /// not count as being in NDMA.
    pub fn ndma_entered(&self, rid: Rid) -> Result<(), SpaceError> {
        self.silent(rid, |members| members.may_enter_ndma(rid))
    }

    /// The device has stopped, be it that it has NDMA or not: from now on it counts as being in NDMA,
    /// until [`Self::ndma_left`].
    ///
    /// # Errors
    /// As of [`Self::ndma_entered`], but for `NoNdma`.
    pub fn stopped(&self, rid: Rid) -> Result<(), SpaceError> {
        self.silent(rid, |members| members.may_be_silent(rid))
    }

    fn silent(
        &self,
        rid: Rid,
        may: impl FnOnce(&Members) -> Result<(), SpaceError>,
    ) -> Result<(), SpaceError> {
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        may(members)?;
        if let Some(running) = running {
            self.space.drain()?;
            if members.is_unlimited(rid) {
                self.last_wide(members, running)?;
            }
        }
        members.enter_ndma(rid);
        Ok(())
    }

    /// The device is about to leave NDMA: from the return on it may do DMA.
    ///
    /// # Errors
    /// `NoDevice`, `NotInNdma`.
    pub fn ndma_left(&self, rid: Rid) -> Result<(), SpaceError> {
        self.lock().members.leave_ndma(rid)
    }

    /// The wide report that goes before every narrowing: by now the new tracker records, or the
    /// DMA has ended.
    pub(crate) fn last_wide(&self, members: &Members, running: &Running) -> Result<(), SpaceError> {
        if !mutant!("narrow-before-wide") {
            self.wide(members, running, &self.span(), &running.carry)?;
        }
        Ok(())
    }

    /// ORs everything that devices could write to in `range` into `into`, which covers it. If the
    /// address space cannot say what that is, all RAM.
    pub(crate) fn wide(
        &self,
        members: &Members,
        running: &Running,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<PageCount, SpaceError> {
        if !members.any_raw() {
            let sink = Sink::new(range.clone(), &self.ram, into, into, &running.scratch);
            if let Ok(pages) = running.all.report(&sink) {
                return Ok(pages);
            }
        }
        self.all_ram(range, into)
    }

    /// Sets all RAM of `range` in `into`, which covers it.
    fn all_ram(&self, range: &Range<Gpa>, into: &DirtyBitmap) -> Result<PageCount, SpaceError> {
        let mut pages = PageCount(0);
        for piece in &self.ram {
            pages += set_pages(&meet(piece, range), into)?;
        }
        Ok(pages)
    }

    /// Harvests trackers one last time, into the carry-over, and stops them. False if one may not
    /// have told everything, because its device goes on (`ended` does not hold). If one fails, all
    /// RAM is carried over.
    pub(crate) fn last_read(
        &self,
        running: &mut Running,
        trackers: Vec<Tracker>,
        ended: impl Fn(&Tracker) -> bool,
    ) -> Result<bool, SpaceError> {
        let mut complete = true;
        for mut tracker in trackers {
            let carry = &running.carry;
            let sink = Sink::new(self.span(), &self.ram, carry, carry, &running.scratch);
            complete &= tracker.provider.last_read_is_complete() || ended(&tracker);
            let read = tracker.provider.harvest(&sink).map(drop);
            let stopped = tracker.provider.stop();
            if read.is_err() {
                self.all_ram(&self.span(), carry)?;
            }
            [read, stopped].into_iter().filter_map(Result::err).for_each(|e| running.note(e));
        }
        Ok(complete)
    }

    fn check(&self, range: &Range<Gpa>, into: &DirtyBitmap) -> Result<(), SpaceError> {
        let (Range { start, end }, span) = (range.clone(), self.span());
        let aligned = start.is_page_aligned() && end.is_page_aligned() && start <= end;
        if !aligned || (start < end && (start < span.start || end > span.end)) {
            let (span_start, span_end) = (span.start, span.end);
            return Err(SpaceError::Range { start, end, span_start, span_end });
        }
        if !into.covers(range) {
            let Range { start: covered_start, end: covered_end } = into.range();
            return Err(SpaceError::Bitmap(drogher_iommu_types::BitmapError::Outside {
                start,
                end,
                covered_start,
                covered_end,
            }));
        }
        Ok(())
    }

    fn not_exact(&self, members: &Members, class: Class) -> SpaceError {
        SpaceError::NotExact {
            space: self.label.clone(),
            class,
            devices: members.worse_than_exact(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    pub(crate) fn new(
        all: AllProvider,
        span: &Range<Gpa>,
        require_exact: bool,
    ) -> Result<Self, SpaceError> {
        // From the start of a tracking page of any size: trackers are asked for whole ones.
        let start = Gpa(span.start.0 & !(TrackingPageSize::M2.bytes() - 1));
        Ok(Self {
            trackers: Vec::new(),
            all,
            carry: DirtyBitmap::new(span.clone())?,
            scratch: DirtyBitmap::new(start..span.end)?,
            require_exact,
            failures: 0,
            last_failure: None,
        })
    }

    pub(crate) fn note(&mut self, error: ProviderError) {
        self.failures += 1;
        self.last_failure = Some(Arc::new(error));
    }

    /// The mode of the domain's own recorder, if it runs.
    pub(crate) fn recorder(&self) -> Option<ProviderKind> {
        self.trackers.iter().map(|t| t.provider.kind()).find(|kind| kind.is_recorder())
    }

    pub(crate) fn started(&self) -> Vec<Started> {
        self.trackers.iter().map(Tracker::started).collect()
    }
}

impl std::fmt::Debug for TrackedSpace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackedSpace").field("label", &self.label).finish_non_exhaustive()
    }
}
