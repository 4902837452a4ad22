//! Models: the sources of this crate under a scheduler that chooses every interleaving.
//!
//! The modules are compiled here a second time, with a `sync` whose atomics, locks and waits are
//! shuttle's. Shuttle treats every atomic as sequentially consistent, so what the models prove is
//! the order of the program's steps; that the orderings named in the code are strong enough for
//! it is argued beside them.
#![forbid(unsafe_code)]
#![allow(dead_code, reason = "a model uses part of the sources it compiles")]

#[path = "../../src/access.rs"]
mod access;
#[path = "../../src/arena.rs"]
mod arena;
#[path = "../../src/collect.rs"]
mod collect;
#[path = "../../src/dirty.rs"]
mod dirty;
#[path = "../../src/domain.rs"]
mod domain;
#[path = "../../src/drain.rs"]
mod drain;
#[path = "../../src/error.rs"]
mod error;
#[path = "../../src/fault.rs"]
mod fault;
#[path = "../../src/iotlb.rs"]
mod iotlb;
#[path = "../../src/log.rs"]
mod log;
#[path = "../../src/memory.rs"]
mod memory;
#[path = "../../src/range.rs"]
mod range;
#[path = "../../src/range_lock.rs"]
mod range_lock;
#[path = "../../src/requester.rs"]
mod requester;
#[path = "../../src/reshape.rs"]
mod reshape;
#[path = "../../src/retire.rs"]
mod retire;
#[path = "../../src/slot.rs"]
mod slot;
#[path = "../../src/space.rs"]
mod space;
#[path = "../../src/spec/mod.rs"]
mod spec;
#[path = "../../src/split.rs"]
mod split;
#[path = "../../src/stage1.rs"]
mod stage1;
#[path = "../../src/state.rs"]
mod state;
#[path = "../../src/table.rs"]
mod table;
#[path = "../../src/tally.rs"]
mod tally;
#[path = "../../src/tracking.rs"]
mod tracking;
#[path = "../../src/tree.rs"]
mod tree;
#[path = "../../src/unmap.rs"]
mod unmap;
#[path = "../../src/walk.rs"]
mod walk;

mod harvest;
mod splitting;
mod sync;
mod unmapping;
mod world;
