//! `drogher plugin`.

use std::path::Path;

use drogher_plugin_host::Plugin;

/// `drogher plugin info`: reads the file, runs none of its code.
pub fn info(file: &Path) -> anyhow::Result<u8> {
    print!("{}", Plugin::inspect(file)?);
    Ok(0)
}
