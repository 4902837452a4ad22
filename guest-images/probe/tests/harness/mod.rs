//! The smallest machine that the probe runs on: PVH boot, COM1, in-kernel irqchip, power-off,
//! and an ndma device that can be told to misbehave.

mod load;
pub mod ndma;
mod skip;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use drogher_probe::{Console, Options};
use kvm_bindings::kvm_msi;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use libc::{c_void, siginfo_t};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use ndma::{Fault, Ndma};
pub use skip::skipped;

/// No test waits longer for anything: the machine that tests run on may be a busy one.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    PowerOff,
    Reset,
    TripleFault,
}

/// A running probe.
pub struct Machine {
    shared: Arc<Shared>,
    vcpus: Vec<JoinHandle<()>>,
    output: Receiver<Event>,
    pub console: Console,
    pub transcript: String,
}

enum Event {
    Output(u8),
    End(End),
}

struct Shared {
    vm: VmFd,
    memory: GuestMemoryMmap,
    ndma: Option<Mutex<Ndma>>,
    input: Mutex<VecDeque<u8>>,
    events: Mutex<Sender<Event>>,
    stop: AtomicBool,
}

/// The signal does nothing but end KVM_RUN.
extern "C" fn interrupt(_: i32, _: *mut siginfo_t, _: *mut c_void) {}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Machine {
    /// Boots the probe with `mib` MiB of RAM, and an ndma device if `fault` is given.
    pub fn boot(options: &Options, mib: usize, fault: Option<Fault>) -> Self {
        Self::boot_line(&options.to_string(), mib, options.vcpus, fault)
    }

    /// The same with a command line of one's own.
    pub fn boot_line(line: &str, mib: usize, vcpus: u32, fault: Option<Fault>) -> Self {
        let kvm = Kvm::new().expect("/dev/kvm opens");
        let vm = kvm.create_vm().expect("KVM makes a VM");
        vm.set_tss_address(0xfffb_d000).expect("KVM takes a TSS address");
        vm.create_irq_chip().expect("KVM makes an irqchip");
        let (memory, entry) = load::memory(&vm, mib << 20, line);
        let fds: Vec<VcpuFd> = (0..u64::from(vcpus))
            .map(|id| load::vcpu(&kvm, &vm, id, (id == 0).then_some(entry)))
            .collect();
        register_signal_handler(SIGRTMIN(), interrupt).expect("A signal handler is taken");
        let (events, output) = mpsc::channel();
        let shared = Arc::new(Shared {
            vm,
            memory,
            ndma: fault.map(|fault| Mutex::new(Ndma::new(fault))),
            input: Mutex::default(),
            events: Mutex::new(events),
            stop: AtomicBool::new(false),
        });
        let start = |fd| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.run(fd))
        };
        let vcpus = fds.into_iter().map(start).collect();
        let (console, transcript) = (Console::default(), String::new());
        Self { shared, vcpus, output, console, transcript }
    }

    /// Types a character.
    pub fn send(&self, letter: char) {
        lock(&self.shared.input).extend(letter.to_string().bytes());
    }

    /// Sends an interrupt that the guest asked nobody for.
    pub fn interrupt(&self, vector: u8) {
        let (address_lo, data) = (0xfee0_0000, u32::from(vector));
        let msi = kvm_msi { address_lo, data, ..kvm_msi::default() };
        self.shared.vm.signal_msi(msi).expect("KVM takes the MSI");
    }

    /// Changes a byte of guest memory behind the guest's back.
    pub fn spoil(&self, gpa: u64) {
        let at = GuestAddress(gpa);
        let byte: u8 = self.shared.memory.read_obj(at).expect("The address is RAM");
        self.shared.memory.write_obj(!byte, at).expect("The address is RAM");
    }

    /// Reads on until the console is as wanted; panics with all output where it does not come.
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Console) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !wanted(&self.console) {
            if let Some(end) = self.next(deadline) {
                panic!("{end:?}, but no {what}:\n{}", self.transcript);
            }
        }
    }

    /// Reads on until the guest has ended.
    pub fn end(&mut self) -> End {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(end) = self.next(deadline) {
                return end;
            }
        }
    }

    /// Takes one event: a character, or the end.
    fn next(&mut self, deadline: Instant) -> Option<End> {
        match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Output(byte)) => {
                self.transcript.push(char::from(byte));
                self.console.feed(&[byte]);
                None
            }
            Ok(Event::End(end)) => Some(end),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                panic!("Nothing more came:\n{}", self.transcript)
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for vcpu in self.vcpus.drain(..) {
            // A signal that comes just before KVM_RUN is lost: so it is sent until it works.
            while !vcpu.is_finished() {
                let _ = vcpu.kill(SIGRTMIN());
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = vcpu.join();
        }
    }
}

impl Shared {
    fn run(&self, mut vcpu: VcpuFd) {
        while !self.stop.load(SeqCst) {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(port, data)) => self.port_write(port, data),
                Ok(VcpuExit::IoIn(port, data)) => self.port_read(port, data),
                Ok(VcpuExit::MmioRead(at, data)) => match &self.ndma {
                    Some(ndma) => lock(ndma).read(at, data, &self.vm),
                    None => data.fill(0xff),
                },
                Ok(VcpuExit::MmioWrite(at, data)) => {
                    if let Some(ndma) = &self.ndma {
                        lock(ndma).write(at, data, &self.memory, &self.vm);
                    }
                }
                Ok(VcpuExit::Shutdown) => return self.tell(Event::End(End::TripleFault)),
                Ok(VcpuExit::Intr) => {}
                Ok(exit) => panic!("Unexpected exit {exit:?}"),
                // EINTR and EAGAIN; the latter from a vCPU that has not been started.
                Err(error) if matches!(error.errno(), 4 | 11) => {}
                Err(error) => panic!("KVM_RUN: {error}"),
            }
        }
    }

    fn tell(&self, event: Event) {
        // Nobody listens any more once the test is over.
        let _ = lock(&self.events).send(event);
    }

    fn port_write(&self, port: u16, data: &[u8]) {
        match (port, data) {
            (0x3f8, [byte]) => self.tell(Event::Output(*byte)),
            (0x604, [_, high]) if high & 0x20 != 0 => self.tell(Event::End(End::PowerOff)),
            (0xcf9, [value]) if value & 4 != 0 => self.tell(Event::End(End::Reset)),
            (0xcf8..=0xcff, _) => {
                if let Some(ndma) = &self.ndma {
                    lock(ndma).config_write(port, data);
                }
            }
            _ => {}
        }
    }

    fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        match (port, data) {
            (0x3fd, [status]) => *status = 0x60 | u8::from(!lock(&self.input).is_empty()),
            (0x3f8, [byte]) => *byte = lock(&self.input).pop_front().unwrap_or(0),
            (0xcfc, data) => {
                if let Some(ndma) = &self.ndma {
                    lock(ndma).config_read(data);
                }
            }
            _ => {}
        }
    }
}
