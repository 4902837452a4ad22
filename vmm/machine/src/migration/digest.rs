//! What `--verify` compares besides RAM: device, vCPU and interrupt controller state, read from
//! the stopped machine on each side rather than from the stream.

use drogher_migrate::StateDigest;
use drogher_migrate::hash::{Hasher, hash_of};

use super::error::HostError;
use super::guest::Guest;
use crate::record::stable_parts;

/// Hashes of everything besides RAM, in an order that both sides share.
pub(super) fn digests(guest: &Guest, out: &mut Vec<StateDigest>) -> Result<(), HostError> {
    let machine = guest.machine();
    for (index, device) in machine.devices().devices().iter().enumerate() {
        let mut hash = Hasher::default();
        machine.devices().inspect_state(index, |bytes| hash.update(bytes))?;
        out.push(StateDigest { name: device.label().to_owned(), hash: hash.digest() });
    }
    let pci = machine.devices().save();
    out.push(StateDigest { name: "pci".into(), hash: hash_of(&pci) });
    let mut state = machine.state_buffer();
    machine.save_cpu_state(&mut state)?;
    for (name, bytes) in stable_parts(&state, machine.cpus().into())? {
        out.push(StateDigest { name, hash: hash_of(&bytes) });
    }
    Ok(())
}
