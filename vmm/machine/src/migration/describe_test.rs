use drogher_migrate::config::{Param, RegionShape};
use drogher_migrate::{DeviceConfig, VmId};

use super::*;
use crate::vm::open_kvm;

fn config() -> ConfigBlock {
    let params = vec![Param { key: "scratch_kib".into(), value: "64".into() }];
    ConfigBlock {
        vm_id: VmId([1; 16]),
        lease: LeaseIdentity { path: "/lease".into(), device: 0, inode: 0 },
        epoch: 1,
        page_size: 4096,
        memory: vec![MemoryRegion { gpa: 0, bytes: 64 << 20 }],
        cpus: 2,
        tsc_khz: 2_000_000,
        cpu_model: "host".into(),
        cpuid: Vec::new(),
        machine_state_version: 1,
        machine_state_min_reader: 1,
        max_machine_state: 1 << 20,
        devices: vec![DeviceConfig {
            slot: 8,
            plugin: "drogher.ndma".into(),
            plugin_version: "0.1.0".into(),
            abi_major: 1,
            abi_minor: 0,
            state_version: 1,
            state_min_reader: 1,
            max_state: 1 << 20,
            params,
            regions: vec![RegionShape { index: 0, bytes: 4096, flags: 0 }],
            vectors: 2,
        }],
    }
}

fn expect(memory_mib: u64, cpus: u8, devices: &[&str]) -> Expectations {
    Expectations {
        memory_bytes: Some(memory_mib << 20),
        cpus: Some(cpus),
        devices: Some(devices.iter().map(|text| text.parse().unwrap()).collect()),
    }
}

#[test]
fn a_guest_as_expected_is_welcome() {
    assert!(unexpected(&config(), &Expectations::default()).is_empty());
    assert!(unexpected(&config(), &expect(64, 2, &["ndma,scratch_kib=64"])).is_empty());
    assert!(unexpected(&config(), &expect(64, 2, &["ndma"])).is_empty());
}

#[test]
fn a_peer_names_no_file_that_the_user_has_not() {
    let mut config = config();
    for (key, value) in [("vm.net", "unix:/run/x"), ("vm.pcap", "/tmp/x"), ("vm.net1", "loopback")]
    {
        config.devices[0].params.push(Param { key: key.into(), value: value.into() });
    }
    let reasons = |expected: &Expectations| -> Vec<String> {
        unexpected(&config, expected).into_iter().map(|blocker| blocker.reason).collect()
    };
    let found = reasons(&Expectations::default());
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("vm.pcap=/tmp/x") && found[1].contains("vm.net=unix:/run/x"));
    let found = reasons(&expect(64, 2, &["ndma,vm.net=unix:/run/x"]));
    assert_eq!(found.len(), 1, "{found:?}");
    let both = "ndma,vm.net=unix:/run/x,vm.pcap=/tmp/x";
    assert!(reasons(&expect(64, 2, &[both])).is_empty());
    assert_eq!(reasons(&expect(64, 2, &["ndma,vm.net=unix:/run/y,vm.pcap=/tmp/x"])).len(), 2);
}

#[test]
fn every_difference_is_named_at_once() {
    let found = unexpected(&config(), &expect(128, 4, &["ndma,scratch_kib=65,x=1", "other"]));
    let codes: Vec<_> = found.iter().map(|blocker| blocker.code).collect();
    assert_eq!(
        codes,
        [
            BlockerCode::Memory,
            BlockerCode::Cpu,
            BlockerCode::DeviceShape,
            BlockerCode::DeviceParams,
            BlockerCode::DeviceParams,
        ]
    );
    let text = found.iter().map(|blocker| format!("{blocker}\n")).collect::<String>();
    for word in ["64 MiB", "128 MiB", "scratch_kib is 64, not 65", "x is not there", "2 vCPUs"] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn keys_of_the_vmm_are_compared_like_parameters() {
    let mut config = config();
    let key = |key: &str, value: &str| Param { key: key.into(), value: value.into() };
    config.devices[0].params.extend([key("vm.space", "a"), key("vm.tracking_page", "64K")]);
    let same = ["ndma,vm.space=a,vm.tracking_page=65536,vm.iommu=on"];
    assert!(unexpected(&config, &expect(64, 2, &same)).is_empty());
    let found = unexpected(&config, &expect(64, 2, &["ndma,vm.space=b,vm.ndma=early"]));
    let text = found.iter().map(|blocker| format!("{blocker}\n")).collect::<String>();
    assert_eq!(found.len(), 2, "{text}");
    assert!(text.contains("vm.space is a, not b") && text.contains("vm.ndma is late, not early"));
    config.devices[0].params.push(key("vm.new", "1"));
    let found = device::check(&config.devices, &[]);
    assert_eq!(found[0].code, BlockerCode::DeviceParams);
    assert!(found[0].to_string().contains("vm.new"), "{}", found[0]);
}

#[test]
fn ram_that_cannot_be_here_is_a_blocker_before_it_is_made() {
    assert_eq!(memory_blocker(&config()).map(|blocker| blocker.reason), None);
    let with = |memory: &[(u64, u64)]| {
        let memory = memory.iter().map(|&(gpa, bytes)| MemoryRegion { gpa, bytes }).collect();
        memory_blocker(&ConfigBlock { memory, ..config() }).map(|blocker| blocker.reason)
    };
    let gib = 1 << 30;
    for odd in [
        &[][..],
        &[(0, 64 << 10)],
        &[(1 << 20, 64 << 20)],
        &[(0, gib), (2 * gib, gib)],
        &[(0, 4 * gib)],
        &[(0, !4095)],
        &[(0, 2 << 40)],
    ] {
        let reason = with(odd).expect("another layout");
        assert!(reason.contains("laid out"), "{odd:x?}: {reason}");
    }
    let most = available_bytes().expect("Linux says") & !(gib - 1);
    let reason = with(&[(0, 3 * gib), (4 * gib, most)]).expect("more than there is");
    assert!(reason.contains("are free here"), "{reason}");
}

#[test]
fn a_cpu_model_of_another_release_is_refused() {
    let config = ConfigBlock { cpu_model: "baseline-v3".into(), ..config() };
    let found = blockers(&config, &Expectations::default(), &[], Offer::find());
    let blocker = found.iter().find(|blocker| blocker.reason.contains("baseline-v3"));
    assert_eq!(blocker.map(|blocker| blocker.code), Some(BlockerCode::Cpu), "{found:?}");
}

/// Extended state is moved as bytes: where each part lies in it has to be the same.
#[test]
fn another_layout_of_the_extended_state_is_another_cpu() {
    let same = |function, index, ebx| {
        let leaf = CpuidLeaf { function, index, flags: 1, registers: [8, 0xA80, 0, 0] };
        let mut entry = kvm_bindings::kvm_cpuid_entry2 { function, index, ..Default::default() };
        (entry.eax, entry.ebx) = (8, ebx);
        is_same(&leaf, &entry)
    };
    assert!(same(0xD, 9, 0xA80) && !same(0xD, 9, 0x340));
    assert!(same(0xD, 0, 0x340) && same(0xD, 1, 0x340) && same(1, 0, 0x340), "of the moment");
    assert!(!same(7, 0, 0x340));
}

/// A guest of the baseline is not told to be one.
#[test]
fn a_baseline_guest_is_told_what_helps_it() {
    let model = Offer::find().map(|offer| offer.model(CpuKind::Baseline));
    let Ok(Ok(model)) = model else {
        let config = ConfigBlock { cpu_model: "baseline".into(), ..config() };
        let found = blockers(&config, &Expectations::default(), &[], Offer::find());
        let about = found.iter().find(|blocker| blocker.reason.contains("CPUID leaf"));
        let code = about.map(|blocker| blocker.code);
        assert!(open_kvm().is_err() || code == Some(BlockerCode::Cpu), "{found:?}");
        return;
    };
    let khz = model.tsc_khz();
    let config = ConfigBlock { tsc_khz: khz, cpu_model: "baseline".into(), ..config() };
    let found = other_cpu(&config, &model);
    assert!(found.len() == 1 && found[0].hint.contains("same vendor"), "{found:?}");
}
