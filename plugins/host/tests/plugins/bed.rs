//! What a plugin is tested on: a domain over a little memory, a machine that counts, a C compiler.

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Memory, Perm};
use drogher_iommu_types::{Gpa, Oa, Rid};
use drogher_plugin_host::{
    Cause, Deadlines, HostServices, Instance, InstanceConfig, InstanceError, LogLevel, PeerWrite,
    Plugin,
};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes of guest memory, at GPA 0.
pub const MEMORY: u64 = 1 << 20;

/// The machine's side: counts interrupts, keeps the log.
#[derive(Default)]
pub struct Machine {
    pub irqs: AtomicU64,
    pub lines: Mutex<Vec<(LogLevel, String)>>,
    pub failures: Mutex<Vec<Cause>>,
    /// What was written to [`PEER`].
    pub peer: Mutex<Vec<u64>>,
    /// The peer takes no more.
    pub full: AtomicBool,
}

/// Where another device is.
pub const PEER: u64 = 0xE000_0000;

impl HostServices for Machine {
    fn irq(&self, _vector: u16) {
        self.irqs.fetch_add(1, Ordering::SeqCst);
    }

    fn peer_write(&self, gpa: u64, data: &[u8]) -> PeerWrite {
        match gpa {
            PEER if self.full.load(Ordering::SeqCst) => PeerWrite::Full,
            PEER => {
                let words = data.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
                self.peer.lock().expect("not poisoned").extend(words);
                PeerWrite::Taken
            }
            _ => PeerWrite::NotAPeer,
        }
    }

    fn log(&self, level: LogLevel, text: &str) {
        self.lines.lock().expect("not poisoned").push((level, text.to_owned()));
    }

    fn failed(&self, cause: &Cause) {
        self.failures.lock().expect("not poisoned").push(cause.clone());
    }
}

pub struct Bed {
    pub memory: Arc<HeapMemory>,
    pub domain: Domain,
    pub machine: Arc<Machine>,
    next: AtomicU16,
}

impl Bed {
    pub fn new() -> Bed {
        let memory = Arc::new(HeapMemory::new(MEMORY));
        let domain = Domain::new(memory.clone(), DomainConfig::default()).expect("a domain");
        domain.map(Gpa(0)..Gpa(MEMORY), Oa(0), Perm::READ_WRITE).expect("maps");
        Bed { memory, domain, machine: Arc::default(), next: AtomicU16::new(8) }
    }

    pub fn create(
        &self,
        plugin: &Plugin,
        params: &[(&str, &str)],
    ) -> Result<Instance, InstanceError> {
        self.create_with(plugin, params, Deadlines::default())
    }

    pub fn create_with(
        &self,
        plugin: &Plugin,
        params: &[(&str, &str)],
        deadlines: Deadlines,
    ) -> Result<Instance, InstanceError> {
        let rid = Rid(self.next.fetch_add(1, Ordering::SeqCst));
        let requester = self.domain.attach(rid).expect("attaches");
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let config = InstanceConfig {
            name: format!("dev{}", rid.0),
            params: params.iter().map(own).collect(),
            deadlines,
        };
        Instance::create(plugin, config, requester, self.machine.clone())
    }

    pub fn u64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(Oa(at), &mut bytes).expect("inside");
        u64::from_le_bytes(bytes)
    }

    /// Writes that the peer has got.
    pub fn peer_writes(&self) -> usize {
        self.machine.peer.lock().expect("not poisoned").len()
    }

    pub fn irqs(&self) -> u64 {
        self.machine.irqs.load(Ordering::SeqCst)
    }
}

pub fn read64(instance: &Instance, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    instance.region_read(0, offset, &mut bytes).expect("reads");
    u64::from_le_bytes(bytes)
}

pub fn write64(instance: &Instance, offset: u64, value: u64) {
    instance.region_write(0, offset, &value.to_le_bytes()).expect("writes");
}

/// Waits for something to come true.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "never came true: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A short deadline, for calls that are late on purpose.
pub fn short() -> Deadlines {
    Deadlines { call: Duration::from_millis(200), state: Duration::from_millis(200) }
}

/// Deadlines for calls that panic: printing where may take its time.
pub fn generous() -> Deadlines {
    Deadlines { call: Duration::from_secs(60), state: Duration::from_secs(60) }
}

/// True in a process of its own, in which the test goes on; else runs it there, and wants it to pass
/// and the process to end. For what cannot be undone in a process.
pub fn alone(test: &str) -> bool {
    const ALONE: &str = "DROGHER_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("runs");
    let start = Instant::now();
    let ended = loop {
        match child.try_wait().expect("can be waited for") {
            Some(status) => break Some(status),
            None if start.elapsed() > Duration::from_secs(60) => break None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let _ = child.kill();
    let output = child.wait_with_output().expect("output");
    let words = String::from_utf8_lossy(&output.stdout);
    let status = ended.unwrap_or_else(|| panic!("the process does not end:\n{words}"));
    // A test that ends its process does so with this status; the others by passing.
    let passed = status.code() == Some(ENDED.into()) || words.contains("1 passed");
    assert!(passed, "{status}:\n{words}");
    false
}

/// Status of a process that a test has ended itself.
pub const ENDED: u8 = 77;

fn plugins() -> PathBuf {
    // Of this crate's tests, or of its fuzzer, a folder deeper.
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = own.ancestors().find(|folder| folder.join("abi/include").is_dir());
    found.expect("the folder plugins").to_owned()
}

/// A plugin in C, built for one test; `None`, and a loud line, without a compiler.
pub struct Built {
    pub dir: tempfile::TempDir,
    pub file: PathBuf,
}

pub fn compile(source: &str, name: &str, defines: &[&str]) -> Option<Built> {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join(format!("lib{name}.so"));
    let output = Command::new("cc")
        .args(["-std=gnu11", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
        .args([
            "-pthread",
            "-Wno-unused-function",
            "-Wno-unused-const-variable",
            "-fvisibility=hidden",
        ])
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg("-I")
        .arg(plugins().join("abi/include"))
        .arg("-o")
        .arg(&file)
        .arg(plugins().join("examples").join(source))
        .output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: no compiler cc");
            None
        }
        Err(error) => panic!("cc cannot be run: {error}"),
        Ok(output) => {
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{source} {defines:?}: {words}");
            Some(Built { dir, file })
        }
    }
}

/// The hostile plugin in C.
pub fn hostile(defines: &[&str]) -> Option<Built> {
    compile("hostile-c/hostile.c", "hostile", defines)
}

/// The hostile plugin in Rust, an example of this crate that cargo has built beside this test.
pub fn hostile_rust() -> Plugin {
    let test = std::env::current_exe().expect("this test has a path");
    let target = test.parent().and_then(Path::parent).expect("deps is in a profile's folder");
    let file = target.join("examples/libhostile.so");
    assert!(file.exists(), "no {}: run all tests of this crate, or --examples too", file.display());
    Plugin::open(&file).expect("the hostile plugin loads")
}

/// The whole chain of an error in one text.
pub fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
