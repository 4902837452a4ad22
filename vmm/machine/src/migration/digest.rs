//! What `--verify` compares besides RAM: device, vCPU and interrupt controller state, read from
//! the stopped machine on each side rather than from the stream.

use drogher_migrate::StateDigest;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::error::HostError;
use super::guest::Guest;
use crate::record::{Reader, Tag};

/// Hashes of everything besides RAM, in an order that both sides share.
pub(super) fn digests(guest: &Guest, out: &mut Vec<StateDigest>) -> Result<(), HostError> {
    let machine = guest.machine();
    for (index, device) in machine.devices().devices().iter().enumerate() {
        let mut hash = Xxh3::new();
        machine.devices().inspect_state(index, |bytes| hash.update(bytes))?;
        out.push(StateDigest { name: device.label().to_owned(), hash: hash.digest() });
    }
    let pci = machine.devices().save();
    out.push(StateDigest { name: "pci".into(), hash: xxh3_64(&pci) });
    let mut state = machine.state_buffer();
    machine.save_cpu_state(&mut state)?;
    let reader = Reader::new(&state, machine.cpus().into())?;
    for (tag, vcpu, bytes) in reader.records() {
        if runs_on(tag) {
            continue;
        }
        if tag == Tag::Msrs {
            msrs(vcpu, bytes, out);
            continue;
        }
        let mut bytes = bytes.to_vec();
        mask(tag, &mut bytes);
        out.push(StateDigest { name: format!("{tag:?} {vcpu}"), hash: xxh3_64(&bytes) });
    }
    Ok(())
}

/// True for state that goes on while the guest stands: its clocks.
fn runs_on(tag: Tag) -> bool {
    matches!(tag, Tag::Clock | Tag::Tsc | Tag::Pit)
}

/// Each MSR on its own, so that one that differs is named; without those that are clocks.
fn msrs(vcpu: u16, bytes: &[u8], out: &mut Vec<StateDigest>) {
    /// IA32_TIME_STAMP_COUNTER, IA32_TSC_DEADLINE, HV_X64_MSR_VP_RUNTIME, HV_X64_MSR_TIME_REF_COUNT.
    const CLOCKS: [u32; 4] = [0x10, 0x6E0, 0x4000_0010, 0x4000_0020];
    for entry in bytes.chunks_exact(16) {
        let index = entry.first_chunk::<4>().map_or(0, |index| u32::from_le_bytes(*index));
        if !CLOCKS.contains(&index) {
            let name = format!("MSR {index:#x} {vcpu}");
            out.push(StateDigest { name, hash: xxh3_64(entry) });
        }
    }
}

/// Takes out what goes on within a record: the local APIC's current count (Intel SDM 3A, table
/// 11-1, offset 390H).
fn mask(tag: Tag, bytes: &mut [u8]) {
    if tag == Tag::Lapic
        && let Some(count) = bytes.get_mut(0x390..0x394)
    {
        count.fill(0);
    }
}
