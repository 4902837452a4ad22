//! What people call a plugin.

/// True if `asked` is the plugin's id, or the last part of it: `org.drogher.ndma` is also `ndma`.
#[must_use]
pub fn is_called(id: &str, asked: &str) -> bool {
    id == asked || id.rsplit_once('.').is_some_and(|(_, last)| last == asked)
}
