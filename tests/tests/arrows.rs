//! Holds the allowed arrows between the crates against what cargo knows.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Each crate of the product, and the crates of ours that it may use.
///
/// Arrows point down: cli -> control -> machine -> {trackers, wires, migrate, plugin host, iommu}. `migrate` and
/// `iommu` never see KVM; a plugin sees the SDK alone, and the SDK the C types alone.
const ALLOWED: &[(&str, &[&str])] = &[
    ("drogher-iommu-types", &[]),
    ("drogher-iommu", &["drogher-iommu-types"]),
    ("drogher-tracking", &["drogher-iommu", "drogher-iommu-types"]),
    ("drogher-plugin-abi", &[]),
    ("drogher-plugin-sdk", &["drogher-plugin-abi"]),
    (
        "drogher-plugin-host",
        &["drogher-plugin-abi", "drogher-tracking", "drogher-iommu", "drogher-iommu-types"],
    ),
    ("drogher-ndma", &["drogher-plugin-sdk"]),
    ("drogher-virtio-net", &["drogher-plugin-sdk"]),
    ("drogher-wires", &["drogher-plugin-host"]),
    ("drogher-migrate", &["drogher-iommu-types"]),
    (
        "drogher-trackers",
        &["drogher-migrate", "drogher-tracking", "drogher-iommu", "drogher-iommu-types"],
    ),
    (
        "drogher-machine",
        &[
            "drogher-migrate",
            "drogher-trackers",
            "drogher-wires",
            "drogher-plugin-host",
            "drogher-tracking",
            "drogher-iommu",
            "drogher-iommu-types",
        ],
    ),
    ("drogher-control", &["drogher-machine", "drogher-migrate", "drogher-plugin-host"]),
    (
        "drogher",
        &[
            "drogher-control",
            "drogher-machine",
            "drogher-migrate",
            "drogher-plugin-host",
            "drogher-probe",
            "drogher-trackers",
            "drogher-iommu-types",
        ],
    ),
    ("drogher-probe", &[]),
];

/// Crates that only a KVM user may name.
const KVM: &[&str] = &["kvm-ioctls", "kvm-bindings", "vm-memory", "vm-device", "linux-loader"];

/// Our crates that may use KVM.
const KVM_USERS: &[&str] = &["drogher-machine"];

/// Crates that exist for tests only; no arrow is forbidden to them.
const TEST_CRATES: &[&str] = &["drogher-tests", "drogher-bench"];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--locked"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let used = package["dependencies"]
                .as_array()
                .expect("dependencies")
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| dependency["name"].as_str().expect("name").to_owned())
                .collect();
            (package["name"].as_str().expect("name").to_owned(), used)
        })
        .collect()
}

#[test]
fn arrows_point_down_only() {
    let used = dependencies();
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    for (name, used) in &used {
        if TEST_CRATES.contains(&name.as_str()) {
            continue;
        }
        let allowed = allowed
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is missing in the table of allowed arrows"));
        for other in used.iter().filter(|other| other.starts_with("drogher")) {
            assert!(allowed.contains(&other.as_str()), "{name} must not use {other}");
        }
    }
    for (name, _) in ALLOWED {
        assert!(used.contains_key(*name), "the table names {name}, which is no crate here");
    }
}

#[test]
fn only_the_machine_sees_kvm() {
    for (name, used) in dependencies() {
        if KVM_USERS.contains(&name.as_str()) || TEST_CRATES.contains(&name.as_str()) {
            continue;
        }
        for kvm in KVM {
            assert!(!used.contains(*kvm), "{name} must not use {kvm}");
        }
    }
}
