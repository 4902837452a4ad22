//! What drogher costs, as ratios measured side by side in one run. See `scripts/bench`.

mod abi;
mod console;
mod footprint;
mod iommu;
mod migration;
mod mover;
mod precopy;
mod qemu;
mod raw;
mod setup;
mod start;
mod stats;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;

use setup::Setup;
use table::Section;

/// Measures drogher against QEMU, raw copies and direct calls, by turns, and prints medians
/// [quarter..three quarters].
#[derive(Debug, Parser)]
#[command(name = "scripts/bench", max_term_width = 100)]
struct Cli {
    /// A smoke run: few samples.
    #[arg(long)]
    quick: bool,
    /// Also write the results, with every sample, to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PART,...")]
    only: Vec<Part>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The receiving process of a raw copy.
    #[command(hide = true)]
    RawSink {
        #[arg(long, value_enum)]
        into: raw::Sink,
        #[arg(long)]
        bytes: u64,
    },
}

/// A section of the results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Start,
    Memory,
    Migration,
    Precopy,
    Iommu,
    Abi,
}

impl Part {
    fn measure(self, setup: &Setup) -> Result<Section> {
        match self {
            Self::Start => start::measure(setup),
            Self::Memory => footprint::measure(setup),
            Self::Migration => migration::measure(setup),
            Self::Precopy => precopy::measure(setup),
            Self::Iommu => iommu::measure(setup),
            Self::Abi => abi::measure(setup),
        }
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Some(Command::RawSink { into, bytes }) => raw::sink(bytes, into).map(|()| true),
        None => run(&cli),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every part could be measured, however slow; QEMU's absence is no failure.
fn run(cli: &Cli) -> Result<bool> {
    let setup = Setup::new(cli.quick)?;
    let environment = environment(&setup);
    println!("{environment}\n");
    let mut sections = Vec::new();
    let mut whole = true;
    for part in Part::value_variants() {
        if !cli.only.is_empty() && !cli.only.contains(part) {
            continue;
        }
        match part.measure(&setup) {
            Ok(section) => {
                println!("{}", section.text());
                sections.push(section);
            }
            Err(error) => {
                whole = false;
                eprintln!("bench: {part:?} could not be measured: {error:#}");
                let mut section = Section::new(format!("{part:?}"));
                section.note(format!("could not be measured: {error:#}"));
                sections.push(section);
            }
        }
    }
    if let Some(path) = &cli.json {
        let results = json!({"environment": environment, "quick": cli.quick, "sections": sections});
        std::fs::write(path, format!("{results:#}\n"))
            .with_context(|| format!("Cannot write {}", path.display()))?;
    }
    Ok(whole)
}

/// One line on where this was measured.
fn environment(setup: &Setup) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown CPU", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let qemu = setup.qemu.as_ref().map_or("no QEMU", String::as_str);
    format!("{model}, {cores} cores, Linux {}, {qemu}, load at start {load}", kernel.trim())
}
