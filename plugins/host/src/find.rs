//! Which file a plugin's name means.

use crate::elf;
use crate::load_error::LoadError;
use std::path::{Path, PathBuf};

/// The file names of a plugin called `name`.
fn file_names(name: &str) -> Vec<String> {
    let mut names = Vec::new();
    // Cargo builds `libmy_device.so` for a crate `my-device`.
    for name in [name.to_owned(), name.replace('-', "_")] {
        for file in [format!("libdrogher_{name}.so"), format!("lib{name}.so"), format!("{name}.so")]
        {
            if !names.contains(&file) {
                names.push(file);
            }
        }
    }
    names
}

fn list(dirs: &[PathBuf]) -> String {
    if dirs.is_empty() {
        return "no folder".to_owned();
    }
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// `name` is a path if it has a slash or ends in `.so`; else a name to be looked for in `dirs`.
pub(crate) fn find(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, LoadError> {
    if name.contains('/') || (name.ends_with(".so") && Path::new(name).exists()) {
        let path = PathBuf::from(name);
        return if path.exists() { Ok(path) } else { Err(LoadError::NotFound { path }) };
    }
    let files = match name.ends_with(".so") {
        true => vec![name.to_owned()],
        false => file_names(name),
    };
    dirs.iter()
        .flat_map(|dir| files.iter().map(move |file| dir.join(file)))
        .find(|path| path.is_file())
        .ok_or_else(|| LoadError::NoSuchPlugin {
            name: name.to_owned(),
            files: files.join(", "),
            dirs: list(dirs),
        })
}

/// The first plugin with this id, by reading the `.so` files of the folders, in the order of their
/// names; none of them is run. Files that are no plugins are passed over.
pub(crate) fn find_by_id(id: &str, dirs: &[PathBuf]) -> Result<PathBuf, LoadError> {
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        let mut files: Vec<_> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "so"))
            .collect();
        files.sort();
        let this = |path: &PathBuf| elf::inspect(path).is_ok_and(|found| found.id == id);
        if let Some(path) = files.into_iter().find(this) {
            return Ok(path);
        }
    }
    Err(LoadError::NoSuchId { id: id.to_owned(), dirs: list(dirs) })
}
