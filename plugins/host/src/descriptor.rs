//! The identity of a plugin, from its bytes.

use crate::load_error::DescriptorError;
use core::mem::offset_of;
use drogher_plugin_abi as abi;
use std::fmt;

/// What a plugin says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Names it for ever, in the migration stream too.
    pub id: String,
    /// For people.
    pub name: String,
    /// For people.
    pub version: String,
    /// Who made it.
    pub vendor: String,
    /// SPDX expression.
    pub licence: String,
    /// Interface that it was built for.
    pub abi_major: u32,
    /// Addition level of that.
    pub abi_minor: u32,
    /// A panic of it ends the process.
    pub aborts: bool,
    /// It may change its ids, registers and state format without notice.
    pub experimental: bool,
}

/// Length of a version 1 descriptor in bytes.
pub(crate) const LEN: usize = size_of::<abi::Descriptor>();
/// What must be there to say what is wrong.
pub(crate) const HEAD: usize = offset_of!(abi::Descriptor, id);

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn at<const N: usize>(&self, offset: usize) -> Result<[u8; N], DescriptorError> {
        self.0
            .get(offset..offset + N)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(DescriptorError::TooSmall { found: self.0.len() as u64, need: LEN as u64 })
    }

    fn u32(&self, offset: usize) -> Result<u32, DescriptorError> {
        Ok(u32::from_ne_bytes(self.at(offset)?))
    }

    fn u64(&self, offset: usize) -> Result<u64, DescriptorError> {
        Ok(u64::from_ne_bytes(self.at(offset)?))
    }

    fn text<const N: usize>(
        &self,
        field: &'static str,
        offset: usize,
    ) -> Result<String, DescriptorError> {
        let array: [u8; N] = self.at(offset)?;
        let wrong = |problem| DescriptorError::Text { field, problem };
        let end = array.iter().position(|byte| *byte == 0).ok_or_else(|| wrong("is not ended"))?;
        let text = crate::text::strict(array.get(..end).unwrap_or_default()).map_err(wrong)?;
        if text.is_empty() { Err(wrong("is empty")) } else { Ok(text) }
    }
}

impl Descriptor {
    /// Checks what comes before the texts; `bytes` may end there.
    pub(crate) fn check_head(bytes: &[u8]) -> Result<(), DescriptorError> {
        let all = Bytes(bytes);
        let magic = all.u64(offset_of!(abi::Descriptor, magic))?;
        if magic != abi::DROGHER_PLUGIN_MAGIC {
            return Err(DescriptorError::Magic { found: magic });
        }
        let found = all.u32(offset_of!(abi::Descriptor, abi_major))?;
        if found != abi::DROGHER_ABI_MAJOR {
            return Err(DescriptorError::Major { found });
        }
        let size = all.u32(offset_of!(abi::Descriptor, struct_size))?;
        if (size as usize) < LEN {
            return Err(DescriptorError::TooSmall { found: u64::from(size), need: LEN as u64 });
        }
        Ok(())
    }

    /// Reads and checks a descriptor; `bytes` begin with it and may go on behind it.
    ///
    /// # Errors
    /// What is wrong with it, the most telling first: magic, major, size, reserved bits, texts.
    pub fn parse(bytes: &[u8]) -> Result<Descriptor, DescriptorError> {
        Self::check_head(bytes)?;
        let all = Bytes(bytes);
        let abi_major = all.u32(offset_of!(abi::Descriptor, abi_major))?;
        let flags = all.u32(offset_of!(abi::Descriptor, flags))?;
        let unknown = flags & !abi::DROGHER_PLUGIN_FLAGS;
        if unknown != 0 {
            return Err(DescriptorError::Reserved { what: "flags", value: u64::from(unknown) });
        }
        let reserved = offset_of!(abi::Descriptor, reserved);
        for n in 0..4 {
            let value = all.u64(reserved + n * size_of::<u64>())?;
            if value != 0 {
                return Err(DescriptorError::Reserved { what: "fields", value });
            }
        }
        let id = all.text::<64>("id", offset_of!(abi::Descriptor, id))?;
        let good =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if !id.chars().all(good) {
            let problem = "has other characters than a-z 0-9 . - _";
            return Err(DescriptorError::Text { field: "id", problem });
        }
        Ok(Descriptor {
            id,
            name: all.text::<64>("name", offset_of!(abi::Descriptor, name))?,
            version: all.text::<32>("version", offset_of!(abi::Descriptor, version))?,
            vendor: all.text::<64>("vendor", offset_of!(abi::Descriptor, vendor))?,
            licence: all.text::<64>("licence", offset_of!(abi::Descriptor, licence))?,
            abi_major,
            abi_minor: all.u32(offset_of!(abi::Descriptor, abi_minor))?,
            aborts: flags & abi::DROGHER_PLUGIN_ABORTS != 0,
            experimental: flags & abi::DROGHER_PLUGIN_EXPERIMENTAL != 0,
        })
    }
}

impl fmt::Display for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "id:        {}", self.id)?;
        writeln!(f, "name:      {}", self.name)?;
        writeln!(f, "version:   {}", self.version)?;
        writeln!(f, "vendor:    {}", self.vendor)?;
        writeln!(f, "licence:   {}", self.licence)?;
        writeln!(f, "interface: {}.{}", self.abi_major, self.abi_minor)?;
        let on_panic = if self.aborts { "ends the process" } else { "moves the device to ERROR" };
        write!(f, "a panic:   {on_panic}")?;
        if self.experimental {
            write!(f, "\nexperimental: ids, registers and state format may change")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "descriptor_test.rs"]
pub(crate) mod tests;
