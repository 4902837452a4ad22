//! Every wrong file has an error that names the thing and the way out; looking at a file runs nothing.

use crate::bed::{Bed, compile, hostile, words};
use drogher_plugin_host::{DescriptorError, LoadError, Plugin, TableError};
use std::path::Path;

fn open(defines: &[&str]) -> Option<LoadError> {
    let built = hostile(defines)?;
    let error = Plugin::open(&built.file).expect_err("this plugin is wrong");
    let text = error.to_string();
    assert!(text.contains(&built.file.display().to_string()), "names no file: {text}");
    Some(error)
}

/// What a plugin is built with, and whether the error is the one it earns.
type Case<E> = (&'static str, fn(&E) -> bool);

#[test]
fn no_such_file() {
    let error = Plugin::open(Path::new("/nonexistent/libx.so")).expect_err("there is none");
    assert!(matches!(error, LoadError::NotFound { .. }), "{error}");
    assert!(error.to_string().contains("/nonexistent/libx.so does not exist: build it"));
}

#[test]
fn files_that_are_no_plugins() {
    let dir = tempfile::tempdir().expect("a folder");
    let error = Plugin::open(dir.path()).expect_err("a folder");
    assert!(matches!(error, LoadError::NotAFile { what: "a folder", .. }), "{error}");
    let error = Plugin::open(Path::new("/dev/null")).expect_err("a device");
    assert!(matches!(error, LoadError::NotAFile { .. }), "{error}");
    let file = dir.path().join("text.so");
    for content in [&b""[..], b"x", b"\x7fELF", b"#!/bin/sh\necho no\n", &[0x7f; 4096]] {
        std::fs::write(&file, content).expect("writes");
        let error = Plugin::open(&file).expect_err("no ELF");
        assert!(matches!(error, LoadError::NotElf { .. }), "{error}");
        assert!(error.to_string().contains("give the built .so file"), "{error}");
    }
    let error = Plugin::open(&std::env::current_exe().expect("a path")).expect_err("this test");
    assert!(matches!(error, LoadError::NoSymbol { .. } | LoadError::NotElf { .. }), "{error}");
}

/// A real file, cut at every length: an error each time, and never a panic.
#[test]
fn a_file_that_is_cut_anywhere() {
    let Some(built) = hostile(&[]) else { return };
    let file = std::fs::OpenOptions::new().write(true).open(&built.file).expect("opens");
    let len = file.metadata().expect("a file").len();
    for len in (0..len).rev() {
        file.set_len(len).expect("cuts");
        let error = Plugin::inspect(&built.file).expect_err("cut");
        assert!(matches!(error, LoadError::NotElf { .. }), "{len}: {error}");
    }
}

#[test]
fn another_machine() {
    let Some(built) = hostile(&[]) else { return };
    let mut bytes = std::fs::read(&built.file).expect("reads");
    bytes.splice(18..20, 183u16.to_le_bytes().into_iter().rev().rev());
    if cfg!(target_arch = "aarch64") {
        bytes.splice(18..20, 62u16.to_le_bytes());
    }
    std::fs::write(&built.file, bytes).expect("writes");
    let error = Plugin::open(&built.file).expect_err("for another machine");
    assert!(matches!(error, LoadError::WrongMachine { .. }), "{error}");
    assert!(
        error.to_string().contains("AArch64") && error.to_string().contains("x86-64"),
        "{error}"
    );
}

#[test]
fn no_symbol() {
    let Some(error) = open(&["NO_SYMBOL"]) else { return };
    assert!(matches!(error, LoadError::NoSymbol { .. }), "{error}");
    assert!(error.to_string().contains("drogher_plugin_entry"), "{error}");
    assert!(error.to_string().contains("export_plugin!"), "{error}");
}

#[test]
fn another_major_names_both() {
    let Some(error) = open(&["MAJOR=7"]) else { return };
    let text = words(&error);
    assert!(text.contains("interface 7") && text.contains("speaks 1"), "{text}");
}

#[test]
fn wrong_descriptors() {
    let cases: [Case<DescriptorError>; 8] = [
        ("BAD_MAGIC", |error| matches!(error, DescriptorError::Magic { found: 1 })),
        ("SHORT=40", |error| matches!(error, DescriptorError::TooSmall { found: 40, .. })),
        ("FLAGS=4", |error| matches!(error, DescriptorError::Reserved { what: "flags", value: 4 })),
        ("RESERVED", |error| {
            matches!(error, DescriptorError::Reserved { what: "fields", value: 5 })
        }),
        ("ID=\"\"", |error| matches!(error, DescriptorError::Text { field: "id", .. })),
        ("ID=\"A b\"", |error| matches!(error, DescriptorError::Text { field: "id", .. })),
        ("ID=\"\\377\"", |error| matches!(error, DescriptorError::Text { field: "id", .. })),
        ("MAJOR=0", |error| matches!(error, DescriptorError::Major { found: 0 })),
    ];
    for (define, expected) in cases {
        let Some(error) = open(&[define]) else { return };
        let LoadError::Descriptor { source, .. } = &error else { panic!("{define}: {error}") };
        assert!(expected(source), "{define}: {error}");
    }
}

#[test]
fn a_newer_minor_is_taken() {
    let Some(built) = hostile(&["MINOR=99"]) else { return };
    let plugin = Plugin::open(&built.file).expect("append-only");
    assert_eq!(plugin.descriptor().abi_minor, 99);
}

#[test]
fn wrong_tables() {
    let cases: [Case<TableError>; 4] = [
        ("NULL_OPS", |error| matches!(error, TableError::Missing { .. })),
        ("OPS_SHORT", |error| matches!(error, TableError::TooSmall { found: 16, .. })),
        ("OPS_FLAGS", |error| matches!(error, TableError::Field { field: "flags", .. })),
        ("NO_RESET", |error| matches!(error, TableError::NoFunction { function: "reset", .. })),
    ];
    for (define, expected) in cases {
        let Some(error) = open(&[define]) else { return };
        let LoadError::Table { source, .. } = &error else { panic!("{define}: {error}") };
        assert!(expected(source), "{define}: {error}");
    }
}

#[test]
fn init_may_refuse() {
    let Some(error) = open(&["INIT_FAILS"]) else { return };
    assert!(error.to_string().contains("status -95: no cards today"), "{error}");
}

#[test]
fn a_missing_function_is_named_by_the_linker() {
    let Some(error) = open(&["NEEDS_MORE"]) else { return };
    assert!(matches!(error, LoadError::Link { .. }), "{error}");
    let text = words(&error);
    assert!(text.contains("undefined symbol: drogher_no_such_function"), "{text}");
}

#[test]
fn looking_at_a_file_runs_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let marker = dir.path().join("ran");
    let Some(built) = hostile(&[&format!("MARKER=\"{}\"", marker.display())]) else { return };
    let descriptor = Plugin::inspect(&built.file).expect("reads");
    assert_eq!(descriptor.id, "org.drogher.test.hostile");
    assert_eq!(descriptor.version, "1");
    assert!(!marker.exists(), "the constructor ran");
    let found = Plugin::find_by_id(&descriptor.id, &[built.dir.path().to_owned()]).expect("finds");
    assert_eq!(found, built.file);
    assert!(!marker.exists(), "the constructor ran");
    let plugin = Plugin::open(&built.file).expect("loads");
    assert!(marker.exists(), "the marker proves nothing");
    assert_eq!(*plugin.descriptor(), descriptor);
}

#[test]
fn a_file_that_is_refused_is_not_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let marker = dir.path().join("ran");
    let marker_is = format!("MARKER=\"{}\"", marker.display());
    let Some(built) = hostile(&[&marker_is, "MAJOR=2"]) else { return };
    Plugin::open(&built.file).expect_err("another major");
    assert!(!marker.exists(), "the constructor ran");
}

#[test]
fn opened_once() {
    let Some(built) = hostile(&[]) else { return };
    let first = Plugin::open(&built.file).expect("loads");
    let link = built.dir.path().join("link.so");
    std::os::unix::fs::symlink(&built.file, &link).expect("links");
    let second = Plugin::open(&link).expect("loads");
    assert_eq!(first.path(), second.path());
    let bed = Bed::new();
    let one = bed.create(&first, &[]).expect("creates");
    let two = bed.create(&second, &[]).expect("creates");
    assert_eq!(one.info(), two.info());
}

#[test]
fn names_become_files() {
    let Some(built) = compile("c-counter/counter.c", "drogher_my_counter", &[]) else { return };
    let dirs = [Path::new("/nonexistent").to_owned(), built.dir.path().to_owned()];
    assert_eq!(Plugin::find("my-counter", &dirs).expect("finds"), built.file);
    assert_eq!(Plugin::find("drogher_my_counter", &dirs).expect("finds"), built.file);
    assert_eq!(Plugin::find("libdrogher_my_counter.so", &dirs).expect("finds"), built.file);
    let path = built.file.display().to_string();
    assert_eq!(Plugin::find(&path, &[]).expect("a path"), built.file);
    let error = Plugin::find("nic", &dirs).expect_err("there is none").to_string();
    assert!(error.contains("libdrogher_nic.so, libnic.so, nic.so"), "{error}");
    assert!(error.contains("/nonexistent") && error.contains("--plugin-path"), "{error}");
    let error = Plugin::find_by_id("no.such", &dirs).expect_err("there is none").to_string();
    assert!(error.contains("no.such") && error.contains("/nonexistent"), "{error}");
}

#[test]
fn a_descriptor_for_people() {
    let Some(built) = compile("c-counter/counter.c", "counter", &[]) else { return };
    let text = Plugin::inspect(&built.file).expect("reads").to_string();
    for words in ["org.drogher.example.counter", "Apache-2.0 OR MIT", "interface: 1.1", "1.0.0"] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn wrong_parameters() {
    let cases = [
        ("PARAM_NAME=\"Big\"", "a-z 0-9 _"),
        ("PARAM_ENDLESS", "a text of 18446744073709551615 bytes"),
        ("PARAM_NULL", "at NULL"),
        ("PARAM_KIND=9", "kind 9"),
        ("PARAM_DEFAULT=\"many\"", "must be a number"),
    ];
    for (define, expected) in cases {
        let Some(error) = open(&["PARAMS=1", define]) else { return };
        assert!(words(&error).contains(expected), "{define}: {}", words(&error));
    }
    let Some(error) = open(&["PARAMS=2"]) else { return };
    assert!(words(&error).contains("was there before"), "{error}");
    let Some(error) = open(&["PARAMS=257"]) else { return };
    assert!(words(&error).contains("at most 256"), "{error}");
}
