//! Starting, switching and stopping the trackers of an address space.
//!
//! The rule of narrowing, all of it under the harvest lock, so that no harvest comes between:
//! 1. the new tracker records already (its start has waited for writes in flight);
//! 2. the old one is read a last time into the carry-over, and if any device could write anywhere,
//!    or the old one may not have told everything, so is everything mapped;
//! 3. only then the old one stops.
//!
//! Everything mapped is looked up after 1: a page that is mapped in between is either found by the
//! look-up, or was written to under the new tracker.

use drogher_iommu_types::{Rid, mutant};

use crate::caps::Dma;
use crate::members::{Cover, Members};
use crate::plan::Plan;
use crate::provider::ProviderKind;
use crate::providers::AllProvider;
use crate::space::{Running, Started, State, TrackedSpace};
use crate::space_error::SpaceError;
use crate::tracker::{Resource, Spec, Tracker};

impl TrackedSpace {
    /// Begins to track by `plan`. From the return on every write is in a later harvest: copy
    /// everything after this.
    ///
    /// # Errors
    /// `AlreadyTracking`, `Plan`, `NoSource`, `Raw`, `Bitmap`, `Start`: then tracking is off.
    pub fn start(&self, plan: &Plan) -> Result<Vec<Started>, SpaceError> {
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        if running.is_some() {
            return Err(SpaceError::AlreadyTracking);
        }
        self.check_plan(members, plan)?;
        let trackers = self.trackers(&Spec::of(plan), members)?;
        let all = AllProvider::new(self.space.clone());
        let mut new = Running::new(all, &self.span(), plan.require_exact)?;
        new.trackers = self.start_all(trackers)?;
        let started = new.started();
        members.cover(|member| planned(plan, member.device.caps.rid));
        *running = Some(new);
        Ok(started)
    }

    /// Goes over to another plan while devices do DMA. Trackers that both plans have go on.
    ///
    /// # Errors
    /// `NotTracking`, `Plan`, `NoSource`, `Raw`: nothing changed. `Start`: the old plan goes on;
    /// of an old tracker that had to stop first and could not be started again the devices report
    /// everything mapped.
    pub fn switch(&self, plan: &Plan) -> Result<Vec<Started>, SpaceError> {
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        let running = running.as_mut().ok_or(SpaceError::NotTracking)?;
        self.check_plan(members, plan)?;
        let wanted = Spec::of(plan);
        let is_wanted = |tracker: &Tracker| {
            wanted.iter().any(|spec| {
                spec.is_like(&tracker.spec)
                    && (spec.page_size == tracker.spec.page_size
                        || tracker.provider.can_change_page_size())
            })
        };
        let is_there = |spec: &&Spec| {
            running.trackers.iter().any(|tracker| spec.is_like(&tracker.spec) && is_wanted(tracker))
        };
        let fresh: Vec<Spec> = wanted.iter().filter(|spec| !is_there(spec)).copied().collect();
        let fresh_trackers = self.trackers(&fresh, members)?;

        let old = std::mem::take(&mut running.trackers);
        let (kept, leaving): (Vec<_>, Vec<_>) = old.into_iter().partition(is_wanted);
        let needed = |tracker: &Tracker| {
            let resource = tracker.spec.resource();
            resource != Resource::Nothing && fresh.iter().any(|spec| spec.resource() == resource)
        };
        let (clashing, leaving): (Vec<_>, Vec<_>) = leaving.into_iter().partition(needed);
        running.trackers = kept;

        let mut wide = members.n_unlimited() > 0 || !clashing.is_empty();
        let stopped: Vec<Spec> = clashing.iter().map(|tracker| tracker.spec).collect();
        self.last_read(running, clashing, |_| false)?;
        if wide && mutant!("wide-before-recording") {
            self.last_wide(members, running)?;
        }
        let started = match self.start_all(fresh_trackers) {
            Ok(started) => started,
            Err(error) => {
                running.trackers.extend(leaving);
                self.go_back(members, running, &stopped)?;
                return Err(error);
            }
        };
        let idle = |tracker: &Tracker| self.is_idle(members, tracker);
        wide |= !self.last_read(running, leaving, idle)?;
        if wide && !mutant!("wide-before-recording") {
            self.last_wide(members, running)?;
        }
        running.trackers.extend(started);
        for tracker in &mut running.trackers {
            if let Some(spec) = wanted.iter().find(|spec| spec.is_like(&tracker.spec)) {
                tracker.set_page_size(spec.page_size);
            }
        }
        running.require_exact = plan.require_exact;
        members.cover(|member| planned(plan, member.device.caps.rid));
        Ok(running.started())
    }

    /// Stops tracking and forgets what was not harvested: after the last harvest, or to give up.
    ///
    /// # Errors
    /// `NotTracking`. `Stop`: the first provider that did not stop as it should; tracking is off
    /// all the same.
    pub fn stop(&self) -> Result<(), SpaceError> {
        let mut state = self.lock();
        let State { members, running } = &mut *state;
        let mut running = running.take().ok_or(SpaceError::NotTracking)?;
        members.cover(|_| Cover::none());
        let mut first = None;
        for tracker in &mut running.trackers {
            if let Err(source) = tracker.provider.stop() {
                first.get_or_insert(SpaceError::Stop {
                    space: self.label.clone(),
                    provider: tracker.spec.kind,
                    source,
                });
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn check_plan(&self, members: &Members, plan: &Plan) -> Result<(), SpaceError> {
        let misfit = |device| SpaceError::Plan { space: self.label.clone(), device };
        if let Some(device) = members.misfit(plan) {
            return Err(misfit(device));
        }
        for member in members.iter() {
            let caps = &member.device.caps;
            let cover = planned(plan, caps.rid);
            let recorded =
                cover.kind.is_none_or(|kind| kind.is_recorder() || kind == ProviderKind::All);
            if caps.dma == Dma::Raw && recorded {
                return Err(SpaceError::raw(caps));
            }
            let uncovered = caps.dma != Dma::None && cover.kind.is_none();
            let no_recorder = cover.kind.is_some_and(ProviderKind::is_recorder)
                && cover.kind != plan.recorder().map(|(kind, _)| kind);
            if uncovered || no_recorder {
                return Err(misfit(format!("nothing would cover {}", caps.label)));
            }
        }
        Ok(())
    }

    fn trackers(&self, specs: &[Spec], members: &Members) -> Result<Vec<Tracker>, SpaceError> {
        let new = |spec: &Spec| Tracker::new(*spec, &self.space, &self.ram, members);
        specs.iter().map(new).collect()
    }

    /// Starts all, or none.
    fn start_all(&self, mut trackers: Vec<Tracker>) -> Result<Vec<Tracker>, SpaceError> {
        for at in 0..trackers.len() {
            let Some(tracker) = trackers.get_mut(at) else {
                break;
            };
            if let Err(source) = tracker.provider.start() {
                let provider = tracker.spec.kind;
                for started in trackers.iter_mut().take(at) {
                    // The error that counts is the start's.
                    let _ = started.provider.stop();
                }
                return Err(SpaceError::Start { space: self.label.clone(), provider, source });
            }
        }
        Ok(trackers)
    }

    /// Starts again what had to stop for something that then did not start.
    fn go_back(
        &self,
        members: &mut Members,
        running: &mut Running,
        stopped: &[Spec],
    ) -> Result<(), SpaceError> {
        for spec in stopped {
            let restarted = self
                .trackers(std::slice::from_ref(spec), members)
                .and_then(|trackers| self.start_all(trackers));
            match restarted {
                Ok(trackers) => running.trackers.extend(trackers),
                Err(error) => {
                    if let SpaceError::Start { source, .. } = error {
                        running.note(source);
                    }
                    members.cover(|member| {
                        let lost = match spec.device {
                            Some(rid) => rid == member.device.caps.rid,
                            None => member.cover.kind == Some(spec.kind),
                        };
                        if lost { Cover::everything() } else { member.cover }
                    });
                }
            }
        }
        if !stopped.is_empty() {
            self.last_wide(members, running)?;
        }
        Ok(())
    }

    /// True if the one device that the tracker sees does no DMA.
    fn is_idle(&self, members: &Members, tracker: &Tracker) -> bool {
        tracker.device().is_some_and(|rid| members.is_in_ndma(rid))
    }
}

/// What the plan gives the device; checked before to be there.
fn planned(plan: &Plan, rid: Rid) -> Cover {
    plan.device(rid).map_or_else(Cover::none, Cover::planned)
}
