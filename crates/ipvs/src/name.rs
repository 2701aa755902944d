// SPDX-License-Identifier: Apache-2.0
//! Names of kernel modules' offerings: schedulers and persistence engines.

use std::fmt;
use std::str::FromStr;

use netlink_pipeline::attribute::{Attribute, Codec, DecodeError, Plain, Writer};

use super::constants::IP_VS_SCHEDNAME_MAXLEN;

/// The name of a scheduler or of a persistence engine: printable ASCII of 1 to 15 bytes, `char[16]`
/// in the kernel.
///
/// The kernel loads the module `ip_vs_NAME` (`ip_vs_pe_NAME`) when it does not know the name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KernelName([u8; IP_VS_SCHEDNAME_MAXLEN]);

/// A name that the kernel could not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid name {0:?}: must be 1 to 15 printable ASCII characters")]
pub struct InvalidName(
    /// The text.
    pub String,
);

impl KernelName {
    /// Round robin, the kernel's plainest scheduler and kube-proxy's default.
    pub const ROUND_ROBIN: Self = Self(*b"rr\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// The name without padding.
    fn bytes(&self) -> &[u8] {
        self.0.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn from_bytes(text: &[u8]) -> Option<Self> {
        let mut name = [0; IP_VS_SCHEDNAME_MAXLEN];
        match name.get_mut(..text.len()) {
            // The last byte stays NUL.
            Some(target)
                if text.len() < IP_VS_SCHEDNAME_MAXLEN && text.iter().all(u8::is_ascii_graphic) =>
            {
                target.copy_from_slice(text);
                Some(Self(name))
            }
            _ => None,
        }
    }
}

/// An empty name occurs: `ipvsadm` sends one where none is needed.
impl Codec<KernelName> for Plain {
    fn read(raw: &Attribute<'_>, attribute: &'static str) -> Result<KernelName, DecodeError> {
        let text = raw.string_bytes();
        KernelName::from_bytes(text).ok_or_else(|| DecodeError::Value {
            attribute,
            reason: format!("invalid name {:?}", text.escape_ascii().to_string()),
        })
    }

    fn write(value: &KernelName, kind: u16, writer: &mut Writer) {
        writer.string(kind, value.as_str());
    }
}

impl FromStr for KernelName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Some(text.as_bytes())
            .filter(|text| !text.is_empty())
            .and_then(Self::from_bytes)
            .ok_or_else(|| InvalidName(text.to_owned()))
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}
