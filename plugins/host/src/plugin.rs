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
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// For loading with its constructors, for each of the first calls, and for the last one.
const DEADLINE: Duration = Duration::from_secs(10);

struct Loaded {
    path: PathBuf,
    /// Where the descriptor is: says whether two paths are one file.
    address: usize,
    descriptor: Descriptor,
    entry: Entry,
    params: Option<Vec<ParamInfo>>,
    /// Held during `create`; why the last one did not return.
    creating: Mutex<Option<Arc<Cause>>>,
    context: Arc<Context>,
}

static LOADED: Mutex<Vec<Plugin>> = Mutex::new(Vec::new());

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
        let path = path
            .canonicalize()
            .map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let mut loaded = lock(&LOADED);
        if let Some(plugin) = loaded.iter().find(|plugin| plugin.0.path == path) {
            return Ok(plugin.clone());
        }
        let thread = |source| LoadError::Thread { path: path.clone(), source };
        let mut runner = Runner::start("plugin-load").map_err(thread)?;
        let late = |call| {
            let path = path.clone();
            move |_| LoadError::Late { path, call, deadline }
        };
        let file = path.clone();
        let (address, raw) =
            runner.call(deadline, move || load(&file)).map_err(late("loading"))??;
        if let Some(plugin) = loaded.iter().find(|plugin| plugin.0.address == address) {
            return Ok(plugin.clone());
        }
        let table = |source| LoadError::Table { path: path.clone(), source };
        let descriptor = raw.0;
        if descriptor != from_file {
            let source = DescriptorError::Changed;
            return Err(LoadError::Descriptor { path, source });
        }
        // SAFETY: the descriptor has just been checked.
        let entry = unsafe { Entry::new(raw.1.0) }.map_err(table)?;
        let context = Context::new(descriptor.id.clone(), None);
        let to = context.clone();
        let status = runner.call(deadline, move || entry.init(&to)).map_err(late("init"))?;
        if status != abi::DROGHER_OK {
            let text = context.take_last_error().unwrap_or_else(|| "(no reason given)".to_owned());
            return Err(LoadError::Init { path, status, text });
        }
        let params = runner
            .call(deadline, move || read_params(entry))
            .map_err(late("params.info"))?
            .map_err(|refusal| match refusal {
                ParamsRefusal::Table(source) => LoadError::Table { path: path.clone(), source },
                ParamsRefusal::Param(source) => LoadError::Params { path: path.clone(), source },
            })?;
        let creating = Mutex::new(None);
        let plugin = Plugin(Arc::new(Loaded {
            path,
            address,
            descriptor,
            entry,
            params,
            creating,
            context,
        }));
        loaded.push(plugin.clone());
        Ok(plugin)
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

    /// Tells every loaded plugin that no call will follow. To be called when the process ends in order
    /// and no instance lives; the code stays loaded. A plugin that does not return is left alone.
    pub fn deinit_all() {
        for plugin in lock(&LOADED).drain(..) {
            let entry = plugin.0.entry;
            let done = Runner::start("plugin-end")
                .is_ok_and(|mut runner| runner.call(DEADLINE, move || entry.deinit()).is_ok());
            plugin.0.context.shut();
            if !done {
                tracing::warn!(plugin = plugin.0.descriptor.id, "deinit did not return");
            }
        }
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

/// Its pointers are constants of a library that stays.
struct SendRaw(abi::Descriptor);
// SAFETY: as above; the functions are bound to no thread.
unsafe impl Send for SendRaw {}

fn load(path: &Path) -> Result<(usize, (Descriptor, SendRaw)), LoadError> {
    let linked = |source| LoadError::Link { path: path.to_owned(), source };
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
    Ok((symbol.addr(), (parsed, SendRaw(raw))))
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
