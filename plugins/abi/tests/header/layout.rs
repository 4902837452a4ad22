//! Sizes, offsets and values: one table, complete by construction, compared with C and with the
//! layouts of all versions, which may only grow at the ends.

use crate::generate::{IDS, NAMES};
use drogher_plugin_abi as abi;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

pub struct Struct {
    pub rust: &'static str,
    pub size: usize,
    pub align: usize,
    pub fields: Vec<(&'static str, usize)>,
}

macro_rules! structs {
    ($($name:ident { $($field:ident),* $(,)? })*) => {
        pub fn structs() -> Vec<Struct> {
            // A pattern without `..`: a field left out of the table does not compile.
            $(let _ = |value: abi::$name| { let abi::$name { $($field: _),* } = value; };)*
            vec![$(Struct {
                rust: stringify!($name),
                size: size_of::<abi::$name>(),
                align: align_of::<abi::$name>(),
                fields: vec![$((stringify!($field), offset_of!(abi::$name, $field))),*],
            }),*]
        }
    };
}

structs! {
    Str { ptr, len }
    KeyValue { key, value }
    HostTable {
        size, abi_major, abi_minor, flags, host_name, retain, release, log, set_last_error, fail,
        irq, get_extension,
    }
    Dma {
        size, flags, read, write, fill, fetch_add_u32, fetch_add_u64, compare_swap_u32,
        compare_swap_u64,
    }
    CreateInfo {
        size, flags, host, host_ctx, name, params, param_count, requester, reserved,
    }
    DeviceInfo {
        size, flags, vendor_id, device_id, subsystem_vendor_id, subsystem_id, class_code, revision,
        reserved, region_count, vector_count, doorbell_count, config_offset, config_len, reserved2,
    }
    RegionInfo {
        size, flags, index, map_flags, length, map_offset, map_length, map_fd, reserved,
    }
    DoorbellInfo { size, flags, region, width, offset, match_value }
    DeviceOps {
        size, flags, create, destroy, describe, region_info, doorbell_info, reset, config_read,
        config_write, region_read, region_write, doorbell,
    }
    PrecopyInfo { size, flags, initial_bytes, dirty_bytes }
    Migration {
        size, flags, state_version, state_min_reader, state_oldest_read, reserved, set_state,
        get_state, precopy_info, stop_copy_size, read, write,
    }
    Ndma { size, flags, enter, leave }
    ParamInfo { size, kind, flags, reserved, name, default_value, doc, min, max }
    Params { size, flags, count, reserved, info, get, set }
    GpaRange { gpa, len }
    GpaRuns { runs, capacity, count }
    LogStart {
        size, flags, ranges, range_count, page_size, words, word_count, first_gpa, page_shift, fd,
    }
    DmaLog { size, flags, min_page, max_page, max_ranges, reserved, start, report, stop }
    DmaLogHost {
        size, flags, write, fill, fetch_add_u32, fetch_add_u64, compare_swap_u32, compare_swap_u64,
    }
    Pinned { ptr, len, handle, gpa }
    DmaPin { size, flags, unmap }
    DmaPinHost { size, flags, pin, unpin, mark_dirty }
    Preference { size, tracker, page_size, cost_hint_ns, reason }
    Prefers { size, flags, get }
    Descriptor {
        magic, struct_size, abi_major, abi_minor, flags, id, name, version, vendor, licence,
        reserved, init, deinit, device, get_extension,
    }
}

macro_rules! values {
    ($($name:ident)*) => {
        pub fn values() -> Vec<(&'static str, i128)> {
            vec![$((stringify!($name), i128::from(abi::$name))),*]
        }
    };
}

values! {
    DROGHER_OK DROGHER_ERR_PERM DROGHER_ERR_NOENT DROGHER_ERR_IO DROGHER_ERR_NOMEM
    DROGHER_ERR_FAULT DROGHER_ERR_BUSY DROGHER_ERR_INVAL DROGHER_ERR_RANGE DROGHER_ERR_NOMSG
    DROGHER_ERR_NOTSUP DROGHER_ERR_SHUTDOWN DROGHER_ERR_FATAL
    DROGHER_TEXT_MAX
    DROGHER_LOG_ERROR DROGHER_LOG_WARN DROGHER_LOG_INFO DROGHER_LOG_DEBUG
    DROGHER_REGION_SIZE_MAX DROGHER_REGION_SIZE_MIN DROGHER_REGIONS_MAX DROGHER_VECTORS_MAX
    DROGHER_DOORBELLS_MAX DROGHER_REGION_IO DROGHER_REGION_64BIT DROGHER_REGION_PREFETCH
    DROGHER_REGION_FLAGS
    DROGHER_STATE_ERROR DROGHER_STATE_STOP DROGHER_STATE_RUNNING DROGHER_STATE_STOP_COPY
    DROGHER_STATE_RESUMING DROGHER_STATE_RUNNING_P2P DROGHER_STATE_PRE_COPY
    DROGHER_STATE_PRE_COPY_P2P
    DROGHER_MIGRATION_STOP_COPY DROGHER_MIGRATION_P2P DROGHER_MIGRATION_PRE_COPY
    DROGHER_MIGRATION_FLAGS
    DROGHER_PARAM_TEXT DROGHER_PARAM_U64 DROGHER_PARAM_BOOL DROGHER_PARAMS_MAX
    DROGHER_PARAM_RUNTIME DROGHER_PARAM_COMPAT DROGHER_PARAM_FLAGS
    DROGHER_PLUGIN_MAGIC DROGHER_ABI_MAJOR DROGHER_ABI_MINOR DROGHER_PLUGIN_ABORTS
    DROGHER_PLUGIN_EXPERIMENTAL DROGHER_PLUGIN_FLAGS
    DROGHER_DMA_LOG_PAGE_MIN DROGHER_DMA_LOG_PAGE_MAX DROGHER_DMA_LOG_RANGES_MAX
    DROGHER_DMA_LOG_SHARED DROGHER_DMA_LOG_FLAGS
    DROGHER_PIN_ONLY DROGHER_PIN_FLAGS DROGHER_PIN_READ DROGHER_PIN_WRITE DROGHER_PIN_READ_WRITE
    DROGHER_PIN_LEN_MAX DROGHER_PINS_MAX
    DROGHER_TRACKER_NONE DROGHER_TRACKER_IOMMU DROGHER_TRACKER_DEVICE DROGHER_TRACKER_PINNED
    DROGHER_TRACKER_FAULT DROGHER_TRACKER_ALL
}

pub fn c_name(rust: &str) -> &'static str {
    let found = NAMES.iter().find(|(name, _)| *name == rust);
    found.map(|(_, c)| *c).expect("every struct has a name in C")
}

#[test]
fn the_tables_are_complete() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut text = String::new();
    for entry in std::fs::read_dir(sources).expect("src can be read") {
        text += &std::fs::read_to_string(entry.expect("an entry").path()).expect("UTF-8");
    }
    let named = |prefix: &str, end: &[char]| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix(prefix)?.split(end).next().map(str::to_owned))
            .collect()
    };
    let known: Vec<_> = structs().iter().map(|one| one.rust).collect();
    for name in named("pub struct ", &[' ', '<']) {
        assert!(
            known.contains(&name.as_str()) || name == "HostCtx",
            "struct {name} is not compared"
        );
    }
    let known: Vec<_> =
        values().iter().map(|one| one.0).chain(IDS.iter().map(|one| one.0)).collect();
    for name in named("pub const ", &[':']) {
        assert!(known.contains(&name.as_str()), "constant {name} is not compared");
    }
    assert_eq!(structs().len() + 1, NAMES.len(), "a name in C without a struct");
}

/// One line for each fact that a compiled plugin relies on.
fn lines() -> Vec<String> {
    let mut lines = Vec::new();
    for one in structs() {
        let name = c_name(one.rust);
        lines.push(format!("sizeof {name} {}", one.size));
        for (field, offset) in one.fields {
            lines.push(format!("offsetof {name} {field} {offset}"));
        }
    }
    lines.extend(values().iter().map(|(name, value)| format!("value {name} {value}")));
    lines
}

/// What may change within a major version: sizes grow, the minor version and the masks of known
/// flags too.
fn may_grow(line: &str) -> bool {
    // Elements of arrays and parts of others cannot.
    let fixed = ["str", "key_value", "gpa_range", "gpa_runs", "pinned"];
    let fixed = fixed.map(|name| format!("sizeof drogher_{name} "));
    (line.starts_with("sizeof ") && !fixed.iter().any(|fixed| line.starts_with(fixed.as_str())))
        || line.contains("DROGHER_ABI_MINOR")
        || line.split(' ').nth(1).is_some_and(|name| name.ends_with("_FLAGS"))
}

/// The layouts that plugins in the field were built with, the newest last.
const VERSIONS: [&str; 2] = ["1.0", "1.1"];

fn file(version: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/header");
    folder.join(format!("layout-{version}.txt"))
}

/// `DROGHER_BLESS_LAYOUT=1` writes that of the newest version; the others are history.
#[test]
fn every_version_still_holds() {
    let now = lines();
    if std::env::var_os("DROGHER_BLESS_LAYOUT").is_some() {
        let newest = VERSIONS[VERSIONS.len() - 1];
        std::fs::write(file(newest), now.join("\n") + "\n").expect("the layout can be written");
    }
    for version in VERSIONS {
        let then = std::fs::read_to_string(file(version)).expect("the layout of that version");
        assert!(then.lines().count() > 100, "the layout of version {version} is empty");
        holds(version, &then, &now);
    }
}

/// Everything that is in the newest version's layout too: an addition has to be recorded there.
#[test]
fn the_newest_layout_is_complete() {
    let newest = VERSIONS[VERSIONS.len() - 1];
    let then = std::fs::read_to_string(file(newest)).expect("the layout");
    for line in lines() {
        let name = |line: &str| line.rsplit_once(' ').map(|(name, _)| name.to_owned());
        let found = then.lines().any(|other| name(other) == name(&line));
        assert!(found, "{line} is in no layout: DROGHER_BLESS_LAYOUT=1, or a new version");
    }
}

fn holds(version: &str, then: &str, now: &[String]) {
    for line in then.lines() {
        if !may_grow(line) {
            assert!(now.iter().any(|other| other == line), "changed since {version}: {line}");
            continue;
        }
        let split = |line: &str| -> (String, i128) {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        };
        let (name, value) = split(line);
        let grown = now.iter().map(|other| split(other)).find(|(other, _)| *other == name);
        assert!(grown.is_some_and(|(_, now)| now >= value), "shrunk since {version}: {line}");
    }
}
