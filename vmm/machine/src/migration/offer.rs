//! What this host can offer to a guest that arrives, seen from a small machine made on it.

use std::thread::JoinHandle;

use crate::machine::{Machine, MachineConfig, MachineError};
use crate::vcpu::cpuid::{CpuKind, CpuModel, ModelError};

/// RAM of the machine; never used.
const RAM_BYTES: u64 = 2 << 20;

/// The CPU models that a guest can have here.
#[derive(Debug)]
pub(super) struct Offer {
    host: CpuModel,
    baseline: Result<CpuModel, ModelError>,
}

impl Offer {
    /// Makes the machine, looks, and drops it: tens of milliseconds, most of them the kernel's.
    pub(super) fn find() -> Result<Self, MachineError> {
        let machine = Machine::create(MachineConfig::new(RAM_BYTES, 1))?;
        let (vm, host) = (machine.vm(), machine.model().clone());
        let baseline = CpuModel::new(vm.kvm(), vm.caps(), CpuKind::Baseline, host.tsc_khz());
        Ok(Self { host, baseline })
    }

    /// The model of that kind.
    pub(super) fn model(self, kind: CpuKind) -> Result<CpuModel, ModelError> {
        match kind {
            CpuKind::Host => Ok(self.host),
            CpuKind::Baseline => self.baseline,
        }
    }
}

/// An [`Offer`] that is looked for while nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Trial {
    thread: Option<JoinHandle<Result<Offer, MachineError>>>,
}

impl Trial {
    /// Begins. Without a thread it is made when it is asked for.
    pub(super) fn begin() -> Self {
        let thread = std::thread::Builder::new().name("trial".into()).spawn(Offer::find);
        Self { thread: thread.ok() }
    }

    /// What came of it. What could not be had then is tried once more: that may have been long ago.
    pub(super) fn take(&mut self) -> Result<Offer, MachineError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(found))) => Ok(found),
            _ => Offer::find(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As when memory or descriptors were short, or KVM's module was not there yet.
    #[test]
    fn what_could_not_be_had_at_first_is_tried_again() {
        let failed = || Err(MachineError::Cpus { asked: 0, most: 0 });
        let mut trial = Trial { thread: Some(std::thread::spawn(failed)) };
        let again = trial.take().map_err(|error| error.to_string());
        assert_eq!(again.map(drop), Offer::find().map(drop).map_err(|error| error.to_string()));
        let panics = || panic!("a thread that panics");
        let mut trial = Trial { thread: Some(std::thread::spawn(panics)) };
        assert_eq!(trial.take().is_ok(), Offer::find().is_ok());
    }
}
