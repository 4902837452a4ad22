//! Deliberate faults, for proving that the tests which guard data can fail.
//!
//! A mutant is a named place where a step that guards data may be left out. Without the cargo
//! feature `mutants` the check is a constant `false` and costs nothing; with it, the environment
//! variable `DROGHER_MUTANT` names the one mutant that is alive in this process.

/// True if the mutant of this name is alive in this process.
///
/// May be called from any thread. The environment is read once, at the first call.
#[cfg(feature = "mutants")]
#[must_use]
pub fn active(name: &str) -> bool {
    static ALIVE: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ALIVE.get_or_init(|| std::env::var("DROGHER_MUTANT").ok()).as_deref() == Some(name)
}

/// Always false: this build has no mutants.
#[cfg(not(feature = "mutants"))]
#[must_use]
pub const fn active(_name: &str) -> bool {
    false
}

/// True if the mutant of this name is alive, see [`mutant::active`](crate::mutant::active).
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::mutant::active($name)
    };
}
