//! The real drivers of both sides between simulated machines, over a simulated link, by a
//! simulated clock: deterministic by seed, with faults at every step.
//!
//! The two sides are threads of which only one runs at a time; which one is drawn at every call
//! into the link, the clock or a machine, and time moves only when both wait. So a seed and a
//! fault give the same run each time.

mod faults;
mod guest;
mod link;
mod outcomes;
mod requests;
mod run;
mod stream;
mod world;
