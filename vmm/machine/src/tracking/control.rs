//! Tracking of all address spaces together: planned, started, harvested, switched, stopped.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drogher_iommu_types::{DirtyBitmap, Gpa, Rid};
use drogher_tracking::{Choice, Class, Costs, Explanation, Plan, Refusal, RefusalCode, SpaceError};

use super::measure;
use super::operator::{Operator, Wishes};
use super::plan::{self, RefusalList};
use super::spaces::{Space, Spaces};
use super::view::{DeviceTracking, SpaceTracking, TrackerView, TrackingStatus};
use crate::device::{DeviceError, DeviceSet, PciDevice};

/// Why tracking does not do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum TrackingError {
    /// No plan can be made.
    #[error("DMA cannot be tracked so:\n{0}")]
    Refused(RefusalList),
    /// It was not planned before it was started, or stopped meanwhile.
    #[error("No tracking was planned")]
    NotPlanned,
    /// An address space.
    #[error("Address space {space}")]
    Space {
        /// Which.
        space: String,
        /// What it says.
        #[source]
        source: Box<SpaceError>,
    },
    /// A device that is to enter or leave NDMA.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// One migration's tracking.
struct Session {
    operator: Operator,
    /// As they were when it was planned.
    costs: Costs,
    plans: Vec<Plan>,
    spaces: Arc<[Arc<Space>]>,
    running: bool,
    /// The rounds have begun: who is chosen for early NDMA stands.
    rounds: bool,
}

#[derive(Default)]
struct State {
    operator: Operator,
    session: Option<Session>,
    /// As it was when tracking ended.
    last: Option<TrackingStatus>,
}

/// The tracking of a machine's devices. Any thread may call anything; a harvest excludes nothing but
/// other calls on the same address space.
#[derive(Default)]
pub struct TrackingControl {
    state: Mutex<State>,
    /// What providers cost here decides where nobody else does.
    measures: bool,
}

impl std::fmt::Debug for TrackingControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrackingControl").finish_non_exhaustive()
    }
}

impl TrackingControl {
    /// One that lets a short measurement decide where neither operator nor plugin does.
    #[must_use]
    pub fn measuring() -> Self {
        Self { measures: true, ..Self::default() }
    }

    /// What providers cost for devices that are not looked at.
    fn typical(&self) -> Costs {
        if self.measures { measure::typical() } else { Costs::default() }
    }

    // Each change is made whole before it is stored.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the operator says at the start. Measures nothing: the guest is about to run.
    ///
    /// # Errors
    /// `Refused`: it names devices that there are not. It is taken all the same.
    pub fn set_wishes(&self, devices: &DeviceSet, wishes: &Wishes) -> Result<(), TrackingError> {
        let operator = Operator::of(wishes);
        let planned = plan::plan(&plan::subjects(devices), &operator, &Costs::default());
        self.state().operator = operator;
        let mut refusals = planned.err().unwrap_or_default();
        refusals.retain(|refusal| refusal.code == RefusalCode::NoSuchDevice);
        match refusals.is_empty() {
            true => Ok(()),
            false => Err(TrackingError::Refused(RefusalList(refusals))),
        }
    }

    /// What would run in a migration with these `wishes` of its own, and why; or what is against it.
    #[must_use]
    pub fn explain(&self, devices: &DeviceSet, wishes: &Wishes) -> Explanation {
        let subjects = plan::subjects(devices);
        let mut operator = self.state().operator.clone();
        operator.over(wishes, &subjects);
        plan::plan(&subjects, &operator, &self.typical()).into()
    }

    /// Plans a migration with these `wishes` of its own. Nothing starts.
    ///
    /// # Errors
    /// Every reason why it cannot start.
    pub fn prepare(
        &self,
        devices: &DeviceSet,
        spaces: &Spaces,
        wishes: &Wishes,
    ) -> Result<(), Vec<Refusal>> {
        let subjects = plan::subjects(devices);
        let mut state = self.state();
        let mut operator = state.operator.clone();
        operator.over(wishes, &subjects);
        let spaces: Arc<[_]> = plan::used(&subjects, spaces).into();
        // With the lock held: nothing is started meanwhile.
        let costs = match self.measures {
            true => measure::now(devices, &spaces),
            false => Costs::default(),
        };
        let plans = plan::plan(&subjects, &operator, &costs)?;
        devices.forget_early();
        let (running, rounds) = (false, false);
        state.session = Some(Session { operator, costs, plans, spaces, running, rounds });
        Ok(())
    }

    /// A migration begins: the figures of the last one are not its own, should it end before it has
    /// any.
    pub fn forget_last(&self) {
        self.state().last = None;
    }

    /// What was planned does not come to be started: a later change is not to be judged by it.
    pub fn forget(&self) {
        let mut state = self.state();
        if state.session.as_ref().is_some_and(|session| !session.running) {
            state.session = None;
        }
    }

    /// Starts what was planned. From the return on every write is in a later harvest.
    ///
    /// # Errors
    /// `NotPlanned`, `Space`; [`stop`](Self::stop) ends what has started.
    pub fn start(&self) -> Result<(), TrackingError> {
        let mut state = self.state();
        let session = state.session.as_mut().ok_or(TrackingError::NotPlanned)?;
        session.running = true;
        for (space, plan) in session.spaces.iter().zip(&session.plans) {
            space.counts.reset();
            space.tracked().start(plan).map_err(in_space(space))?;
            tracing::info!(space = space.label(), class = %plan.class, "tracking starts");
            if plan.class == Class::AllMapped {
                tracing::warn!(space = space.label(), "{DEGRADED}");
            }
        }
        Ok(())
    }

    /// The rounds begin: the devices chosen enter NDMA.
    ///
    /// # Errors
    /// The first device that does not.
    pub fn enter_early(&self, devices: &DeviceSet) -> Result<(), TrackingError> {
        // With the lock held: a switch finds that they stand, or comes before.
        let mut state = self.state();
        let session = state.session.as_mut().ok_or(TrackingError::NotPlanned)?;
        session.rounds = true;
        let early = early(&session.plans);
        Ok(devices.enter_early(|device| early.contains(&device.rid()))?)
    }

    /// ORs what devices have written in `range` since its last harvest into `into`.
    ///
    /// # Errors
    /// The first address space that fails; all were harvested.
    pub fn harvest(&self, range: &Range<Gpa>, into: &DirtyBitmap) -> Result<(), TrackingError> {
        let spaces = {
            let state = self.state();
            let session = state.session.as_ref().filter(|session| session.running);
            Arc::clone(&session.ok_or(TrackingError::NotPlanned)?.spaces)
        };
        let mut first = Ok(());
        for space in spaces.iter() {
            match space.tracked().harvest(range.clone(), into) {
                Ok(found) => space.counts.add(&found),
                Err(source) => first = first.and(Err(in_space(space)(source))),
            }
        }
        first
    }

    /// Ends tracking, also if it has started in part or not at all; devices that stand early go on.
    ///
    /// # Errors
    /// The first device or tracker that does not end as it should; all have ended for us.
    pub fn stop(&self, devices: &DeviceSet) -> Result<(), TrackingError> {
        let left = devices.leave_early();
        let mut state = self.state();
        if state.session.as_ref().is_some_and(|session| session.running) {
            let last = view(&state, devices);
            state.last = Some(TrackingStatus { active: false, ..last });
        }
        let Some(session) = state.session.take() else { return Ok(left?) };
        let mut first = Ok(());
        for space in session.spaces.iter() {
            match space.tracked().stop() {
                Ok(()) | Err(SpaceError::NotTracking) => {}
                Err(source) => first = first.and(Err(in_space(space)(source))),
            }
        }
        left?;
        first
    }

    /// From now on `device` (by name, `bb:dd.f` or plugin), or every device, is tracked by `choice`,
    /// where it says something. If trackers run they are switched, and no write is missed.
    ///
    /// # Errors
    /// `Refused`: nothing changed. `Space`: an address space could not be switched; all go on as
    /// they were, as far as they can. `Device`: likewise, one did not enter NDMA; or all is changed,
    /// and one did not leave it.
    pub fn switch(
        &self,
        devices: &DeviceSet,
        device: Option<&str>,
        choice: Choice,
    ) -> Result<(), TrackingError> {
        let subjects = plan::subjects(devices);
        let mut state = self.state();
        let say = |operator: &Operator| {
            let mut operator = operator.clone();
            match device {
                Some(device) => operator.say(device, choice),
                None => operator.say_of_all(choice, &subjects),
            }
            operator
        };
        let costs = match &state.session {
            Some(session) => session.costs.clone(),
            None => self.typical(),
        };
        let before = plan::plan(&subjects, &state.operator, &costs).err().unwrap_or_default();
        let operator = say(&state.operator);
        let mut refusals = plan::plan(&subjects, &operator, &costs).err().unwrap_or_default();
        // What stood against a migration before is no reason against this change.
        refusals.retain(|refusal| !before.contains(refusal));
        if !refusals.is_empty() {
            return Err(TrackingError::Refused(RefusalList(refusals)));
        }
        let mut left = Ok(());
        if let Some(session) = &mut state.session {
            let operator = say(&session.operator);
            let plans = plan::plan(&subjects, &operator, &costs);
            let plans = plans.map_err(|list| TrackingError::Refused(RefusalList(list)))?;
            left = session.switch_and_stand(devices, plans)?;
            session.operator = operator;
        }
        state.operator = operator;
        Ok(left?)
    }

    /// True while trackers run.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state().session.as_ref().is_some_and(|session| session.running)
    }

    /// How it stands: in a migration, what runs; else what would run, beside the figures of the last
    /// migration.
    #[must_use]
    pub fn status(&self, devices: &DeviceSet) -> TrackingStatus {
        let state = self.state();
        if state.session.as_ref().is_some_and(|session| session.running) {
            return view(&state, devices);
        }
        let mut status = TrackingStatus::default();
        match plan::plan(&plan::subjects(devices), &state.operator, &self.typical()) {
            Ok(plans) => status.devices = DeviceTracking::of(&plans),
            Err(refusals) => status.refusals = refusals,
        }
        status.spaces = state.last.as_ref().map(|last| last.spaces.clone()).unwrap_or_default();
        stood(&mut status, devices);
        status
    }

    /// The figures of the migration that runs or has ended last; none before the first.
    #[must_use]
    pub fn report(&self, devices: &DeviceSet) -> Option<TrackingStatus> {
        let state = self.state();
        match &state.session {
            Some(session) if session.running => {
                Some(TrackingStatus { active: false, ..view(&state, devices) })
            }
            _ => state.last.clone(),
        }
    }
}

impl Session {
    /// To new plans, and the devices into and out of early NDMA as these have it: in while the old
    /// trackers still see them, out once the new ones do. What is returned is how they came out.
    fn switch_and_stand(
        &mut self,
        devices: &DeviceSet,
        plans: Vec<Plan>,
    ) -> Result<Result<(), DeviceError>, TrackingError> {
        if !self.rounds {
            return self.switch(plans).map(Ok);
        }
        let (old, new) = (early(&self.plans), early(&plans));
        let (comes, goes) = (
            |device: &PciDevice| new.contains(&device.rid()) && !old.contains(&device.rid()),
            |device: &PciDevice| old.contains(&device.rid()) && !new.contains(&device.rid()),
        );
        let entered = devices.enter_early(comes).map_err(TrackingError::from);
        if let Err(error) = entered.and_then(|()| self.switch(plans)) {
            if let Err(error) = devices.leave_early_if(comes) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "a device stays in NDMA");
            }
            return Err(error);
        }
        Ok(devices.leave_early_if(goes))
    }

    /// All address spaces to their new plans, or all back.
    fn switch(&mut self, plans: Vec<Plan>) -> Result<(), TrackingError> {
        let running = if self.running { self.spaces.len() } else { 0 };
        for (at, (space, plan)) in self.spaces.iter().zip(&plans).take(running).enumerate() {
            if let Err(source) = space.tracked().switch(plan) {
                for (space, plan) in self.spaces.iter().zip(&self.plans).take(at) {
                    if let Err(error) = space.tracked().switch(plan) {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(space = space.label(), error, "not switched back");
                    }
                }
                return Err(in_space(space)(source));
            }
        }
        self.plans = plans;
        Ok(())
    }
}

/// The devices that are to stand early.
fn early(plans: &[Plan]) -> Vec<Rid> {
    let all = plans.iter().flat_map(|plan| &plan.devices);
    all.filter(|plan| plan.early_ndma).map(|plan| plan.rid).collect()
}

const DEGRADED: &str = "degraded: no tracker; everything mapped is sent at every harvest";

fn in_space(space: &Space) -> impl FnOnce(SpaceError) -> TrackingError + use<> {
    let space = space.label().to_owned();
    move |source| TrackingError::Space { space, source: source.into() }
}

fn view(state: &State, devices: &DeviceSet) -> TrackingStatus {
    let Some(session) = &state.session else { return TrackingStatus::default() };
    let mut status = TrackingStatus {
        active: true,
        spaces: session.spaces.iter().zip(&session.plans).map(space_view).collect(),
        devices: DeviceTracking::of(&session.plans),
        refusals: Vec::new(),
    };
    stood(&mut status, devices);
    status
}

/// Fills in how long devices have stood.
fn stood(status: &mut TrackingStatus, devices: &DeviceSet) {
    for view in &mut status.devices {
        let own = devices.devices().iter().find(|device| device.rid().to_string() == view.slot);
        let stood = own.and_then(|device| device.stood_early());
        view.stood_us = stood.map(drogher_migrate::report::micros);
    }
}

fn space_view((space, plan): (&Arc<Space>, &Plan)) -> SpaceTracking {
    let status = space.tracked().status();
    let counts = &space.counts;
    let trackers = status.trackers.iter().map(|tracker| TrackerView {
        provider: tracker.provider,
        device: tracker.device.map(|rid| rid.to_string()),
        class: tracker.class,
        page_size: tracker.page_size,
        pages: tracker.pages.0,
    });
    SpaceTracking {
        space: space.label().to_owned(),
        class: status.class,
        note: (plan.class == Class::AllMapped).then(|| DEGRADED.to_owned()),
        trackers: trackers.collect(),
        unlimited: status.n_unlimited,
        tracked_pages: counts.tracked.load(Ordering::Relaxed),
        wide_pages: counts.wide.load(Ordering::Relaxed),
        carried_pages: counts.carried.load(Ordering::Relaxed),
        failures: status.failures,
        last_failure: status.last_failure.map(|error| drogher_migrate::error::chain(&*error)),
    }
}
