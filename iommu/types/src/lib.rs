//! Plain types shared by the crates of drogher.

pub mod mutant;
