//! A register access of a plugin, as a vCPU's exit makes it, against the same through `dyn Trait`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drogher_iommu::{Domain, DomainConfig, Gpa, HeapMemory, Memory, Oa, Perm, Rid};
use drogher_plugin_host::{
    Cause, Deadlines, HostServices, Instance, InstanceConfig, LogLevel, Plugin, State,
};
use drogher_tests::bin_folder;

use crate::setup::Setup;
use crate::stats::Samples;
use crate::table::{Better, Row, Section};

/// The ID register of ndma.
const ID: u64 = 0;
const ID_VALUE: u32 = 0x414d_444e;
/// Calls that are timed together.
const BATCH: u32 = 200;
const DIRECT_BATCH: u32 = 100_000;
const RARE_BATCH: u32 = 50;
/// A guest that does nothing but access registers exits about this often.
const REST: Duration = Duration::from_micros(50);

/// A machine whose devices are not listened to.
struct Deaf;

impl HostServices for Deaf {
    fn irq(&self, _vector: u16) {}
    fn log(&self, _level: LogLevel, _text: &str) {}
    fn failed(&self, _cause: &Cause) {}
}

/// What a device would be without an ABI.
trait Registers {
    fn read(&self, offset: u64, data: &mut [u8]);
}

struct Direct {
    id: u32,
    bytes: AtomicU64,
}

impl Registers for Direct {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            ID => u64::from(self.id),
            0x30 => self.bytes.load(Ordering::Relaxed),
            _ => 0,
        };
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }
}

fn instance() -> Result<Instance> {
    let folder = bin_folder();
    let plugin = Plugin::open(&Plugin::find("ndma", &[folder])?)?;
    let memory = Arc::new(HeapMemory::new(1 << 20));
    let domain = Domain::new(memory.clone(), DomainConfig::default())?;
    domain.map(Gpa(0)..Gpa(memory.len()), Oa(0), Perm::READ_WRITE)?;
    let config = InstanceConfig {
        name: "bench".into(),
        params: Vec::new(),
        deadlines: Deadlines::default(),
    };
    let instance = Instance::create(&plugin, config, domain.attach(Rid(8))?, Arc::new(Deaf))?;
    instance.set_state(State::Running)?;
    Ok(instance)
}

fn nanoseconds_each(count: u32, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    for _ in 0..count {
        call()?;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e9 / f64::from(count))
}

/// The mean of calls that are made seldom, as a guest makes them: the device's thread sleeps by then.
fn rare_call(instance: &Instance) -> Result<f64> {
    let mut taken = Duration::ZERO;
    let mut data = [0; 4];
    for _ in 0..RARE_BATCH {
        let rest = Instant::now();
        while rest.elapsed() < REST {
            std::hint::spin_loop();
        }
        let begin = Instant::now();
        instance.region_read(0, black_box(ID), &mut data)?;
        taken += begin.elapsed();
    }
    Ok(taken.as_secs_f64() * 1e9 / f64::from(RARE_BATCH))
}

/// By turns: batches of calls into the plugin, of direct calls, and of hand-overs between threads.
pub fn measure(setup: &Setup) -> Result<Section> {
    setup.say("plugin ABI");
    let instance = instance().context("Cannot make an ndma device")?;
    let direct: Box<dyn Registers> = Box::new(Direct { id: ID_VALUE, bytes: AtomicU64::new(0) });
    let echo = Echo::start()?;
    let [mut plugin, mut plain, mut threads, mut sparse] = [const { Samples::new() }; 4];
    let mut data = [0; 4];
    for _ in 0..setup.count(201, 51) {
        plugin.push(nanoseconds_each(BATCH, || {
            instance.region_read(0, black_box(ID), &mut data)?;
            Ok(())
        })?);
        ensure!(data == ID_VALUE.to_le_bytes(), "the ID register reads {data:x?}");
        plain.push(nanoseconds_each(DIRECT_BATCH, || {
            black_box(&direct).read(black_box(ID), black_box(&mut data));
            Ok(())
        })?);
        threads.push(nanoseconds_each(BATCH, || echo.round_trip())?);
        sparse.push(rare_call(&instance)?);
    }
    instance.destroy()?;
    let mut section = Section::new("A call through the plugin ABI: a 4-byte register read of ndma");
    let row = || Row::new("call by the plugin host", "ns", Better::Lower, &plugin);
    section.row(row().against("direct call through dyn Trait", &plain));
    section.row(row().against("two hand-overs between threads", &threads));
    let metric = format!("one call every {} µs", REST.as_micros());
    section
        .row(Row::new(&metric, "ns", Better::Lower, &sparse).against("call after call", &plugin));
    section.note(
        "the host makes each call on the device's own thread, under a deadline: the hand-over \
         there and back is what it costs, and the price for a plugin that may hang",
    );
    Ok(section)
}

/// A thread that answers each message: the cost of going to another thread and back.
struct Echo {
    to: std::sync::mpsc::SyncSender<()>,
    from: std::sync::mpsc::Receiver<()>,
}

impl Echo {
    fn start() -> Result<Self> {
        let (to, asked) = std::sync::mpsc::sync_channel(1);
        let (answer, from) = std::sync::mpsc::sync_channel(1);
        // Ends when its channel is dropped.
        std::thread::Builder::new()
            .name("echo".into())
            .spawn(move || while asked.recv().is_ok() && answer.send(()).is_ok() {})?;
        Ok(Self { to, from })
    }

    fn round_trip(&self) -> Result<()> {
        self.to.send(())?;
        Ok(self.from.recv()?)
    }
}
