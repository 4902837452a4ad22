//! The guest's clock (kvmclock), and how much time lies between a save and a load.

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::caps::Caps;
use crate::record::StateError;
use crate::vcpu::tsc::host_tsc;

/// The clock at the save.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, FromBytes, IntoBytes, Immutable)]
pub struct ClockState {
    /// What KVM_GET_CLOCK says: guest nanoseconds, and by its flags the host's real time and TSC
    /// of the same moment.
    pub data: kvm_clock_data,
    /// Which boot of which host this is: TSCs can be compared only within one.
    pub boot_id: [u8; 16],
}

/// The kernel's random id of this boot; zeroes if it has none.
fn boot_id() -> [u8; 16] {
    static ID: OnceLock<[u8; 16]> = OnceLock::new();
    *ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(32).collect();
        u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes()
    })
}

/// What has passed between the save of a guest and its load, by the clocks of both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passage {
    /// Saved and loaded under the same boot of the same host.
    pub same_boot: bool,
    /// Guest clock in ns at the save, and at a moment of the load.
    pub guest_ns: (u64, u64),
    /// Host TSC at those two moments.
    pub host_tsc: (u64, u64),
}

impl Passage {
    /// The TSC offset to set here for one that was `offset` there.
    #[must_use]
    pub fn offset(&self, offset: u64, khz: u32) -> u64 {
        if self.same_boot {
            return offset;
        }
        let passed = ns_to_ticks(self.guest_ns.1.saturating_sub(self.guest_ns.0), khz);
        offset.wrapping_add(passed).wrapping_add(self.host_tsc.0.wrapping_sub(self.host_tsc.1))
    }

    /// Guest ticks from the moment that the saving host's TSC was `saved` until now.
    #[must_use]
    pub fn ticks_since(&self, saved: u64, khz: u32) -> u64 {
        if self.same_boot {
            return host_tsc().saturating_sub(saved);
        }
        let passed = ns_to_ticks(self.guest_ns.1.saturating_sub(self.guest_ns.0), khz);
        passed
            .saturating_sub(saved.saturating_sub(self.host_tsc.0))
            .saturating_add(host_tsc().saturating_sub(self.host_tsc.1))
    }
}

fn ns_to_ticks(ns: u64, khz: u32) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(khz) / 1_000_000).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970 by this host's clock.
fn host_time() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// How often the clock is read for a reading that nothing came between.
const TRIES: u32 = 8;
/// So close together that nothing has.
const CLOSE_NS: u64 = 20_000;

pub(crate) fn save(vm: &VmFd) -> Result<ClockState, StateError> {
    let get = || vm.get_clock().map_err(|e| StateError::errno("get the clock", e));
    Ok(ClockState { data: read_clock(get, host_time, host_tsc)?, boot_id: boot_id() })
}

/// The clock with real time and TSC of the same moment. Where KVM does not say them they are read around
/// it, and once more if there was a pause between, since the guest would find its two clocks apart by that.
fn read_clock<E>(
    mut get: impl FnMut() -> Result<kvm_clock_data, E>,
    mut real: impl FnMut() -> u64,
    mut tsc: impl FnMut() -> u64,
) -> Result<kvm_clock_data, E> {
    let (mut best, mut best_width) = (kvm_clock_data::default(), u64::MAX);
    for _ in 0..TRIES {
        let before = real();
        let mut data = get()?;
        let ticks = tsc();
        let width = real().saturating_sub(before);
        let says = |flag| data.flags & flag != 0;
        let all = says(KVM_CLOCK_HOST_TSC) && says(KVM_CLOCK_REALTIME);
        if !says(KVM_CLOCK_HOST_TSC) {
            data.host_tsc = ticks;
        }
        if !says(KVM_CLOCK_REALTIME) {
            data.realtime = before.saturating_add(width / 2);
        }
        if all || width <= best_width {
            (best, best_width) = (data, width);
        }
        if all || width <= CLOSE_NS {
            break;
        }
    }
    Ok(best)
}

pub(crate) fn load(vm: &VmFd, caps: &Caps, state: &ClockState) -> Result<Passage, StateError> {
    let set = || {
        vm.set_clock(&to_set(state, caps.clock_flags, host_time()))
            .map_err(|e| StateError::errno("set the clock", e))?;
        save(vm)
    };
    let now = until_close(state, set)?;
    Ok(Passage {
        same_boot: state.boot_id == now.boot_id && now.boot_id != [0; 16],
        guest_ns: (state.data.clock, now.data.clock),
        host_tsc: (state.data.host_tsc, now.data.host_tsc),
    })
}

/// Sets the clock, and once more if there was a pause in it: then it runs behind real time, and behind the
/// TSC. Twice as much is close enough each time, since the last try counts and may be worse than those before
/// on a host that is busy.
fn until_close<E>(
    saved: &ClockState,
    mut set: impl FnMut() -> Result<ClockState, E>,
) -> Result<ClockState, E> {
    let mut now = set()?;
    for again in 1..TRIES {
        let guest = now.data.clock.saturating_sub(saved.data.clock);
        let real = now.data.realtime.saturating_sub(saved.data.realtime);
        if guest.abs_diff(real) <= CLOSE_NS << (again - 1) {
            break;
        }
        now = set()?;
    }
    Ok(now)
}

/// The guest's clock runs on through the move: KVM adds what real time has passed since the save,
/// if it can, else that is done here.
fn to_set(state: &ClockState, known: u32, now: u64) -> kvm_clock_data {
    let data = kvm_clock_data {
        clock: state.data.clock,
        realtime: state.data.realtime,
        flags: KVM_CLOCK_REALTIME,
        ..Default::default()
    };
    if known & KVM_CLOCK_REALTIME != 0 {
        return data;
    }
    let passed = now.saturating_sub(data.realtime);
    kvm_clock_data { clock: data.clock.saturating_add(passed), realtime: 0, flags: 0, ..data }
}

#[cfg(test)]
#[path = "clock_test.rs"]
mod tests;
