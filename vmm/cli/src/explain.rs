//! `drogher explain`.

use anyhow::ensure;
use drogher_control::client::Client;
use drogher_control::config::Partial;
use drogher_machine::device;
use drogher_machine::tracking::{self, Explanation};

use crate::args::ExplainArgs;
use crate::{guest, words};

/// `drogher explain`: 0 if tracking could start, 1 if it would be refused.
pub fn explain(args: ExplainArgs) -> anyhow::Result<u8> {
    let explanation = match &args.run.control {
        Some(control) => {
            let (devices, file) = (&args.run.devices, &args.run.config);
            ensure!(
                devices.is_empty() && file.is_none(),
                "A guest that runs has its devices: give --control, or --device and --config"
            );
            let wishes = args.run.tracking.wishes();
            Client::new(control).post::<_, Explanation>("/v1/explain", &wishes)?
        }
        None => of_configuration(&args)?,
    };
    if args.json {
        words::print(serde_json::to_string_pretty(&explanation)? + "\n")?;
    } else {
        words::print(&explanation)?;
    }
    Ok(u8::from(!explanation.possible))
}

/// Makes each device once and looks at it; no guest is made.
fn of_configuration(args: &ExplainArgs) -> anyhow::Result<Explanation> {
    let file = match &args.run.config {
        Some(path) => Partial::from_file(path)?,
        None => Partial::default(),
    };
    let flags = Partial {
        devices: args.run.devices.clone(),
        plugin_path: args.run.plugin_path.clone(),
        tracking: args.run.tracking.wishes(),
        ..Partial::default()
    };
    let config = file.overridden_by(flags).complete()?;
    let dirs = guest::plugin_dirs(&config.plugin_path)?;
    Ok(tracking::explain(&device::trial(&config.devices, &dirs)?, &config.tracking))
}
