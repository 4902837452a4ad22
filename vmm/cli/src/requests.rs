//! Requests to a running process that have a short answer.

use drogher_control::api::{GuestState, Status};
use drogher_control::client::Client;
use drogher_migrate::Side;
use drogher_migrate::status::MigrationStatus;

use crate::args::ControlArgs;
use crate::{tracking, words};

/// `drogher status`.
pub fn status(args: &ControlArgs) -> anyhow::Result<u8> {
    let client = Client::new(&args.control);
    if args.json {
        let status: serde_json::Value = client.get("/v1/status")?;
        words::print(serde_json::to_string_pretty(&status)? + "\n")?;
        return Ok(0);
    }
    let status: Status = client.get("/v1/status")?;
    words::print(render(&status))?;
    Ok(0)
}

/// A POST without a body: abort, pause, resume, powerdown, shutdown.
pub fn post(args: &ControlArgs, path: &str) -> anyhow::Result<u8> {
    let answer: serde_json::Value =
        Client::new(&args.control).post(path, &serde_json::json!({}))?;
    if args.json {
        words::print(format_args!("{answer}\n"))?;
    } else if let Some(done) = answer.get("done").and_then(serde_json::Value::as_str) {
        words::note(done);
    }
    Ok(0)
}

fn render(status: &Status) -> String {
    let vm = &status.vm;
    let state = match vm.state {
        GuestState::Starting => "starting",
        GuestState::Waiting => "waiting for a guest to arrive",
        GuestState::Incoming => "a guest is arriving",
        GuestState::Running => "running",
        GuestState::Paused => "paused",
        GuestState::Switching => "stopped for the switchover",
        GuestState::Gone => "gone",
    };
    let mut text = format!("guest      {state} (pid {})\n", vm.pid);
    if let Some(id) = &vm.id {
        text += &format!("vm         {id}, {} vCPU, {} MiB\n", vm.cpus, vm.memory_bytes >> 20);
    }
    if let Some(lease) = &vm.lease {
        text += &format!("lease      {lease}\n");
    }
    for device in &vm.devices {
        let error = device.error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
        let name = device.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
        text += &format!(
            "device     {} {}{name} {}{error}\n",
            device.slot, device.plugin, device.state
        );
        for wire in &device.wires {
            text += &format!(
                "wire       {}: {} frames sent, {} arrived; dropped {} and {}\n",
                wire.wire, wire.sent, wire.arrived, wire.sent_dropped, wire.arrived_dropped
            );
        }
    }
    for line in vm.tracking.iter().flat_map(tracking::lines) {
        text += &format!("{line}\n");
    }
    let migration = &status.migration;
    if migration.status != MigrationStatus::None {
        let phase = migration.drogher.phase.map(|phase| format!(", phase {phase}"));
        text += &format!("migration  {:?}{}", migration.status, phase.unwrap_or_default());
        let (mib, ms) = (migration.ram.transferred >> 20, migration.total_time);
        let pages = migration.ram.normal + migration.ram.duplicate;
        if migration.drogher.side == Some(Side::Destination) && pages > 0 {
            text += &format!(
                ", {mib} MiB arrived in {ms} ms, {} rounds",
                migration.ram.dirty_sync_count
            );
        } else if migration.ram.transferred > 0 {
            text += &format!(
                ", round {}, {} MiB sent, {} MiB left, forecast {} ms",
                migration.drogher.round,
                mib,
                migration.ram.remaining >> 20,
                migration.expected_downtime,
            );
        }
        text.push('\n');
        if let Some(error) = &migration.error_desc {
            text += &format!("           {error}\n");
        }
    }
    text
}
