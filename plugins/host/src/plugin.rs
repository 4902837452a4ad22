//! Loading: once per file and process, for ever.
//!
//! Invariant of this module: a loaded library is never unloaded, so what it exports is `'static`.
#![expect(unsafe_code, reason = "Runs the dynamic linker and reads what it loaded")]

use crate::ParamError;
use crate::context::{Context, lock};
use crate::descriptor::{self, Descriptor};
use crate::elf::{self, SYMBOL};
use crate::find;
use crate::instance_error::Cause;
use crate::load_error::{DescriptorError, LoadError, TableError};
use crate::params::{self, ParamInfo};
use crate::raw::{Entry, Failed};
use crate::runner::Runner;
use drogher_plugin_abi as abi;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// For loading with its constructors, and for each of the first calls.
const DEADLINE: Duration = Duration::from_secs(10);
/// For the last call, when the process ends.
const LAST_DEADLINE: Duration = Duration::from_secs(2);

struct Loaded {
    path: PathBuf,
    descriptor: Descriptor,
    entry: Entry,
    params: Option<Vec<ParamInfo>>,
    /// Held during `create`; why the last one did not return.
    creating: Mutex<Option<Arc<Cause>>>,
    /// A call into it did not return in time.
    stuck: AtomicBool,
    context: Arc<Context>,
}

/// A file that was loaded, or tried: once, whatever came of it, since its code is there for ever and
/// `init` is called once.
struct Known {
    path: PathBuf,
    /// Where the descriptor is: says whether two paths are one file.
    address: Option<usize>,
    outcome: Result<Plugin, LoadError>,
}

struct Registry {
    known: Vec<Known>,
    /// The last file whose loading was late, and whether it has returned since.
    loading: Option<(PathBuf, Arc<AtomicBool>)>,
}

impl Registry {
    fn find(&self, same: impl Fn(&Known) -> bool) -> Option<Result<Plugin, LoadError>> {
        self.known.iter().find(|known| same(known)).map(|known| known.outcome.clone())
    }

    /// The file whose constructors have not returned. While there is one no other can be loaded, and
    /// a thread's first use of thread-local data with a destructor waits too.
    fn linker_busy(&self) -> Option<&Path> {
        let (path, returned) = self.loading.as_ref()?;
        (!returned.load(Ordering::SeqCst)).then_some(path)
    }
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry { known: Vec::new(), loading: None });

/// A loaded plugin. A clone is another handle to it.
#[derive(Clone)]
pub struct Plugin(Arc<Loaded>);

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("id", &self.0.descriptor.id)
            .field("path", &self.0.path)
            .finish_non_exhaustive()
    }
}

impl Plugin {
    /// What a file says of itself. Runs none of its code.
    ///
    /// # Errors
    /// All that keeps it from being loaded, as far as the file shows it.
    pub fn inspect(path: &Path) -> Result<Descriptor, LoadError> {
        elf::inspect(path)
    }

    /// The file of a plugin: `name` itself if it has a slash or is a `.so` file that exists, else
    /// `libdrogher_NAME.so`, `libNAME.so` or `NAME.so` in the first of the folders that has one.
    ///
    /// # Errors
    /// `NotFound`, `NoSuchPlugin`.
    pub fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, LoadError> {
        find::find(name, dirs)
    }

    /// The file of the plugin with this id in the folders, none of which is run.
    ///
    /// # Errors
    /// `NoSuchId`.
    pub fn find_by_id(id: &str, dirs: &[PathBuf]) -> Result<PathBuf, LoadError> {
        find::find_by_id(id, dirs)
    }

    /// Loads a plugin, for ever, or returns the one loaded before from this file.
    ///
    /// # Errors
    /// All of [`LoadError`].
    pub fn open(path: &Path) -> Result<Plugin, LoadError> {
        Self::open_within(path, DEADLINE)
    }

    /// As [`Self::open`], with a deadline for loading with its constructors and for each first call.
    ///
    /// # Errors
    /// All of [`LoadError`].
    pub fn open_within(path: &Path, deadline: Duration) -> Result<Plugin, LoadError> {
        let from_file = elf::inspect(path)?;
        let path = path.canonicalize().map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source: Arc::new(source),
        })?;
        let changed =
            || LoadError::Descriptor { path: path.clone(), source: DescriptorError::Changed };
        let again = |outcome: Result<Plugin, LoadError>| match outcome {
            Ok(plugin) if *plugin.descriptor() != from_file => Err(changed()),
            Ok(plugin) => Ok(plugin),
            Err(why) => Err(LoadError::Before { path: path.clone(), why: Box::new(why) }),
        };
        let mut registry = lock(&REGISTRY);
        if let Some(outcome) = registry.find(|known| known.path == path) {
            return again(outcome);
        }
        if let Some(other) = registry.linker_busy() {
            return Err(LoadError::LinkerBusy { path, other: other.to_owned() });
        }
        let runner = Runner::start("plugin-load")
            .map_err(|source| LoadError::Thread { path: path.clone(), source: Arc::new(source) })?;
        let mut loader = Loader { path: &path, deadline, runner };
        let returned = Arc::new(AtomicBool::new(false));
        let loaded = match loader.load(&returned) {
            // None of its code has run: it may be tried again.
            Err(error @ LoadError::Link { .. }) => return Err(error),
            loaded => loaded,
        };
        let address = loaded.as_ref().ok().map(|(address, ..)| *address);
        if let Some(outcome) = registry.find(|known| address.is_some() && known.address == address)
        {
            return again(outcome);
        }
        let outcome = loaded.and_then(|(_, descriptor, raw)| {
            if descriptor != from_file { Err(changed()) } else { loader.start(descriptor, raw) }
        });
        if loader.runner.is_lost() && !returned.load(Ordering::SeqCst) {
            registry.loading = Some((path.clone(), returned));
        }
        registry.known.push(Known { path, address, outcome: outcome.clone() });
        outcome
    }

    /// The file that it was loaded from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Who it is.
    pub fn descriptor(&self) -> &Descriptor {
        &self.0.descriptor
    }

    /// Its parameters.
    pub fn params(&self) -> &[ParamInfo] {
        self.0.params.as_deref().unwrap_or_default()
    }

    /// Tells every loaded plugin that no call will follow; the code stays loaded, and cannot be used in
    /// this process any more. For the end of a process. Passed over are plugins that have an instance
    /// or another handle, those that are stuck in a call, and all while the loading of one is stuck; one
    /// that does not return within 2 s is left alone.
    pub fn deinit_all() {
        let mut registry = lock(&REGISTRY);
        if registry.linker_busy().is_some() {
            // Threads are made for the calls, and what they do first might not return.
            return;
        }
        for known in &mut registry.known {
            let Ok(plugin) = &known.outcome else { continue };
            // Handles are made of handles, or under the lock that is held here.
            if Arc::strong_count(&plugin.0) > 1 || plugin.0.stuck.load(Ordering::SeqCst) {
                continue;
            }
            let entry = plugin.0.entry;
            let done = Runner::start("plugin-end")
                .is_ok_and(|mut runner| runner.call(LAST_DEADLINE, move || entry.deinit()).is_ok());
            plugin.0.context.shut();
            if !done {
                tracing::warn!(plugin = plugin.0.descriptor.id, "deinit did not return");
            }
            known.outcome = Err(LoadError::Ended { path: known.path.clone() });
        }
    }

    /// A call into it did not return: its last call is not made.
    pub(crate) fn set_stuck(&self) {
        self.0.stuck.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_params(&self) -> bool {
        self.0.params.is_some()
    }

    pub(crate) fn entry(&self) -> Entry {
        self.0.entry
    }

    pub(crate) fn creating(&self) -> &Mutex<Option<Arc<Cause>>> {
        &self.0.creating
    }
}

/// Makes the first calls into a file, each under the deadline.
struct Loader<'a> {
    path: &'a Path,
    deadline: Duration,
    runner: Runner,
}

impl Loader<'_> {
    fn call<T: Send + 'static>(
        &mut self,
        call: &'static str,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, LoadError> {
        let (path, deadline) = (self.path.to_owned(), self.deadline);
        self.runner.call(deadline, job).map_err(|_| LoadError::Late { path, call, deadline })
    }

    /// Loads it with its constructors; `returned` says when that is over, also if it is late.
    fn load(&mut self, returned: &Arc<AtomicBool>) -> Result<(usize, Descriptor, Raw), LoadError> {
        let (file, returned) = (self.path.to_owned(), returned.clone());
        self.call("loading", move || {
            let result = load(&file);
            returned.store(true, Ordering::SeqCst);
            result
        })?
    }

    /// Starts what was loaded.
    fn start(&mut self, descriptor: Descriptor, raw: Raw) -> Result<Plugin, LoadError> {
        let path = self.path.to_owned();
        let table = |source| LoadError::Table { path: path.clone(), source };
        // SAFETY: the descriptor has been checked.
        let entry = unsafe { Entry::new(raw.0) }.map_err(table)?;
        let context = Context::new(descriptor.id.clone(), None);
        let to = context.clone();
        let status = self.call("init", move || entry.init(&to))?;
        if status != abi::DROGHER_OK {
            let text = context.take_last_error().unwrap_or_else(|| "(no reason given)".to_owned());
            return Err(LoadError::Init { path, status, text });
        }
        let params =
            self.call("params.info", move || read_params(entry))?.map_err(
                |refusal| match refusal {
                    ParamsRefusal::Table(source) => table(source),
                    ParamsRefusal::Param(source) => {
                        LoadError::Params { path: path.clone(), source }
                    }
                },
            )?;
        Ok(Plugin(Arc::new(Loaded {
            path: path.clone(),
            descriptor,
            entry,
            params,
            creating: Mutex::new(None),
            stuck: AtomicBool::new(false),
            context,
        })))
    }
}

/// Its pointers are constants of a library that stays.
#[derive(Clone, Copy)]
struct Raw(abi::Descriptor);
// SAFETY: as above; the functions are bound to no thread.
unsafe impl Send for Raw {}

fn load(path: &Path) -> Result<(usize, Descriptor, Raw), LoadError> {
    let linked = |source| LoadError::Link { path: path.to_owned(), source: Arc::new(source) };
    // SAFETY: runs the constructors of a file that the operator chose to run.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(linked)?;
    // SAFETY: only the address is used here.
    let symbol = unsafe { library.get::<*const u8>(SYMBOL.as_bytes()) }
        .map(|symbol| symbol.into_raw().cast::<u8>().cast_const())
        .map_err(|_| LoadError::NoSymbol { path: path.to_owned() });
    // Never unloaded, also if it is refused: its threads may run, its thread-locals have destructors.
    core::mem::forget(library);
    let symbol = symbol?;
    let wrong = |source| LoadError::Descriptor { path: path.to_owned(), source };
    if !symbol.cast::<u64>().is_aligned() {
        let source = TableError::Misaligned { table: SYMBOL };
        return Err(LoadError::Table { path: path.to_owned(), source });
    }
    // SAFETY: the file was inspected: this symbol is a descriptor. The head alone is read first, in
    // case the file was replaced since.
    let head = unsafe { core::slice::from_raw_parts(symbol, descriptor::HEAD) };
    Descriptor::check_head(head).map_err(wrong)?;
    // SAFETY: the head says that so much is there.
    let bytes = unsafe { core::slice::from_raw_parts(symbol, descriptor::LEN) };
    let parsed = Descriptor::parse(bytes).map_err(wrong)?;
    // SAFETY: aligned, as long as a descriptor, which has no invalid values but those of functions.
    let raw = unsafe { symbol.cast::<abi::Descriptor>().read() };
    Ok((symbol.addr(), parsed, Raw(raw)))
}

enum ParamsRefusal {
    Table(TableError),
    Param(ParamError),
}

fn read_params(entry: Entry) -> Result<Option<Vec<ParamInfo>>, ParamsRefusal> {
    let Some(table) = entry.params().map_err(ParamsRefusal::Table)? else { return Ok(None) };
    params::check_table(&table).map_err(ParamsRefusal::Table)?;
    let mut all = Vec::new();
    for number in 0..table.count {
        let raw = entry.param(&table, number).map_err(|failed| {
            let what = match failed {
                Failed::Status(status) => format!("status {status}"),
                Failed::Lie(what) => what,
            };
            ParamsRefusal::Param(ParamError::Description { number, what })
        })?;
        all.push(ParamInfo::new(number, &raw, &all).map_err(ParamsRefusal::Param)?);
    }
    Ok(Some(all))
}
