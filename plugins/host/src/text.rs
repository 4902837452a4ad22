//! Text from a plugin: bounded, valid, without control characters.

use drogher_plugin_abi as abi;

/// The longest text taken in one piece.
pub(crate) const MAX: usize = abi::DROGHER_TEXT_MAX as usize;

/// Makes text for people out of any bytes: wrong UTF-8 and control characters are replaced, what is
/// too long is cut.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    let cut = bytes.get(..MAX).unwrap_or(bytes);
    String::from_utf8_lossy(cut)
        .chars()
        .map(|c| if c.is_control() && c != '\t' { '\u{FFFD}' } else { c })
        .collect()
}

/// Takes text that must be right: UTF-8, bounded, no control characters.
pub(crate) fn strict(bytes: &[u8]) -> Result<String, &'static str> {
    if bytes.len() > MAX {
        return Err("is too long");
    }
    let text = core::str::from_utf8(bytes).map_err(|_| "is no UTF-8")?;
    if text.chars().any(char::is_control) {
        return Err("has control characters");
    }
    Ok(text.to_owned())
}
