//! `drogher params`.

use anyhow::{Context, bail};
use drogher_control::api::ParamRequest;
use drogher_control::client::Client;
use drogher_machine::device::{self, Called, DeviceParams, ParamView};

use crate::args::{ControlArgs, ParamsCommand};
use crate::words;

/// `drogher params list|get|set`.
pub fn params(command: &ParamsCommand) -> anyhow::Result<u8> {
    match command {
        ParamsCommand::List { control, device } => list(control, device.as_deref())?,
        ParamsCommand::Get { control, device, name } => {
            let param = get(control, device, name)?;
            match control.json {
                true => words::print(serde_json::to_string_pretty(&param)? + "\n")?,
                false => words::print(format_args!("{}\n", param.value))?,
            }
        }
        ParamsCommand::Set { control, device, assignment: (name, value) } => {
            let (device, name, value) = (device.clone(), name.clone(), value.clone());
            let wish = ParamRequest { device, name, value };
            let client = Client::new(&control.control);
            let answer: serde_json::Value = client.put("/v1/params", &wish)?;
            if control.json {
                words::print(format_args!("{answer}\n"))?;
            }
        }
    }
    Ok(0)
}

fn all(control: &ControlArgs) -> anyhow::Result<Vec<DeviceParams>> {
    Ok(Client::new(&control.control).get("/v1/params")?)
}

fn list(control: &ControlArgs, device: Option<&str>) -> anyhow::Result<()> {
    let mut devices = all(control)?;
    if let Some(asked) = device {
        devices = vec![one(&devices, asked)?];
    }
    if control.json {
        return words::print(serde_json::to_string_pretty(&devices)? + "\n");
    }
    words::print(devices.iter().map(text).collect::<String>())
}

fn get(control: &ControlArgs, device: &str, name: &str) -> anyhow::Result<ParamView> {
    let device = one(&all(control)?, device)?;
    if let Some(error) = device.error {
        bail!("The parameters of {} cannot be read: {error}", device.slot);
    }
    let names: Vec<_> = device.params.iter().map(|param| param.name.clone()).collect();
    let param = device.params.into_iter().find(|param| param.name == name);
    param.with_context(|| {
        let known = if names.is_empty() { "none".into() } else { names.join(", ") };
        format!("{} has no parameter {name}; there are: {known}", device.slot)
    })
}

/// The device that `asked` names.
fn one(devices: &[DeviceParams], asked: &str) -> anyhow::Result<DeviceParams> {
    let called = |device: &DeviceParams| Called {
        slot: device.slot.clone(),
        plugin: device.plugin.clone(),
        name: device.name.clone(),
    };
    Ok(device::pick(devices, asked, called)?.clone())
}

fn text(device: &DeviceParams) -> String {
    let name = device.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    let mut text = format!("{} {}{name}\n", device.slot, device.plugin);
    if let Some(error) = &device.error {
        text += &format!("  cannot be read: {error}\n");
    }
    for param in &device.params {
        let bounds = match (param.min, param.max) {
            (Some(min), Some(max)) => format!(" {min}..={max}"),
            _ => String::new(),
        };
        let when = if param.runtime { "settable" } else { "fixed at the start" };
        let compat = if param.compat { ", same at both ends" } else { "" };
        text += &format!(
            "  {}={} ({}{bounds}, default {}, {when}{compat}) {}\n",
            param.name, param.value, param.kind, param.default, param.doc
        );
    }
    text
}
