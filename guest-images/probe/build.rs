//! Compiles the guest: one call of `$RUSTC`, so that it needs no second cargo, profile or target.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The guest's own code generation: static, at its link address, without unwinding or red zone
/// (an interrupt is taken on another stack, but a fault handler must not rely on that).
const FLAGS: &[&str] = &[
    "--edition=2024",
    "--crate-name=probe_guest",
    "--crate-type=bin",
    "--target=x86_64-unknown-linux-gnu",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    "-Ccode-model=small",
    "-Cno-redzone=yes",
    "-Cdebuginfo=0",
    "-Cstrip=symbols",
    "-Cforce-unwind-tables=no",
    "-Ccodegen-units=1",
    "-Copt-level=2",
];

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=src/logic");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name| env::var_os(name).unwrap_or_else(|| panic!("Cargo sets {name}"));
    let rustc = variable("RUSTC");
    let elf = PathBuf::from(variable("OUT_DIR")).join("probe.elf");
    let script = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("guest/guest.ld");

    let compile = |linker: &[&str]| {
        let mut command = Command::new(&rustc);
        command.arg("guest/main.rs").args(FLAGS).args(linker).arg("-o").arg(&elf);
        match command.output() {
            Ok(output) if output.status.success() => {
                let warnings = String::from_utf8_lossy(&output.stderr);
                warnings.lines().for_each(|line| println!("cargo::warning={line}"));
                Ok(())
            }
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
            Err(error) => Err(format!("Cannot run {}: {error}", rustc.display())),
        }
    };
    let bare = format!("-Clink-arg=-T{}", script.display());
    let through_cc = format!("-Clink-arg=-Wl,-T,{}", script.display());
    // The toolchain's own lld; a distribution's rustc may lack it, then the C compiler links.
    let lld = compile(&[
        "-Clinker=rust-lld",
        "-Clinker-flavor=ld.lld",
        "-Clink-args=-static -no-pie --build-id=none -z max-page-size=4096 -z noexecstack -z norelro",
        &bare,
    ]);
    let Err(first) = lld else { return };
    let cc = compile(&[
        "-Clinker-features=-lld",
        "-Clink-args=-nostdlib -nostartfiles -static -no-pie -Wl,--build-id=none",
        "-Clink-args=-Wl,-z,max-page-size=4096 -Wl,-z,noexecstack -Wl,-z,norelro",
        &through_cc,
    ]);
    if let Err(second) = cc {
        panic!("The probe guest does not build.\nWith rust-lld: {first}\nWith cc: {second}");
    }
}
