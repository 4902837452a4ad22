//! A requester id in JSON: `bb:dd.f`, as lspci prints it.

use drogher_iommu_types::Rid;
use serde::{Deserialize, Deserializer, Serializer, de::Error};

pub(crate) fn serialize<S: Serializer>(rid: &Rid, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(rid)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Rid, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no bb:dd.f")))
}

/// Reads `bb:dd.f`.
pub(crate) fn parse(text: &str) -> Option<Rid> {
    let (bus, rest) = text.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let part = |text: &str, digits| {
        let good = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        good.then(|| u8::from_str_radix(text, 16).ok()).flatten()
    };
    Rid::new(part(bus, 2)?, part(device, 2)?, part(function, 1)?)
}
