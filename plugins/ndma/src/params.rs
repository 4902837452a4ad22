//! Parameters of an instance.

use drogher_plugin_sdk::{Failure, ParamKind, ParamSpec, Params};

use crate::scratch::PAGE;

/// KiB in a page of scratch memory.
const PAGE_KIB: u64 = (PAGE >> 10) as u64;

/// Name of the only parameter.
pub const SCRATCH_KIB: &str = "scratch_kib";

/// All parameters. Unknown names and values out of bounds are refused before `create`.
pub const SPECS: &[ParamSpec] = &[ParamSpec::new(
    SCRATCH_KIB,
    ParamKind::Number { min: PAGE_KIB, max: 65536 },
    "64",
    "Memory on the device in KiB, a multiple of 4",
)
.compat()];

/// Pages of scratch memory that the parameters ask for.
///
/// # Errors
/// A size that is no multiple of a page.
pub fn scratch_pages(params: &Params) -> Result<usize, Failure> {
    let kib = params.number(SCRATCH_KIB)?;
    if !kib.is_multiple_of(PAGE_KIB) {
        return Err(Failure::invalid(format!(
            "Parameter {SCRATCH_KIB}={kib}: not a multiple of {PAGE_KIB}"
        )));
    }
    usize::try_from(kib / PAGE_KIB)
        .map_err(|_| Failure::invalid(format!("Parameter {SCRATCH_KIB}={kib}: too large")))
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
