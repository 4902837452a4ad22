//! `drogher.net-port/1`, the host's side. The invariant is that of `host_table.rs`.
#![expect(unsafe_code, reason = "C functions with raw pointers from plugins")]

use crate::context::{Context, Received, Wires};
use crate::host_table::{bytes, context};
use core::ffi::c_void;
use drogher_plugin_abi as abi;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub(crate) static TABLE: abi::NetPortHost = abi::NetPortHost {
    size: size_of::<abi::NetPortHost>() as u32,
    flags: 0,
    send: Some(send),
    receive: Some(receive),
    wait: Some(wait),
    wake: Some(wake),
};

/// An instance, and its wires if it has any.
type Alive<'a> = (&'a Context, Option<Arc<dyn Wires>>);

/// The instance, if it lives.
///
/// # Safety
/// As [`context`].
unsafe fn alive<'a>(ctx: *mut abi::HostCtx) -> Result<Alive<'a>, i32> {
    // SAFETY: the caller's promise.
    let context = unsafe { context(ctx) }.ok_or(abi::DROGHER_ERR_INVAL)?;
    if context.is_shut() {
        return Err(abi::DROGHER_ERR_SHUTDOWN);
    }
    Ok((context, context.wires()))
}

fn port(context: &Context, port: u32) -> Result<(), i32> {
    let there = port < context.ports.load(Ordering::SeqCst);
    if there { Ok(()) } else { Err(abi::DROGHER_ERR_NOENT) }
}

/// Whether all of these ports are there.
fn all_ports(context: &Context, ports: u64) -> Result<(), i32> {
    let count = context.ports.load(Ordering::SeqCst);
    let others = ports.checked_shr(count).unwrap_or_default();
    if others == 0 { Ok(()) } else { Err(abi::DROGHER_ERR_NOENT) }
}

fn status(result: Result<i32, i32>) -> i32 {
    result.unwrap_or_else(|status| status)
}

unsafe extern "C" fn send(
    ctx: *mut abi::HostCtx,
    number: u32,
    data: *const c_void,
    len: u64,
) -> i32 {
    let go = || {
        // SAFETY: the plugin's promises.
        let (context, wires) = unsafe { alive(ctx) }?;
        port(context, number)?;
        if !(abi::DROGHER_NET_FRAME_MIN..=abi::DROGHER_NET_FRAME_MAX).contains(&len) {
            return Err(abi::DROGHER_ERR_INVAL);
        }
        // SAFETY: the plugin's promises: `data` is readable for `len` bytes.
        let frame = unsafe { bytes(data, len) }.ok_or(abi::DROGHER_ERR_INVAL)?;
        let sent = context.with_frames(|| wires.map_or((), |wires| wires.send(number, frame)));
        sent.map(|()| abi::DROGHER_OK).ok_or(abi::DROGHER_ERR_PERM)
    };
    status(go())
}

unsafe extern "C" fn receive(
    ctx: *mut abi::HostCtx,
    number: u32,
    data: *mut c_void,
    cap: u64,
    len: *mut u64,
) -> i32 {
    if len.is_null() {
        return abi::DROGHER_ERR_INVAL;
    }
    let set_len = |value: usize| {
        // SAFETY: not NULL, and the plugin's promise.
        unsafe { len.write_unaligned(value as u64) }
    };
    set_len(0);
    let go = || {
        // SAFETY: the plugin's promises.
        let (context, wires) = unsafe { alive(ctx) }?;
        port(context, number)?;
        let cap = usize::try_from(cap).ok().filter(|&cap| isize::try_from(cap).is_ok());
        let cap = cap.filter(|&cap| cap == 0 || !data.is_null()).ok_or(abi::DROGHER_ERR_INVAL)?;
        let buffer: &mut [u8] = if cap == 0 {
            &mut []
        } else {
            // SAFETY: not NULL, at most isize::MAX, and the plugin's promise: initialised and writable.
            unsafe { core::slice::from_raw_parts_mut(data.cast(), cap) }
        };
        let taken = context
            .with_frames(|| wires.map_or(Received::Nothing, |wires| wires.receive(number, buffer)));
        match taken.ok_or(abi::DROGHER_ERR_PERM)? {
            Received::Frame(done) => {
                set_len(done);
                Ok(abi::DROGHER_OK)
            }
            Received::TooLong(needed) => {
                set_len(needed);
                Err(abi::DROGHER_ERR_RANGE)
            }
            Received::Nothing => Err(abi::DROGHER_ERR_NOMSG),
        }
    };
    status(go())
}

unsafe extern "C" fn wait(
    ctx: *mut abi::HostCtx,
    ports: u64,
    timeout_ms: u32,
    ready: *mut u64,
) -> i32 {
    if ready.is_null() {
        return abi::DROGHER_ERR_INVAL;
    }
    // SAFETY: not NULL, and the plugin's promise.
    unsafe { ready.write_unaligned(0) };
    // SAFETY: the plugin's promises.
    let (context, wires) = match unsafe { alive(ctx) } {
        Ok(found) => found,
        Err(status) => return status,
    };
    if let Err(status) = all_ports(context, ports) {
        return status;
    }
    let time_out = Duration::from_millis(timeout_ms.min(abi::DROGHER_NET_WAIT_MAX_MS).into());
    let Some(wires) = wires else {
        // No wire, no wake: not too long.
        std::thread::sleep(time_out.min(Duration::from_millis(10)));
        return abi::DROGHER_OK;
    };
    let found = wires.wait(ports, time_out, &|| context.frames_pass());
    if context.is_shut() {
        return abi::DROGHER_ERR_SHUTDOWN;
    }
    // SAFETY: not NULL, and the plugin's promise.
    unsafe { ready.write_unaligned(found) };
    abi::DROGHER_OK
}

unsafe extern "C" fn wake(ctx: *mut abi::HostCtx) -> i32 {
    // SAFETY: the plugin's promises.
    match unsafe { alive(ctx) } {
        Ok((_, wires)) => {
            if let Some(wires) = wires {
                wires.wake();
            }
            abi::DROGHER_OK
        }
        Err(status) => status,
    }
}

#[cfg(test)]
#[path = "host_net_test.rs"]
mod tests;
