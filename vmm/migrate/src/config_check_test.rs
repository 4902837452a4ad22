use std::path::PathBuf;

use crate::blocker::BlockerCode;
use crate::config::{ConfigBlock, DeviceConfig, LeaseIdentity, MemoryRegion};
use crate::lease::VmId;

pub(crate) fn config() -> ConfigBlock {
    ConfigBlock {
        vm_id: VmId([7; 16]),
        lease: LeaseIdentity { path: PathBuf::from("/run/lease"), device: 1, inode: 2 },
        epoch: 1,
        page_size: 4096,
        memory: vec![
            MemoryRegion { gpa: 0, bytes: 3 << 20 },
            MemoryRegion { gpa: 1 << 32, bytes: 1 << 20 },
        ],
        cpus: 2,
        tsc_khz: 1_996_000,
        cpu_model: "host".into(),
        cpuid: Vec::new(),
        machine_state_version: 1,
        machine_state_min_reader: 1,
        max_machine_state: 1 << 16,
        devices: vec![DeviceConfig {
            slot: 8,
            plugin: "drogher.ndma".into(),
            plugin_version: "0.1.0".into(),
            abi_major: 1,
            abi_minor: 0,
            state_version: 1,
            state_min_reader: 1,
            max_state: 1 << 20,
            params: Vec::new(),
            regions: Vec::new(),
            vectors: 2,
        }],
    }
}

#[test]
fn a_sound_one_has_no_problems() {
    assert_eq!(config().problems(), []);
    assert_eq!(config().total_pages(), 1024);
    assert_eq!(config().devices[0].label(), "00:01.0 drogher.ndma");
}

#[test]
fn every_problem_is_named_at_once() {
    let mut bad = config();
    bad.page_size = 16384;
    bad.memory[1].gpa = 1 << 20; // overlaps the first
    bad.cpus = 0;
    bad.machine_state_min_reader = 2;
    bad.max_machine_state = u64::MAX;
    bad.lease.path = "lease".into();
    bad.devices.push(bad.devices[0].clone());
    bad.devices[1].state_min_reader = 9;
    bad.devices[1].max_state = u64::MAX;
    let codes: Vec<_> = bad.problems().into_iter().map(|b| b.code).collect();
    assert_eq!(
        codes,
        [
            BlockerCode::Memory,
            BlockerCode::Memory,
            BlockerCode::Cpu,
            BlockerCode::MachineState,
            BlockerCode::MachineState,
            BlockerCode::Lease,
            BlockerCode::DeviceShape,
            BlockerCode::DeviceState,
            BlockerCode::DeviceState,
        ]
    );
}

#[test]
fn sizes_that_would_wrap_are_refused() {
    for (gpa, bytes) in
        [(u64::MAX - 0xfff, 0x1000), (0, u64::MAX - 0xfff), (0, 0), (0x1000, 0x1000), (0, 100)]
    {
        let mut bad = config();
        bad.memory = vec![MemoryRegion { gpa, bytes }];
        assert!(!bad.problems().is_empty(), "{gpa:#x} {bytes:#x}");
    }
}
