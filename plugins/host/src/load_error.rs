//! What can go wrong with a plugin file: each error names the thing and the way out.

use drogher_plugin_abi as abi;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What is wrong with a plugin's descriptor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// No magic number.
    #[error(
        "its symbol drogher_plugin_entry begins with {found:#018x}, not with the magic number \
         {:#018x}: declare it as `const drogher_plugin_descriptor`",
        abi::DROGHER_PLUGIN_MAGIC
    )]
    Magic {
        /// What is there.
        found: u64,
    },
    /// Made for another interface.
    #[error(
        "it was built for plugin interface {found}, this host speaks {}: build it against \
         drogher_plugin.h of version {}",
        abi::DROGHER_ABI_MAJOR,
        abi::DROGHER_ABI_MAJOR
    )]
    Major {
        /// The plugin's.
        found: u32,
    },
    /// Too few bytes.
    #[error("its descriptor says it has {found} bytes, version 1 has {need}: set struct_size")]
    TooSmall {
        /// What it says, or what there is.
        found: u64,
        /// What is needed.
        need: u64,
    },
    /// Unknown flags or reserved fields.
    #[error("its descriptor has reserved {what} set to {value:#x}: they must be 0")]
    Reserved {
        /// Which.
        what: &'static str,
        /// The bits.
        value: u64,
    },
    /// A text of the identity is empty, not ended, not UTF-8 or of wrong characters.
    #[error("the text `{field}` of its descriptor {problem}")]
    Text {
        /// Which.
        field: &'static str,
        /// What is wrong.
        problem: &'static str,
    },
    /// The loaded descriptor is not the one in the file.
    #[error(
        "the file is not the one that was loaded in this process: it was replaced meanwhile, so \
         start drogher anew"
    )]
    Changed,
}

/// What is wrong with a table of functions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// NULL.
    #[error("{table} is missing")]
    Missing {
        /// Which.
        table: &'static str,
    },
    /// Too few bytes.
    #[error("{table} says it has {found} bytes, version 1 has {need}")]
    TooSmall {
        /// Which.
        table: &'static str,
        /// What it says.
        found: u32,
        /// What is needed.
        need: usize,
    },
    /// Misaligned pointer.
    #[error("{table} is not aligned to 8 bytes")]
    Misaligned {
        /// Which.
        table: &'static str,
    },
    /// A function that must be there is NULL.
    #[error("{table} has no function {function}")]
    NoFunction {
        /// Which table.
        table: &'static str,
        /// Which function.
        function: &'static str,
    },
    /// A field has a value that it must not have.
    #[error("{table}.{field} is {value:#x}: {rule}")]
    Field {
        /// Which table.
        table: &'static str,
        /// Which field.
        field: &'static str,
        /// What it is.
        value: u64,
        /// What it must be.
        rule: &'static str,
    },
}

/// A plugin that cannot be loaded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LoadError {
    /// No such file.
    #[error("Plugin file {path} does not exist: build it, or give another path")]
    NotFound {
        /// The path given.
        path: PathBuf,
    },
    /// No plugin of this name.
    #[error(
        "No plugin {name}: looked for {files} in {dirs}. Build it, give its file, or name its \
         folder with --plugin-path"
    )]
    NoSuchPlugin {
        /// The name given.
        name: String,
        /// The file names tried.
        files: String,
        /// The folders searched.
        dirs: String,
    },
    /// No plugin with this id.
    #[error("No plugin with id {id} in {dirs}")]
    NoSuchId {
        /// The id.
        id: String,
        /// The folders searched.
        dirs: String,
    },
    /// Not a regular file, or too large.
    #[error("Plugin {path} is {what}: give the plugin's .so file")]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Cannot be read.
    #[error("Plugin file {path} cannot be read")]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// No ELF, or a broken one.
    #[error("Plugin {path} is no 64-bit ELF shared object ({what}): give the built .so file")]
    NotElf {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// For another machine.
    #[error("Plugin {path} is built for {found}, this host is {expected}: build it for {expected}")]
    WrongMachine {
        /// The path.
        path: PathBuf,
        /// ELF's machine, by name or number.
        found: String,
        /// Ours.
        expected: &'static str,
    },
    /// No entry symbol.
    #[error(
        "Plugin {path} exports no symbol drogher_plugin_entry: in Rust use export_plugin!, in C \
         define it as drogher_plugin.h shows"
    )]
    NoSymbol {
        /// The path.
        path: PathBuf,
    },
    /// The descriptor is not usable.
    #[error("Plugin {path} cannot be used")]
    Descriptor {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: DescriptorError,
    },
    /// The dynamic linker refused it.
    #[error("Plugin {path} cannot be loaded: a library or symbol that it needs may be missing")]
    Link {
        /// The path.
        path: PathBuf,
        /// The linker's words.
        #[source]
        source: Arc<libloading::Error>,
    },
    /// A table is not usable.
    #[error("Plugin {path} cannot be used")]
    Table {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: TableError,
    },
    /// Its `init` said no.
    #[error("Plugin {path} refused to start with status {status}: {text}")]
    Init {
        /// The path.
        path: PathBuf,
        /// Negative errno.
        status: i32,
        /// The plugin's words.
        text: String,
    },
    /// A call into it did not return; nothing of it can be used in this process any more.
    #[error(
        "Plugin {path}: {call} did not return within {deadline:?}; restart without this plugin"
    )]
    Late {
        /// The path.
        path: PathBuf,
        /// Loading, init, ...
        call: &'static str,
        /// What it was given.
        deadline: Duration,
    },
    /// Its list of parameters is not usable.
    #[error("Plugin {path}: its parameters are not usable")]
    Params {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: crate::ParamError,
    },
    /// A thread could not be started.
    #[error("Plugin {path}: cannot start a thread")]
    Thread {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// It was tried before in this process; a file is loaded once.
    #[error("Plugin {path} was refused before in this process ({why}): mend that, and start anew")]
    Before {
        /// The path.
        path: PathBuf,
        /// Why it was refused.
        why: Box<LoadError>,
    },
    /// The constructors of another file have not returned, so the dynamic linker loads nothing.
    #[error(
        "Plugin {path} cannot be loaded while plugin {other} is still being loaded: start anew \
         without {other}"
    )]
    LinkerBusy {
        /// The path.
        path: PathBuf,
        /// The file that is stuck.
        other: PathBuf,
    },
    /// After [`Plugin::deinit_all`](crate::Plugin::deinit_all).
    #[error("Plugin {path} was told that this process ends: start anew")]
    Ended {
        /// The path.
        path: PathBuf,
    },
}
