//! Generates the header and compares it with the checked-in one.

use cbindgen::{Builder, Config, DocumentationStyle, ExportConfig, Language, Style};
use drogher_plugin_abi as abi;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

/// The files of the crate, in the order of the header.
const FILES: [&str; 12] = [
    "status",
    "text",
    "host",
    "dma",
    "dma_log",
    "dma_pin",
    "device",
    "migration",
    "ndma",
    "params",
    "prefers",
    "descriptor",
];

/// Rust's name and C's.
pub const NAMES: [(&str, &str); 26] = [
    ("Str", "drogher_str"),
    ("HostCtx", "drogher_host_ctx"),
    ("HostTable", "drogher_host"),
    ("Dma", "drogher_dma"),
    ("KeyValue", "drogher_key_value"),
    ("CreateInfo", "drogher_create_info"),
    ("DeviceInfo", "drogher_device_info"),
    ("RegionInfo", "drogher_region_info"),
    ("DoorbellInfo", "drogher_doorbell_info"),
    ("DeviceOps", "drogher_device_ops"),
    ("PrecopyInfo", "drogher_precopy_info"),
    ("Migration", "drogher_migration"),
    ("Ndma", "drogher_ndma"),
    ("ParamInfo", "drogher_param_info"),
    ("Params", "drogher_params"),
    ("GpaRange", "drogher_gpa_range"),
    ("GpaRuns", "drogher_gpa_runs"),
    ("LogStart", "drogher_log_start"),
    ("DmaLog", "drogher_dma_log"),
    ("DmaLogHost", "drogher_dma_log_host"),
    ("Pinned", "drogher_pinned"),
    ("DmaPin", "drogher_dma_pin"),
    ("DmaPinHost", "drogher_dma_pin_host"),
    ("Preference", "drogher_preference"),
    ("Prefers", "drogher_prefers"),
    ("Descriptor", "drogher_plugin_descriptor"),
];

const PREFACE: &str = include_str!("preface.h");
const TRAILER: &str = include_str!("trailer.h");

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("include")
}

/// The ids of the extensions: cbindgen knows no text constants.
pub const IDS: [(&str, &str, &CStr); 7] = [
    ("DROGHER_EXT_DMA", "Offered by the host: drogher_dma.", abi::DROGHER_EXT_DMA),
    (
        "DROGHER_EXT_MIGRATION",
        "Offered by a plugin: drogher_migration.",
        abi::DROGHER_EXT_MIGRATION,
    ),
    ("DROGHER_EXT_NDMA", "Offered by a plugin: drogher_ndma.", abi::DROGHER_EXT_NDMA),
    ("DROGHER_EXT_PARAMS", "Offered by a plugin: drogher_params.", abi::DROGHER_EXT_PARAMS),
    (
        "DROGHER_EXT_DMA_LOG",
        "Offered by a plugin: drogher_dma_log; by the host: drogher_dma_log_host.",
        abi::DROGHER_EXT_DMA_LOG,
    ),
    (
        "DROGHER_EXT_DMA_PIN",
        "Offered by a plugin: drogher_dma_pin; by the host: drogher_dma_pin_host.",
        abi::DROGHER_EXT_DMA_PIN,
    ),
    ("DROGHER_EXT_PREFERS", "Offered by a plugin: drogher_prefers.", abi::DROGHER_EXT_PREFERS),
];

fn ids() -> String {
    IDS.iter()
        .map(|(name, doc, id)| {
            let id = id.to_str().expect("ids are ASCII");
            format!("\n// {doc}\n#define {name} \"{id}\"\n")
        })
        .collect()
}

fn generate() -> String {
    let rename = NAMES.iter().map(|(rust, c)| ((*rust).to_owned(), (*c).to_owned())).collect();
    let config = Config {
        language: Language::C,
        cpp_compat: true,
        style: Style::Both,
        documentation_style: DocumentationStyle::C99,
        documentation_length: cbindgen::DocumentationLength::Full,
        no_includes: true,
        after_includes: Some(format!("{}{}", PREFACE, ids())),
        trailer: Some(TRAILER.trim_end().to_owned()),
        line_length: 100,
        export: ExportConfig {
            rename,
            // Only ever used through a pointer: declared in the preface.
            exclude: vec!["HostCtx".to_owned()],
            include: NAMES.iter().map(|(rust, _)| (*rust).to_owned()).collect(),
            ..ExportConfig::default()
        },
        ..Config::default()
    };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut builder = Builder::new().with_config(config);
    for file in FILES {
        builder = builder.with_src(sources.join(file).with_extension("rs"));
    }
    let mut text = Vec::new();
    builder.generate().expect("cbindgen reads the crate").write(&mut text);
    String::from_utf8(text).expect("the header is UTF-8")
}

#[test]
fn the_header_is_what_the_crate_says() {
    let path = folder().join("drogher_plugin.h");
    let text = generate();
    if std::env::var_os("DROGHER_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the header can be written");
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "include/drogher_plugin.h differs from the crate: run \
         DROGHER_BLESS=1 cargo test -p drogher-plugin-abi"
    );
}

#[test]
fn every_source_file_is_in_the_header() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in std::fs::read_dir(sources).expect("src can be read") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        assert!(stem == "lib" || FILES.contains(&stem.as_str()), "{stem}.rs is in no header");
    }
}

/// A function that a plugin's author may call, or must write, says on which threads, and if the host
/// waits for it, how long.
#[test]
fn every_function_says_its_threads_and_deadline() {
    let text = std::fs::read_to_string(folder().join("drogher_plugin.h")).expect("the header");
    let (mut table, mut comment, mut functions) = ("", String::new(), 0);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("typedef struct ") {
            table = name;
        } else if let Some(words) = line.strip_prefix("//") {
            comment += words;
            continue;
        } else if line.contains("(*") {
            functions += 1;
            let hosts =
                ["drogher_host", "drogher_dma", "drogher_dma_log_host", "drogher_dma_pin_host"];
            let hosts = hosts.iter().any(|name| table.split(' ').next() == Some(name));
            let good = match hosts {
                true => comment.contains("[any]"),
                false => comment.contains("[serialised") && comment.contains("[deadline: "),
            };
            assert!(good, "{table} {line}: {comment}");
        }
        comment.clear();
    }
    assert!(functions > 50, "only {functions} functions were found");
}
