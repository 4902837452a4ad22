//! The address spaces that devices do DMA in: a second stage each, and what tracks it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use drogher_iommu::{Domain, DomainConfig, DomainError, Memory, Oa, Perm};
use drogher_iommu_types::{Gpa, Rid};
use drogher_tracking::{AddressSpace, SpaceError, TrackedSpace};

use super::counts::Counts;
use crate::device::{DeviceKeys, MAIN_SPACE};

/// Why an address space cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SpacesError {
    /// Its page table.
    #[error("Cannot set up address space {space}")]
    Domain {
        /// Which.
        space: String,
        /// Why.
        #[source]
        source: Box<DomainError>,
    },
    /// Its tracking.
    #[error("Address space {space} cannot be tracked")]
    Tracked {
        /// Which.
        space: String,
        /// Why.
        #[source]
        source: Box<SpaceError>,
    },
}

/// One address space: all of RAM mapped, its devices, what tracks them.
#[derive(Debug)]
pub struct Space {
    domain: Domain,
    tracked: TrackedSpace,
    pub(super) counts: Counts,
}

impl Space {
    fn new(label: &str, memory: &Arc<dyn Memory>, ram: &[RamMap]) -> Result<Self, SpacesError> {
        let failed = |source: DomainError| SpacesError::Domain {
            space: label.into(),
            source: source.into(),
        };
        let domain = Domain::new(Arc::clone(memory), DomainConfig::default()).map_err(failed)?;
        for map in ram {
            domain.map(map.gpa.clone(), map.oa, Perm::READ_WRITE).map_err(failed)?;
        }
        let ranges: Vec<_> = ram.iter().map(|map| map.gpa.clone()).collect();
        let as_space: Arc<dyn AddressSpace> = Arc::new(domain.clone());
        let tracked = TrackedSpace::new(label, as_space, &ranges);
        let tracked = tracked.map_err(|source| SpacesError::Tracked {
            space: label.into(),
            source: source.into(),
        })?;
        Ok(Self { domain, tracked, counts: Counts::default() })
    }

    /// What it is called.
    #[must_use]
    pub fn label(&self) -> &str {
        self.tracked.label()
    }

    /// Its second stage.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// What tracks it.
    #[must_use]
    pub fn tracked(&self) -> &TrackedSpace {
        &self.tracked
    }
}

/// What the address space of a device is called.
pub(super) fn space_label(keys: &DeviceKeys, rid: Rid) -> String {
    if keys.is_raw() { format!("raw {rid}") } else { keys.space().to_owned() }
}

/// A range of RAM, and where it lies in memory.
#[derive(Clone, Debug)]
pub struct RamMap {
    /// Guest physical.
    pub gpa: Range<Gpa>,
    /// Where its first byte is.
    pub oa: Oa,
}

/// The address spaces of a machine. They are made when a device first names them; `main` is always
/// there.
pub struct Spaces {
    memory: Arc<dyn Memory>,
    ram: Vec<RamMap>,
    main: Arc<Space>,
    others: Mutex<Vec<Arc<Space>>>,
}

impl std::fmt::Debug for Spaces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.all()).finish()
    }
}

impl Spaces {
    /// `main` alone, all of `ram` mapped in it.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn new(memory: Arc<dyn Memory>, ram: Vec<RamMap>) -> Result<Self, SpacesError> {
        let main = Arc::new(Space::new(MAIN_SPACE, &memory, &ram)?);
        Ok(Self { memory, ram, main, others: Mutex::default() })
    }

    /// The address space of devices that name none.
    #[must_use]
    pub fn main(&self) -> &Arc<Space> {
        &self.main
    }

    /// All, `main` first, then in the order in which they were named.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Space>> {
        let others = self.others();
        std::iter::once(&self.main).chain(others.iter()).cloned().collect()
    }

    /// The one for a device: by the name that it gives, or, if its DMA is raw, one of its own: what
    /// it may write to says nothing about the others.
    ///
    /// # Errors
    /// It has to be made, and cannot be had.
    pub fn of(&self, keys: &DeviceKeys, rid: Rid) -> Result<Arc<Space>, SpacesError> {
        let label = space_label(keys, rid);
        if label == MAIN_SPACE {
            return Ok(Arc::clone(&self.main));
        }
        let mut others = self.others();
        if let Some(there) = others.iter().find(|space| space.label() == label) {
            return Ok(Arc::clone(there));
        }
        let space = Arc::new(Space::new(&label, &self.memory, &self.ram)?);
        others.push(Arc::clone(&space));
        Ok(space)
    }

    fn others(&self) -> MutexGuard<'_, Vec<Arc<Space>>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
