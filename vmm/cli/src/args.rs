//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use drogher_control::config::{ConfigError, Partial, check_cpus, parse_memory, parse_unix_address};
use drogher_machine::device::DeviceSpec;
use drogher_machine::tracking::{ProviderKind, Require, TrackingPageSize, Wish, Wishes};
use drogher_machine::vcpu::cpuid::{CpuKind, UnknownCpu};
use drogher_trackers::{parse_rate, parse_size};

/// A minimal KVM VMM whose guests, with devices that do DMA, migrate live between processes.
#[derive(Debug, Parser)]
#[command(name = "drogher", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boots a guest and runs it until it ends.
    Run(Box<RunArgs>),
    /// Waits for a guest that migrates here, and runs it until it ends.
    Receive(ReceiveArgs),
    /// Moves a running guest into a process that waits in `drogher receive`.
    Migrate(MigrateArgs),
    /// Shows what a drogher process does.
    Status(ControlArgs),
    /// Ends a migration; the guest runs on at its source.
    Abort(ControlArgs),
    /// Stops the vCPUs until `resume`; devices finish what they were asked for.
    Pause(ControlArgs),
    /// Lets a paused guest go on.
    Resume(ControlArgs),
    /// Presses the guest's power button, on which a guest that listens shuts itself down.
    Powerdown(ControlArgs),
    /// Ends the guest and its process.
    Shutdown(ControlArgs),
    /// Shows which providers would track the DMA of a configuration, or of a guest that runs, what
    /// they cover and cost, and why.
    Explain(Box<ExplainArgs>),
    /// Shows how a guest's DMA is tracked, or has it tracked otherwise, also during a migration.
    Tracking(TrackingCommand),
    /// Lists, shows and sets parameters of the devices of a guest.
    #[command(subcommand)]
    Params(ParamsCommand),
    /// Looks at plugins.
    #[command(subcommand)]
    Plugin(PluginCommand),
    /// Boots the probe guest under load and migrates it live, with explanations.
    Demo(DemoArgs),
    /// Measures what each way of tracking DMA costs on this machine.
    Trackers(Box<TrackersArgs>),
}

/// `drogher run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// TOML file with the same settings; flags win, devices add up.
    #[arg(long, value_name = "FILE.toml")]
    pub config: Option<PathBuf>,
    /// An ELF file with a PVH entry, a bzImage, or `probe`, the guest that this binary carries [default: probe].
    #[arg(long, value_name = "FILE|probe")]
    pub kernel: Option<String>,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[arg(long, value_name = "STR", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Guest RAM [default: 256M].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<String>,
    /// Number of vCPUs, 1 to 8 [default: 1].
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpus: Option<u8>,
    /// The CPU that the guest sees: all of this host's, or x86-64-v2, to move to any host of its vendor
    /// [default: host].
    #[arg(long, value_name = "host|baseline", value_parser = cpu)]
    pub cpu: Option<String>,
    /// A device: a plugin's name or file, and its parameters; may be given several times.
    #[arg(long = "device", value_name = "NAME|FILE.so[,key=value]...", value_parser = device)]
    pub devices: Vec<String>,
    /// Listen here for `status`, `migrate` and the like.
    #[arg(long, value_name = "SOCK", value_parser = socket)]
    pub control: Option<PathBuf>,
    /// The file whose lock is the right to run this guest [default: one is made].
    #[arg(long, value_name = "FILE")]
    pub lease: Option<PathBuf>,
    /// Where the guest's serial port goes [default: stdio].
    #[arg(long, value_name = "stdio|FILE|none")]
    pub console: Option<String>,
    /// Look for plugins here too, after the folder of this binary.
    #[arg(long = "plugin-path", value_name = "DIR")]
    pub plugin_path: Vec<PathBuf>,
    /// Tracking.
    #[command(flatten)]
    pub tracking: TrackingArgs,
}

/// How devices' DMA is tracked.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Tracking of DMA")]
pub struct TrackingArgs {
    /// The provider for all devices; a device's own vm.tracker wins [default: auto].
    #[arg(long, value_name = "auto|iommu|device|pinned|fault|all", value_parser = wish)]
    pub tracker: Option<Wish>,
    /// The tracking page size, 4K to 2M [default: as the provider likes].
    #[arg(long, value_name = "SIZE")]
    pub tracking_page: Option<TrackingPageSize>,
    /// Refuse to migrate if reports would not be exact [default: any].
    #[arg(long, value_name = "exact|any", value_parser = require)]
    pub require: Option<Require>,
    /// Put this device in NDMA when the rounds begin, or all `untracked` ones; may be given several
    /// times.
    #[arg(long = "early-ndma", value_name = "NAME|bb:dd.f|untracked")]
    pub early_ndma: Vec<String>,
}

impl TrackingArgs {
    /// The flags in the shape of the configuration file.
    pub fn wishes(&self) -> Wishes {
        Wishes {
            tracker: self.tracker,
            page: self.tracking_page,
            require: self.require,
            early_ndma: self.early_ndma.clone(),
            quirks: Vec::new(),
        }
    }
}

/// `drogher explain`. The flags of `run`, so that a command line can be tried before it is run.
#[derive(Debug, Args)]
#[command(mut_arg("control", |arg| arg.help("Explain the guest of the process that listens here")))]
pub struct ExplainArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The configuration, or with `--control` a guest that runs.
    #[command(flatten)]
    pub run: RunArgs,
}

/// `drogher tracking`.
#[derive(Debug, Args)]
pub struct TrackingCommand {
    /// The process.
    #[command(flatten)]
    pub control: ControlArgs,
    /// The device, by name, bb:dd.f or plugin [default: all].
    #[arg(long, value_name = "NAME")]
    pub device: Option<String>,
    /// The provider from now on.
    #[arg(long, value_name = "auto|iommu|device|pinned|fault|all", value_parser = wish)]
    pub tracker: Option<Wish>,
    /// The tracking page size from now on.
    #[arg(long, value_name = "SIZE")]
    pub page: Option<TrackingPageSize>,
    /// What reports have to be from now on.
    #[arg(long, value_name = "exact|any", value_parser = require)]
    pub require: Option<Require>,
}

/// `drogher params ...`.
#[derive(Debug, Subcommand)]
pub enum ParamsCommand {
    /// Lists parameters, with their kinds, values and what they do.
    List {
        /// The process.
        #[command(flatten)]
        control: ControlArgs,
        /// Only this device's, by name, bb:dd.f or plugin.
        #[arg(value_name = "DEVICE")]
        device: Option<String>,
    },
    /// Prints the value of one.
    Get {
        /// The process.
        #[command(flatten)]
        control: ControlArgs,
        /// The device, by name, bb:dd.f or plugin.
        #[arg(value_name = "DEVICE")]
        device: String,
        /// The parameter.
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Sets one, if it may be set while the device lives.
    Set {
        /// The process.
        #[command(flatten)]
        control: ControlArgs,
        /// The device, by name, bb:dd.f or plugin.
        #[arg(value_name = "DEVICE")]
        device: String,
        /// The parameter and its new value.
        #[arg(value_name = "NAME=VALUE", value_parser = assignment)]
        assignment: (String, String),
    },
}

impl RunArgs {
    /// The flags in the shape of the configuration file.
    pub fn into_partial(self) -> Partial {
        Partial {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            memory: self.memory,
            cpus: self.cpus,
            cpu: self.cpu,
            devices: self.devices,
            control: self.control,
            lease: self.lease,
            console: self.console,
            plugin_path: self.plugin_path,
            tracking: self.tracking.wishes(),
        }
    }
}

/// `drogher receive`.
#[derive(Debug, Args)]
pub struct ReceiveArgs {
    /// Wait for the source here.
    #[arg(long, value_name = "unix:PATH", value_parser = address)]
    pub listen: String,
    /// Listen here for `status`, `migrate` and the like.
    #[arg(long, value_name = "SOCK", value_parser = socket)]
    pub control: Option<PathBuf>,
    /// The guest's lease file [default: the one that the source names].
    #[arg(long, value_name = "FILE")]
    pub lease: Option<PathBuf>,
    /// Where the guest's serial port goes.
    #[arg(long, value_name = "stdio|FILE|none", default_value = "stdio")]
    pub console: String,
    /// Refuse a guest with another amount of RAM.
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub memory: Option<String>,
    /// Refuse a guest with another number of vCPUs.
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub cpus: Option<u8>,
    /// Refuse a guest with other devices or parameters; once for each device, in order.
    #[arg(long = "device", value_name = "NAME[,key=value]...", value_parser = device)]
    pub devices: Vec<String>,
    /// Look for plugins here too, after the folder of this binary.
    #[arg(long = "plugin-path", value_name = "DIR")]
    pub plugin_path: Vec<PathBuf>,
    /// Tracking, when the guest moves on.
    #[command(flatten)]
    pub tracking: TrackingArgs,
}

/// What to do when the rounds have not converged in time.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum TimeoutStrategy {
    /// Give up; the guest runs on at its source.
    Cancel,
    /// Switch over whatever the downtime.
    Ignore,
}

/// `drogher migrate`.
#[derive(Debug, Args)]
pub struct MigrateArgs {
    /// Control socket of the process that runs the guest.
    #[arg(long, value_name = "SOCK", value_parser = socket)]
    pub control: PathBuf,
    /// Where the destination listens.
    #[arg(long, value_name = "unix:PATH", value_parser = address)]
    pub to: String,
    /// Switch over once the forecast downtime is at most this [default: 50].
    #[arg(long, value_name = "N")]
    pub downtime_ms: Option<u64>,
    /// Rounds may take this long [default: 3600].
    #[arg(long, value_name = "N")]
    pub timeout_s: Option<u64>,
    /// What then [default: cancel].
    #[arg(long, value_enum)]
    pub timeout_strategy: Option<TimeoutStrategy>,
    /// Compare hashes of every page and device state on both sides before the switch.
    #[arg(long)]
    pub verify: bool,
    /// Send page contents without a hash: a little faster, and damage on the way goes unnoticed.
    #[arg(long)]
    pub no_page_hash: bool,
    /// Print events and the report as JSON lines.
    #[arg(long)]
    pub json: bool,
    /// Tracking in this migration.
    #[command(flatten)]
    pub tracking: TrackingArgs,
}

/// A command to a running process.
#[derive(Debug, Args)]
pub struct ControlArgs {
    /// Control socket of the process.
    #[arg(long, value_name = "SOCK", value_parser = socket)]
    pub control: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `drogher plugin ...`.
#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// Prints what a plugin file says of itself; runs none of its code.
    Info {
        /// The plugin.
        #[arg(value_name = "FILE.so")]
        file: PathBuf,
    },
}

/// `drogher demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Guest RAM.
    #[arg(long, value_name = "SIZE", value_parser = demo_memory, default_value = "256M")]
    pub memory: String,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", value_parser = cpus, default_value_t = 1)]
    pub cpus: u8,
    /// Keep the folder with sockets and consoles.
    #[arg(long)]
    pub keep: bool,
}

/// `drogher trackers`.
#[derive(Debug, Args)]
pub struct TrackersArgs {
    /// One cell in a few seconds, instead of twelve in a few minutes.
    #[arg(long)]
    pub quick: bool,
    /// RAM to measure with [default: 64M].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Memory that the device writes to [default: 256K,4M,48M].
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', value_parser = parse_size)]
    pub working_set: Vec<u64>,
    /// Writes a second, of 1 KiB each [default: 1K/s,10K/s,50K/s,200K/s].
    #[arg(long, value_name = "N/s,...", value_delimiter = ',', value_parser = parse_rate)]
    pub rate: Vec<u64>,
    /// Which providers [default: iommu,device,fault,pinned,all].
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub providers: Vec<ProviderKind>,
    /// Tracking page sizes of those that have a choice [default: 4K,64K,2M].
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',')]
    pub pages: Vec<TrackingPageSize>,
    /// Write all figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write a report with plots here, as one HTML file.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

// Checks of single values, so that a wrong one is an error of the command line.

fn memory(text: &str) -> Result<String, ConfigError> {
    parse_memory(text).map(|_| text.to_owned())
}

/// The demo's guest works on 64 MiB.
fn demo_memory(text: &str) -> Result<String, String> {
    match parse_memory(text).map_err(|error| error.to_string())? {
        bytes if bytes < 128 << 20 => Err("the demo needs at least 128M".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// A path, with the `unix:` of an address or without.
fn socket(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.strip_prefix("unix:").unwrap_or(text).into())
}

fn cpu(text: &str) -> Result<String, UnknownCpu> {
    text.parse::<CpuKind>().map(|kind| kind.to_string())
}

fn cpus(text: &str) -> Result<u8, ConfigError> {
    check_cpus(text.parse().map_err(|_| ConfigError::Number(text.to_owned()))?)
}

fn device(text: &str) -> Result<String, ConfigError> {
    text.parse::<DeviceSpec>()?;
    Ok(text.to_owned())
}

fn wish(text: &str) -> Result<Wish, String> {
    match text {
        "auto" => Ok(Wish::Auto),
        _ => text
            .parse::<ProviderKind>()
            .map(Wish::from)
            .map_err(|error| format!("{error}, or auto")),
    }
}

fn require(text: &str) -> Result<Require, String> {
    match text {
        "exact" => Ok(Require::Exact),
        "any" => Ok(Require::Any),
        _ => Err("use exact or any".into()),
    }
}

fn assignment(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write it as NAME=VALUE".into()),
    }
}

fn address(text: &str) -> Result<String, ConfigError> {
    parse_unix_address(text).map(|_| text.to_owned())
}
