//! Parameters of an instance.

use drogher_plugin_sdk::{Failure, ParamKind, ParamSpec, Params};

const MAC: &str = "mac";
const QUEUE_SIZE: &str = "queue_size";
const LOG: &str = "log";

/// All parameters.
pub const SPECS: &[ParamSpec] = &[
    ParamSpec::new(MAC, ParamKind::Text, "52:54:00:d7:0e:01", "Its Ethernet address").compat(),
    ParamSpec::new(
        QUEUE_SIZE,
        ParamKind::Number { min: 2, max: 1024 },
        "256",
        "Most descriptors of a queue, a power of two",
    )
    .compat(),
    ParamSpec::new(LOG, ParamKind::Text, "off", "Its own log of its writes: off or on").compat(),
];

/// What the parameters ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Most descriptors of a queue.
    pub queue_size: u16,
    /// It logs its writes.
    pub log: bool,
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// A value that cannot be.
    pub fn new(params: &Params) -> Result<Self, Failure> {
        let text = params.text(MAC)?;
        let mac = mac(text).ok_or_else(|| {
            let what = "not six bytes of hex like 52:54:00:12:34:56, of one station";
            Failure::invalid(format!("Parameter {MAC}={text}: {what}"))
        })?;
        let size = params.number(QUEUE_SIZE)?;
        let queue_size = u16::try_from(size).ok().filter(|size| size.is_power_of_two());
        let queue_size = queue_size.ok_or_else(|| {
            Failure::invalid(format!("Parameter {QUEUE_SIZE}={size}: not a power of two"))
        })?;
        let log = match params.text(LOG)? {
            "off" => false,
            "on" => true,
            other => {
                return Err(Failure::invalid(format!("Parameter {LOG}={other}: not off or on")));
            }
        };
        Ok(Self { mac, queue_size, log })
    }
}

/// Not a group address, and not all zero.
fn mac(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let hex = part.len() == 2 && part.bytes().all(|sign| sign.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let mac: [u8; 6] = bytes?.try_into().ok()?;
    (mac.first()? & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
