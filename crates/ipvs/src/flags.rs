// SPDX-License-Identifier: Apache-2.0
//! `struct ip_vs_flags`, and the flags of a service that are configuration.

use std::fmt;
use std::ops::BitOr;

use netlink_pipeline::attribute::{Attribute, Codec, DecodeError, Plain, Writer};

use super::constants::{
    IP_VS_SVC_F_HASHED, IP_VS_SVC_F_ONEPACKET, IP_VS_SVC_F_PERSISTENT, IP_VS_SVC_F_SCHED1,
    IP_VS_SVC_F_SCHED2, IP_VS_SVC_F_SCHED3,
};

/// Flags of a service besides persistence, which is [`super::Persistence`].
///
/// `IP_VS_SVC_F_HASHED` is the kernel's own mark and never in here: it is set in every answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceFlags(u32);

impl ServiceFlags {
    /// Each UDP packet is scheduled anew.
    pub const ONE_PACKET: Self = Self(IP_VS_SVC_F_ONEPACKET);
    /// `sh` and `mh`: take another destination when the hashed one cannot be used.
    pub const FALLBACK: Self = Self(IP_VS_SVC_F_SCHED1);
    /// `sh` and `mh`: the source port is hashed too.
    pub const HASH_PORT: Self = Self(IP_VS_SVC_F_SCHED2);
    /// No scheduler uses it yet.
    pub const SCHEDULER_3: Self = Self(IP_VS_SVC_F_SCHED3);

    /// The flags among bits from the wire; unknown ones are kept.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits & !(IP_VS_SVC_F_PERSISTENT | IP_VS_SVC_F_HASHED))
    }

    /// The bits as the kernel numbers them.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether none is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for ServiceFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for ServiceFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// `struct ip_vs_flags`: the kernel takes the flags under the mask and keeps the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedFlags {
    /// `IP_VS_SVC_F_*`
    pub flags: u32,
    /// Those that count.
    pub mask: u32,
}

impl Codec<MaskedFlags> for Plain {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<MaskedFlags, DecodeError> {
        let [f0, f1, f2, f3, m0, m1, m2, m3] = raw.array(name)?;
        Ok(MaskedFlags {
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            mask: u32::from_ne_bytes([m0, m1, m2, m3]),
        })
    }

    fn write(value: &MaskedFlags, kind: u16, writer: &mut Writer) {
        let halves = [value.flags.to_ne_bytes(), value.mask.to_ne_bytes()];
        writer.bytes(kind, halves.as_flattened());
    }
}
