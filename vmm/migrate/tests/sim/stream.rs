//! Bytes that no source would send: the destination must say what is wrong, and nothing worse.
