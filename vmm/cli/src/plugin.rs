//! `drogher plugin`.

use std::path::Path;

use drogher_plugin_host::Plugin;

use crate::words;

/// `drogher plugin info`: reads the file, runs none of its code.
pub fn info(file: &Path) -> anyhow::Result<u8> {
    words::print(Plugin::inspect(file)?)?;
    Ok(0)
}
