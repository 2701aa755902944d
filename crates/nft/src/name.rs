// SPDX-License-Identifier: Apache-2.0
//! Names of tables, chains, sets and objects.

use std::fmt;
use std::str::FromStr;

use netlink_pipeline::attribute::{Attribute, DecodeError, Writer};

use crate::wire::Wire;

/// The longest name in bytes: `NFT_NAME_MAXLEN` without the terminating NUL.
pub const MAX_NAME_LEN: usize = 255;

/// The name of a table, chain, set or object: 1 to 255 bytes without NUL.
///
/// The kernel takes any such name. The `nft` program reads letters, digits and `/ - _ .` only, of
/// which a letter, `_` or `.` must be the first; others it lists and cannot read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

/// A name that the kernel does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid name {0:?}: must have 1 to 255 bytes without NUL")]
pub struct InvalidName(
    /// The text.
    pub String,
);

impl Name {
    /// Checks a name.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
        let text = text.into();
        if (1..=MAX_NAME_LEN).contains(&text.len()) && !text.contains('\0') {
            Ok(Self(text))
        } else {
            Err(InvalidName(text))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What is not UTF-8 becomes replacement characters.
impl Wire for Name {
    fn read(raw: &Attribute<'_>, attribute: &'static str) -> Result<Self, DecodeError> {
        Self::new(raw.string()).map_err(|invalid| DecodeError::Value {
            attribute,
            reason: invalid.to_string(),
        })
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.string(kind, &self.0);
    }
}
