//! The header in C11 and C++17: it compiles without warnings, and sizes, offsets and values are
//! Rust's.

use crate::generate::{IDS, folder};
use crate::layout::{c_name, structs, values};
use std::fmt::Write;
use std::process::Command;

/// Static assertions about everything in the tables.
fn assertions() -> String {
    let mut text = String::from(
        "#include \"drogher_plugin.h\"\n#include <assert.h>\n#include <stddef.h>\n\
         #include <string.h>\n",
    );
    for one in structs() {
        let (name, size, align) = (c_name(one.rust), one.size, one.align);
        writeln!(text, "static_assert(sizeof({name}) == {size}, \"size of {name}\");")
            .expect("writes to text");
        writeln!(text, "static_assert(ALIGN_OF({name}) == {align}, \"alignment of {name}\");")
            .expect("writes to text");
        for (field, offset) in one.fields {
            writeln!(
                text,
                "static_assert(offsetof({name}, {field}) == {offset}, \"{name}.{field}\");"
            )
            .expect("writes to text");
        }
    }
    for (name, value) in values() {
        writeln!(text, "static_assert({name} == {value}, \"{name}\");").expect("writes to text");
    }
    for (name, _, id) in IDS {
        let len = id.to_bytes_with_nul().len();
        writeln!(text, "static_assert(sizeof({name}) == {len}, \"{name}\");")
            .expect("writes to text");
    }
    text
}

/// Compiles; `None` if there is no such compiler.
fn compile(compiler: &str, arguments: &[&str], suffix: &str, source: &str) -> Option<String> {
    let dir = tempfile::tempdir().expect("a folder for a moment");
    let file = dir.path().join("assertions").with_extension(suffix);
    std::fs::write(&file, source).expect("the source can be written");
    let output = Command::new(compiler)
        .args(arguments)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-c", "-I"])
        .arg(folder())
        .arg("-o")
        .arg(dir.path().join("out.o"))
        .arg(&file)
        .output();
    match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: no compiler {compiler}");
            None
        }
        Err(error) => panic!("{compiler} cannot be run: {error}"),
        Ok(output) if output.status.success() => Some(String::new()),
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

const C: (&str, &[&str], &str) = ("cc", &["-std=c11", "-DALIGN_OF=_Alignof"], "c");
const CPP: (&str, &[&str], &str) = ("c++", &["-std=c++17", "-DALIGN_OF=alignof"], "cpp");

#[test]
fn c11_has_the_same_layout() {
    if let Some(errors) = compile(C.0, C.1, C.2, &assertions()) {
        assert_eq!(errors, "");
    }
}

#[test]
fn cpp17_has_the_same_layout() {
    if let Some(errors) = compile(CPP.0, CPP.1, CPP.2, &assertions()) {
        assert_eq!(errors, "");
    }
}

#[test]
fn a_wrong_offset_would_be_noticed() {
    let right = "offsetof(drogher_device_info, class_code) == 16";
    let source = assertions();
    assert!(source.contains(right));
    let source = source.replace(right, "offsetof(drogher_device_info, class_code) == 20");
    for (compiler, arguments, suffix) in [C, CPP] {
        if let Some(errors) = compile(compiler, arguments, suffix, &source) {
            assert!(errors.contains("drogher_device_info.class_code"), "{errors}");
        }
    }
}

#[test]
fn the_header_stands_alone() {
    for (compiler, arguments, suffix) in [C, CPP] {
        let source = "#include \"drogher_plugin.h\"\n#include \"drogher_plugin.h\"\nint x;\n";
        if let Some(errors) = compile(compiler, arguments, suffix, source) {
            assert_eq!(errors, "", "{compiler}");
        }
    }
}
