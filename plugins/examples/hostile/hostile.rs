//! A plugin in Rust that panics or hangs where it is told to, and whose worker does DMA and interrupts
//! without regard to anything. For tests of the host.
//!
//! Parameter `fault`: `panic:CALL` or `hang:CALL`, CALL being a method of the trait, a state that
//! `set_state` is to reach (`StopCopy`), or `worker`; `refuse:STATE`, `fail:doorbell`;
//! `panic:worker-once`: the worker that there is when this is set.
//! BAR 0: 0x00 RW64 IOVA that the worker counts at (0: the worker does nothing), 0x08 RO64 DMA calls
//! that were refused, 0x10 RO64 those that were not, 0x18 RO64 interrupts refused, 0x20 RW64 scratch, 0x28 RW64
//! address that the worker writes its turns to (0: nowhere), 0x30 RO64 those writes that were not refused,
//! 0x38 RO64 those that were not allowed.

use drogher_plugin_sdk::{
    DeviceInfo, DmaErrorKind, Doorbell, Failure, Host, ParamKind, ParamSpec, Params, PrecopyInfo,
    Read, Region, State, StateFormat, export_plugin,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Default)]
struct Shared {
    iova: AtomicU64,
    refused: AtomicU64,
    done: AtomicU64,
    irqs_refused: AtomicU64,
    peer: AtomicU64,
    sent: AtomicU64,
    not_allowed: AtomicU64,
    panics: AtomicBool,
    end: AtomicBool,
}

struct Hostile {
    host: Host,
    fault: String,
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    scratch: u64,
    saved: u64,
    at: usize,
}

/// Never parked: counts at the IOVA and interrupts, whatever the state.
fn work(host: &Host, shared: &Shared) {
    while !shared.end.load(Ordering::SeqCst) {
        assert!(!shared.panics.load(Ordering::SeqCst), "worker out of its mind");
        let iova = shared.iova.load(Ordering::SeqCst);
        if iova != 0 {
            match host.dma_fetch_add_u64(iova, 1) {
                Ok(_) => shared.done.fetch_add(1, Ordering::SeqCst),
                Err(_) => shared.refused.fetch_add(1, Ordering::SeqCst),
            };
            if host.irq(0).is_err() {
                shared.irqs_refused.fetch_add(1, Ordering::SeqCst);
            }
        }
        let peer = shared.peer.load(Ordering::SeqCst);
        if peer != 0 {
            let turn = shared.sent.load(Ordering::SeqCst);
            match host.dma_write(peer, &turn.to_le_bytes()).map_err(|error| error.kind) {
                Ok(()) => shared.sent.fetch_add(1, Ordering::SeqCst),
                Err(DmaErrorKind::NotAllowed) => shared.not_allowed.fetch_add(1, Ordering::SeqCst),
                Err(_) => 0,
            };
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

impl Hostile {
    fn trip(&self, call: &str) {
        trip(&self.fault, call);
    }
}

fn trip(fault: &str, call: &str) {
    match fault.split_once(':') {
        Some(("panic", at)) if at == call => panic!("out of my mind in {call}"),
        Some(("hang", at)) if at == call => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        _ => {}
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
        self.trip("drop");
    }
}

impl drogher_plugin_sdk::Device for Hostile {
    const MIGRATION: Option<StateFormat> =
        Some(StateFormat { version: 1, min_reader: 1, oldest_read: 1, p2p: true, pre_copy: true });
    const NDMA: bool = true;
    const PARAMS: &'static [ParamSpec] = &[
        ParamSpec::new("fault", ParamKind::Text, "", "what to do wrong, and where").runtime(),
        ParamSpec::new("size", ParamKind::Number { min: 1, max: 9 }, "4", "nothing").compat(),
        ParamSpec::new("wide", ParamKind::Bool, "false", "nothing"),
    ];

    fn create(host: Host, params: &Params) -> Result<Self, Failure> {
        let fault = params.text("fault")?.to_owned();
        trip(&fault, "create");
        if fault == "refuse:create" {
            return Err(Failure::unsupported("not in the mood"));
        }
        let shared = Arc::new(Shared::default());
        shared.panics.store(fault == "panic:worker", Ordering::SeqCst);
        let (to, own) = (shared.clone(), host.clone());
        let worker = host
            .spawn("hostile", move || work(&own, &to))
            .map_err(|error| Failure::io(format!("No worker: {error}")))?;
        Ok(Hostile { host, fault, shared, worker: Some(worker), scratch: 0, saved: 0, at: 0 })
    }

    fn info(&self) -> DeviceInfo {
        self.trip("info");
        DeviceInfo {
            regions: vec![Region::memory(0, 4096)],
            vectors: 1,
            doorbells: vec![Doorbell { region: 0, offset: 0x800, width: 4 }],
            config: Some((0x100, 0x10)),
            ..DeviceInfo::new(0xD70E, 0x0667, 0xFF_00_00)
        }
    }

    fn reset(&mut self) -> Result<(), Failure> {
        self.trip("reset");
        self.shared.iova.store(0, Ordering::SeqCst);
        self.shared.peer.store(0, Ordering::SeqCst);
        self.scratch = 0;
        Ok(())
    }

    fn region_read(&mut self, _region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        self.trip("region_read");
        let value = match offset {
            0x00 => self.shared.iova.load(Ordering::SeqCst),
            0x08 => self.shared.refused.load(Ordering::SeqCst),
            0x10 => self.shared.done.load(Ordering::SeqCst),
            0x18 => self.shared.irqs_refused.load(Ordering::SeqCst),
            0x20 => self.scratch,
            0x28 => self.shared.peer.load(Ordering::SeqCst),
            0x30 => self.shared.sent.load(Ordering::SeqCst),
            0x38 => self.shared.not_allowed.load(Ordering::SeqCst),
            _ => return Err(Failure::invalid(format!("No register at {offset:#x}"))),
        };
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn region_write(&mut self, _region: u32, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.trip("region_write");
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u64::from_le_bytes(bytes);
        match offset {
            0x00 => self.shared.iova.store(value, Ordering::SeqCst),
            0x20 => self.scratch = value,
            0x28 => self.shared.peer.store(value, Ordering::SeqCst),
            _ => return Err(Failure::invalid(format!("No register at {offset:#x}"))),
        }
        Ok(())
    }

    fn doorbell(&mut self, _index: u32) -> Result<(), Failure> {
        self.trip("doorbell");
        if self.fault == "fail:doorbell" {
            self.host.fail("the doorbell burned");
        }
        Ok(())
    }

    fn config_read(&mut self, offset: u32, data: &mut [u8]) -> Result<(), Failure> {
        self.trip("config_read");
        data.fill(offset as u8);
        Ok(())
    }

    fn config_write(&mut self, _offset: u32, _data: &[u8]) -> Result<(), Failure> {
        self.trip("config_write");
        Ok(())
    }

    fn set_state(&mut self, from: State, to: State) -> Result<(), Failure> {
        self.trip("set_state");
        self.trip(&format!("{to:?}"));
        if self.fault == format!("refuse:{to:?}") {
            return Err(Failure::io("not this one"));
        }
        if from == State::Resuming {
            self.scratch = self.saved;
        }
        if matches!(to, State::PreCopy | State::StopCopy | State::Resuming) {
            self.saved = self.scratch;
            self.at = 0;
        }
        Ok(())
    }

    fn precopy_info(&mut self) -> Result<PrecopyInfo, Failure> {
        self.trip("precopy_info");
        Ok(PrecopyInfo { initial_bytes: 0, dirty_bytes: 8 })
    }

    fn stop_copy_size(&mut self) -> Result<u64, Failure> {
        self.trip("stop_copy_size");
        Ok(8)
    }

    fn read_state(&mut self, data: &mut [u8]) -> Result<Read, Failure> {
        self.trip("read_state");
        if self.fault == "lie:read_state" {
            return Ok(Read::Bytes(data.len() + 1));
        }
        let bytes = self.saved.to_le_bytes();
        let left = bytes.get(self.at..).unwrap_or_default();
        let n = left.len().min(data.len());
        data.iter_mut().zip(left).for_each(|(to, from)| *to = *from);
        self.at += n;
        Ok(if n == 0 { Read::End } else { Read::Bytes(n) })
    }

    fn write_state(&mut self, data: &[u8]) -> Result<(), Failure> {
        self.trip("write_state");
        for byte in data {
            self.saved = self.saved >> 8 | u64::from(*byte) << 56;
        }
        Ok(())
    }

    fn enter_ndma(&mut self) -> Result<(), Failure> {
        self.trip("enter_ndma");
        Ok(())
    }

    fn leave_ndma(&mut self) -> Result<(), Failure> {
        self.trip("leave_ndma");
        Ok(())
    }

    fn param_set(&mut self, _name: &str, params: &Params) -> Result<(), Failure> {
        self.trip("param_set");
        self.fault = params.text("fault")?.to_owned();
        self.shared.panics.store(self.fault.starts_with("panic:worker"), Ordering::SeqCst);
        Ok(())
    }
}

export_plugin! {
    device: Hostile,
    id: "org.drogher.test.hostile-rust",
    name: "Hostile in Rust",
    version: env!("CARGO_PKG_VERSION"),
    vendor: "The drogher authors",
    licence: "Apache-2.0 OR MIT",
    experimental: true,
}
