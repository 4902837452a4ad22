//! Writes the probe's ELF to a file, for loaders other than ours:
//! `cargo run -p drogher-probe --example write_elf -- probe.elf`.

use std::env;
use std::fs;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(path) = env::args_os().nth(1) else {
        eprintln!("Usage: write_elf FILE");
        return ExitCode::FAILURE;
    };
    match fs::write(&path, drogher_probe::ELF) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Cannot write {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}
