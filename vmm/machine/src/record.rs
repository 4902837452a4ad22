//! The saved form of CPU and interrupt controller state: records of KVM's own structures.
//!
//! ```text
//! header: u32 magic "DGCS", u16 version, u16 vCPUs
//! record: u16 tag, u16 vCPU (0 for the VM's own), u32 length, bytes
//! ```
//! Little endian. Each record occurs exactly once; a length other than the structure's, an unknown
//! tag or a missing record is an error that names it. Nothing is taken over before all of it has
//! been checked for form; whether the values make sense, KVM says.

use zerocopy::FromBytes;

const MAGIC: u32 = u32::from_le_bytes(*b"DGCS");
/// Raised when the meaning of a record changes or one is added that a reader must know.
pub const VERSION: u16 = 1;
const HEADER: usize = 8;
const RECORD: usize = 8;

/// Why state could not be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It does not begin as it must.
    #[error("Not the CPU state of a machine: it begins with {0:#010x}")]
    Magic(u32),
    /// Made by a version that this one does not know.
    #[error("CPU state of version {0}, this version knows {VERSION}")]
    Version(u16),
    /// It ends inside a record.
    #[error("CPU state of {0} bytes ends inside a record")]
    Truncated(usize),
    /// It is of a machine with another number of vCPUs.
    #[error("CPU state of {found} vCPUs for a machine of {expected}")]
    Cpus {
        /// vCPUs of this machine.
        expected: u16,
        /// vCPUs in the state.
        found: u16,
    },
    /// A tag that this version does not know.
    #[error("CPU state with an unknown record {0:#x}")]
    UnknownTag(u16),
    /// A record of a vCPU that there is not, or the second of its kind.
    #[error("CPU state with a superfluous record {tag:?} of vCPU {vcpu}")]
    Superfluous {
        /// Its tag.
        tag: Tag,
        /// Its vCPU.
        vcpu: u16,
    },
    /// A record is not there.
    #[error("CPU state without {tag:?} of vCPU {vcpu}")]
    Missing {
        /// Its tag.
        tag: Tag,
        /// Its vCPU.
        vcpu: u16,
    },
    /// A record has not the size of its structure.
    #[error("CPU state whose {tag:?} of vCPU {vcpu} has {found} bytes, not {expected}")]
    Size {
        /// Its tag.
        tag: Tag,
        /// Its vCPU.
        vcpu: u16,
        /// Bytes of the structure.
        expected: usize,
        /// Bytes of the record.
        found: usize,
    },
    /// KVM refused a step.
    #[error("KVM refused to {what}")]
    Kvm {
        /// The step.
        what: &'static str,
        /// KVM's answer.
        #[source]
        source: std::io::Error,
    },
    /// MSRs cannot be moved.
    #[error(transparent)]
    Msr(#[from] crate::vcpu::msrs::MsrError),
    /// A field has a value that no machine of this version saves.
    #[error(
        "CPU state whose {tag:?} of vCPU {vcpu} has {found:#x} for {what}, expected {expected}"
    )]
    Value {
        /// The record's tag.
        tag: Tag,
        /// The record's vCPU.
        vcpu: u16,
        /// The field.
        what: &'static str,
        /// What it holds.
        found: u64,
        /// What it may hold.
        expected: &'static str,
    },
    /// The guest runs guests of its own.
    #[error(
        "vCPU {vcpu} has virtualisation of its own switched on (CR4.VMXE or EFER.SVME), which \
         cannot be moved: end the guest's own guests first"
    )]
    Nested {
        /// Its number.
        vcpu: u16,
    },
    /// The guest's TSC has another frequency.
    #[error(
        "The guest's TSC runs at {saved} kHz, this host's at {here} kHz: use a host of the same \
         frequency"
    )]
    TscFrequency {
        /// The guest's.
        saved: u32,
        /// This host's.
        here: u32,
    },
    /// A vCPU is not parked.
    #[error(transparent)]
    Vcpu(#[from] crate::vcpu::VcpuError),
    /// A platform device refused its state.
    #[error("The state of the {device} is not valid: {reason}")]
    Device {
        /// Which.
        device: &'static str,
        /// Why.
        reason: String,
    },
}

impl StateError {
    pub(crate) fn errno(what: &'static str, e: kvm_ioctls::Error) -> Self {
        Self::Kvm { what, source: std::io::Error::from_raw_os_error(e.errno()) }
    }

    pub(crate) fn kvm(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Kvm { what, source }
    }
}

macro_rules! tags {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// What a record holds.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Tag { $($(#[$doc])* $name = $value,)* }

        impl Tag {
            fn from_number(number: u16) -> Option<Self> {
                match number { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

tags! {
    /// `kvm_irqchip` of the first PIC.
    PicMaster = 1,
    /// `kvm_irqchip` of the second PIC.
    PicSlave = 2,
    /// `kvm_irqchip` of the IOAPIC.
    IoApic = 3,
    /// `kvm_pit_state2`.
    Pit = 4,
    /// [`ClockState`](crate::clock::ClockState).
    Clock = 5,
    /// The serial console's registers.
    Serial = 6,
    /// The CMOS index register.
    Cmos = 7,
    /// `kvm_mp_state`.
    MpState = 0x10,
    /// `kvm_regs`.
    Regs = 0x11,
    /// `kvm_sregs`, by a KVM without KVM_CAP_SREGS2.
    Sregs = 0x12,
    /// `kvm_sregs2`.
    Sregs2 = 0x13,
    /// Extended state, as KVM_GET_XSAVE or KVM_GET_XSAVE2 gives it.
    Xsave = 0x14,
    /// `kvm_xcrs`.
    Xcrs = 0x15,
    /// `kvm_debugregs`.
    DebugRegs = 0x16,
    /// `kvm_lapic_state`.
    Lapic = 0x17,
    /// `kvm_msr_entry`, any number of them.
    Msrs = 0x18,
    /// [`TscState`](crate::vcpu::tsc::TscState).
    Tsc = 0x19,
    /// `kvm_vcpu_events`.
    Events = 0x1A,
}

/// Appends records to a buffer.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Empties the buffer, keeps its memory, and begins the state of a machine of `cpus` vCPUs.
    pub fn new(out: &'a mut Vec<u8>, cpus: u16) -> Self {
        out.clear();
        out.extend_from_slice(&MAGIC.to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&cpus.to_le_bytes());
        Self { out }
    }

    /// Adds a record. KVM's structures are far below 4 GiB.
    pub fn put(&mut self, tag: Tag, vcpu: u16, bytes: &[u8]) {
        self.put_parts(tag, vcpu, &[bytes]);
    }

    /// Adds a record made of several pieces.
    pub fn put_parts(&mut self, tag: Tag, vcpu: u16, parts: &[&[u8]]) {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        self.out.extend_from_slice(&(tag as u16).to_le_bytes());
        self.out.extend_from_slice(&vcpu.to_le_bytes());
        self.out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
    }
}

/// The records of a saved state, checked for form.
#[derive(Debug)]
pub struct Reader<'a> {
    records: Vec<(Tag, u16, &'a [u8])>,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Reader<'a> {
    /// Takes the state apart; it must be of a machine of `cpus` vCPUs.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn new(bytes: &'a [u8], cpus: u16) -> Result<Self, StateError> {
        let truncated = || StateError::Truncated(bytes.len());
        match u32_at(bytes, 0).ok_or_else(truncated)? {
            MAGIC => {}
            other => return Err(StateError::Magic(other)),
        }
        match u16_at(bytes, 4).ok_or_else(truncated)? {
            VERSION => {}
            other => return Err(StateError::Version(other)),
        }
        let found = u16_at(bytes, 6).ok_or_else(truncated)?;
        if found != cpus {
            return Err(StateError::Cpus { expected: cpus, found });
        }
        let mut records: Vec<(Tag, u16, &[u8])> = Vec::with_capacity(16 * (1 + usize::from(cpus)));
        let mut at = HEADER;
        while at < bytes.len() {
            let number = u16_at(bytes, at).ok_or_else(truncated)?;
            let vcpu = u16_at(bytes, at + 2).ok_or_else(truncated)?;
            let len = u32_at(bytes, at + 4).ok_or_else(truncated)?;
            let end = usize::try_from(len)
                .ok()
                .and_then(|n| (at + RECORD).checked_add(n))
                .ok_or_else(truncated)?;
            let payload = bytes.get(at + RECORD..end).ok_or_else(truncated)?;
            let tag = Tag::from_number(number).ok_or(StateError::UnknownTag(number))?;
            let of_vm = (tag as u16) < Tag::MpState as u16;
            let twice = records.iter().any(|&(t, v, _)| t == tag && v == vcpu);
            if twice || vcpu >= cpus || of_vm && vcpu != 0 {
                return Err(StateError::Superfluous { tag, vcpu });
            }
            records.push((tag, vcpu, payload));
            at = end;
        }
        Ok(Self { records })
    }

    /// All records: tag, vCPU, bytes.
    pub fn records(&self) -> impl Iterator<Item = (Tag, u16, &'a [u8])> + '_ {
        self.records.iter().copied()
    }

    /// The bytes of a record, if it is there.
    #[must_use]
    pub fn find(&self, tag: Tag, vcpu: u16) -> Option<&'a [u8]> {
        self.records.iter().find(|&&(t, v, _)| t == tag && v == vcpu).map(|&(_, _, bytes)| bytes)
    }

    /// The bytes of a record.
    ///
    /// # Errors
    /// `Missing`.
    pub fn bytes(&self, tag: Tag, vcpu: u16) -> Result<&'a [u8], StateError> {
        self.find(tag, vcpu).ok_or(StateError::Missing { tag, vcpu })
    }

    /// A record as the structure that it is.
    ///
    /// # Errors
    /// `Missing`, `Size`.
    pub fn get<T: FromBytes>(&self, tag: Tag, vcpu: u16) -> Result<T, StateError> {
        let bytes = self.bytes(tag, vcpu)?;
        T::read_from_bytes(bytes).map_err(|_| StateError::Size {
            tag,
            vcpu,
            expected: size_of::<T>(),
            found: bytes.len(),
        })
    }

    /// Copies a record into a structure of its size.
    ///
    /// # Errors
    /// `Missing`, `Size`.
    pub fn copy_to(&self, tag: Tag, vcpu: u16, out: &mut [u8]) -> Result<(), StateError> {
        let bytes = self.bytes(tag, vcpu)?;
        if bytes.len() != out.len() {
            return Err(StateError::Size { tag, vcpu, expected: out.len(), found: bytes.len() });
        }
        out.copy_from_slice(bytes);
        Ok(())
    }
}

/// A local APIC's timer count runs with time: the first four bytes of the register at 0x390.
const LAPIC_TIMER_COUNT: usize = 0x390;
/// Its processor priority follows from the task priority and what is in service, which are compared; KVM
/// brings it up to date when it sets a state, and not always when it gets one.
const LAPIC_PROCESSOR_PRIORITY: usize = 0xA0;

/// What of a saved state two machines must agree on while neither runs, by name: everything but
/// what runs with time (clocks, local APIC timers) or follows from the rest. For comparing both sides of a move.
///
/// # Errors
/// As [`Reader::new`].
pub fn stable_parts(bytes: &[u8], cpus: u16) -> Result<Vec<(String, Vec<u8>)>, StateError> {
    let reader = Reader::new(bytes, cpus)?;
    let mut parts = Vec::new();
    for &(tag, vcpu, bytes) in &reader.records {
        let of =
            if (tag as u16) < Tag::MpState as u16 { "vm".into() } else { format!("vcpu{vcpu}") };
        // Registers on their own, so that one that differs is named.
        match tag {
            Tag::Clock | Tag::Tsc => {}
            Tag::Msrs => {
                for entry in bytes.chunks_exact(16) {
                    let index = u32_at(entry, 0).unwrap_or(u32::MAX);
                    if !crate::vcpu::msrs::CLOCKS.contains(&index) {
                        parts.push((format!("{of}.MSR {index:#x}"), entry.to_vec()));
                    }
                }
            }
            Tag::Lapic => {
                for (at, register) in (0..).step_by(16).zip(bytes.chunks(16)) {
                    if at == LAPIC_PROCESSOR_PRIORITY {
                        continue;
                    }
                    let mut register = register.to_vec();
                    if at == LAPIC_TIMER_COUNT
                        && let Some(count) = register.get_mut(..4)
                    {
                        count.fill(0);
                    }
                    parts.push((format!("{of}.Lapic {at:#x}"), register));
                }
            }
            _ => parts.push((format!("{of}.{tag:?}"), bytes.to_vec())),
        }
    }
    Ok(parts)
}

#[cfg(test)]
#[path = "record_test.rs"]
mod tests;
