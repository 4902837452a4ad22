//! `drogher migrate`: asks a process to move its guest, and shows how it goes.

use anyhow::Context;
use drogher_control::api::{MigrateLine, MigrateRequest, Outcome};
use drogher_control::client::Client;
use drogher_control::config::parse_unix_address;
use drogher_migrate::options;

use crate::args::{MigrateArgs, TimeoutStrategy};
use crate::{progress, words};

/// `drogher migrate`; 0 only if the guest runs at the destination.
pub fn migrate(args: &MigrateArgs) -> anyhow::Result<u8> {
    let request = MigrateRequest {
        to: absolute(&args.to)?,
        downtime_ms: args.downtime_ms,
        timeout_s: args.timeout_s,
        timeout_strategy: args.timeout_strategy.map(|strategy| match strategy {
            TimeoutStrategy::Cancel => options::TimeoutStrategy::Cancel,
            TimeoutStrategy::Ignore => options::TimeoutStrategy::Ignore,
        }),
        verify: args.verify,
        page_hash: args.no_page_hash.then_some(false),
        tracking: args.tracking.wishes(),
    };
    let mut code = None;
    let mut told = args.json;
    let mut progress = progress::Progress::new(std::io::stderr());
    // The end of the migration is waited for whether or not anybody reads.
    let mut read = true;
    Client::new(&args.control).post_lines("/v1/migrate", &request, |line: serde_json::Value| {
        if args.json && read {
            read = words::print(format_args!("{line}\n")).is_ok();
        }
        let Ok(line) = serde_json::from_value::<MigrateLine>(line) else { return };
        if let MigrateLine::Outcome { outcome, .. } = &line {
            code = Some(match outcome {
                Outcome::Moved | Outcome::Ended => 0,
                _ => 1,
            });
        }
        // Not before the source has taken it on.
        if !told && code.is_none() {
            words::say(format_args!(
                "Ctrl-C ends this command, and not the migration: drogher abort --control {} does",
                args.control.display()
            ));
        }
        told = true;
        if !args.json {
            progress.show(&line);
        }
    })?;
    code.ok_or_else(|| {
        anyhow::anyhow!(
            "The source ended the connection without saying what became of the guest; \
             ask the destination with `drogher status`"
        )
    })
}

/// The source may have another working folder than we have.
fn absolute(address: &str) -> anyhow::Result<String> {
    let path = std::path::absolute(parse_unix_address(address)?)?;
    let text = path.to_str().with_context(|| {
        format!("{} is not UTF-8; name the destination by another path", path.display())
    })?;
    Ok(format!("unix:{text}"))
}
