//! `drogher tracking`, and how tracking is shown elsewhere.

use drogher_control::api::TrackingRequest;
use drogher_control::client::Client;
use drogher_machine::tracking::{DeviceTracking, SpaceTracking, TrackingStatus};

use crate::args::TrackingCommand;
use crate::{progress, words};

/// `drogher tracking`: shows, or switches if there is something to switch to.
pub fn tracking(args: &TrackingCommand) -> anyhow::Result<u8> {
    let client = Client::new(&args.control.control);
    let wish = TrackingRequest {
        device: args.device.clone(),
        tracker: args.tracker,
        page: args.page,
        require: args.require,
    };
    let only_shown = TrackingRequest { device: wish.device.clone(), ..TrackingRequest::default() };
    if wish != only_shown {
        let _: serde_json::Value = client.put("/v1/tracking", &wish)?;
    }
    if args.control.json {
        let status: serde_json::Value = client.get("/v1/tracking")?;
        words::print(serde_json::to_string_pretty(&status)? + "\n")?;
        return Ok(0);
    }
    let status: TrackingStatus = client.get("/v1/tracking")?;
    words::print(lines(&status).iter().map(|line| format!("{line}\n")).collect::<String>())?;
    Ok(0)
}

/// A line for each address space, device and refusal.
pub fn lines(status: &TrackingStatus) -> Vec<String> {
    let spaces = status.spaces.iter().map(space);
    let devices = status.devices.iter().map(device);
    let refusals = status.refusals.iter().map(|refusal| format!("blocker    {refusal}"));
    spaces.chain(devices).chain(refusals).collect()
}

fn space(space: &SpaceTracking) -> String {
    let trackers = space.trackers.iter().map(|tracker| {
        let of = tracker.device.as_ref().map(|device| format!(" of {device}")).unwrap_or_default();
        format!("{}{of} at {}: {} pages", tracker.provider.name(), tracker.page_size, tracker.pages)
    });
    let mut parts: Vec<String> = trackers.collect();
    if space.trackers.is_empty() && space.tracked_pages > 0 {
        parts.push(format!("{} pages by trackers", space.tracked_pages));
    }
    if space.wide_pages > 0 {
        parts.push(format!("{} pages because they were mapped", space.wide_pages));
    }
    if space.carried_pages > 0 {
        parts.push(format!("{} pages carried over", space.carried_pages));
    }
    if let Some(why) = &space.last_failure {
        parts.push(format!("{} failures, the last one: {why}", space.failures));
    }
    parts.extend(space.note.clone());
    format!("tracking   {}: {}; {}", space.space, space.class, parts.join(", "))
}

fn device(device: &DeviceTracking) -> String {
    let provider = device.provider.map_or("nothing", drogher_machine::tracking::ProviderKind::name);
    let early = match (device.stood_us, device.early_ndma) {
        (Some(us), _) => {
            format!(", stood in early NDMA for {} (its own downtime)", progress::millis(us))
        }
        (None, true) => ", to enter NDMA early".into(),
        (None, false) => String::new(),
    };
    let name = if device.device == device.slot {
        device.slot.clone()
    } else {
        format!("{} ({})", device.slot, device.device)
    };
    format!(
        "tracked    {name} in {} by {provider} at {}, {} ({}){early}",
        device.space, device.page_size, device.class, device.reason
    )
}
