//! The simulated link: a bounded pipe each way.

use std::io::IoSlice;
use std::time::Duration;

use drogher_migrate::{Link, LinkError, Side};

use super::world::{World, index};

/// Bytes that a pipe takes before its reader must read.
const CAPACITY: usize = 128 << 10;

/// One side's end.
pub struct SimLink {
    pub world: World,
    pub side: Side,
}

impl Link for SimLink {
    fn send(&mut self, parts: &[IoSlice<'_>], timeout: Duration) -> Result<usize, LinkError> {
        self.world.step(self.side, false);
        let peer = 1 - index(self.side);
        let mut state = self.world.lock();
        let until = state.now() + timeout;
        loop {
            if !state.up || state.closed[peer] {
                return Err(LinkError::Closed);
            }
            let room = CAPACITY - state.wire[peer].len();
            if room > 0 {
                let mut sent = 0;
                for part in parts {
                    let take = part.len().min(room - sent);
                    state.wire[peer].extend(&part[..take]);
                    if self.side == Side::Source {
                        state.tape.extend_from_slice(&part[..take]);
                    }
                    sent += take;
                }
                let per_byte_ns = if state.slow_link { 100.0 } else { 0.5 };
                state.advance(Duration::from_nanos((sent as f64 * per_byte_ns) as u64));
                state.changed();
                return Ok(sent);
            }
            if state.now() >= until {
                return Err(LinkError::TimedOut(timeout));
            }
            state = self.world.wait(state, self.side, until);
        }
    }

    fn receive(&mut self, buf: &mut [u8], timeout: Duration) -> Result<usize, LinkError> {
        self.world.step(self.side, false);
        let me = index(self.side);
        let mut state = self.world.lock();
        let until = state.now() + timeout;
        loop {
            let count = state.wire[me].len().min(buf.len());
            if count > 0 {
                for (to, from) in buf.iter_mut().zip(state.wire[me].drain(..count)) {
                    *to = from;
                }
                state.changed();
                return Ok(count);
            }
            if !state.up || state.closed[1 - me] {
                return Err(LinkError::Closed);
            }
            if state.now() >= until {
                return Err(LinkError::TimedOut(timeout));
            }
            state = self.world.wait(state, self.side, until);
        }
    }
}
