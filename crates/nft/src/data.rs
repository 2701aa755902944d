// SPDX-License-Identifier: Apache-2.0
//! Values and verdicts: what rules compare with and what maps hold.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_pipeline::attribute::{Attribute, DecodeError, Writer, align, list};

use crate::name::Name;
use crate::wire::{Wire, missing};

const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;

// enum nft_verdicts, and NF_DROP and NF_ACCEPT of linux/netfilter.h.
const NF_DROP: i32 = 0;
const NF_ACCEPT: i32 = 1;
const NFT_CONTINUE: i32 = -1;
const NFT_BREAK: i32 = -2;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

/// The bytes of a value as the kernel compares them, at most 64.
///
/// What comes from packets is in network order, the rest (marks) in the machine's: each
/// constructor knows.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(Vec<u8>);

impl Value {
    /// Any bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// A port.
    pub fn port(port: u16) -> Self {
        Self(port.to_be_bytes().to_vec())
    }

    /// An IP protocol number: 6 is TCP, 17 UDP, 132 SCTP.
    pub fn protocol(protocol: u8) -> Self {
        Self(vec![protocol])
    }

    /// A packet mark, or any other 32-bit number of the machine.
    pub fn mark(mark: u32) -> Self {
        Self(mark.to_ne_bytes().to_vec())
    }

    /// The name of an interface, padded to the 16 bytes of `IFNAMSIZ`, so that it is compared as a
    /// whole. For a prefix compare with [`Value::new`] of its bytes.
    pub fn interface(name: &str) -> Self {
        let mut bytes: Vec<u8> = name.bytes().take(15).collect();
        bytes.resize(16, 0);
        Self(bytes)
    }

    /// The key of a concatenation (`address . protocol . port`): each part begins a new word.
    pub fn concatenation(parts: impl IntoIterator<Item = Self>) -> Self {
        let mut bytes = Vec::new();
        for part in parts {
            bytes.extend_from_slice(&part.0);
            bytes.resize(align(bytes.len()), 0);
        }
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The next higher one of a number in network order; `None` after the highest.
    pub(crate) fn next(&self) -> Option<Self> {
        let mut bytes = self.0.clone();
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return Some(Self(bytes));
            }
        }
        None
    }

    /// The next lower one of a number in network order; `None` before zero.
    pub(crate) fn previous(&self) -> Option<Self> {
        let mut bytes = self.0.clone();
        for byte in bytes.iter_mut().rev() {
            *byte = byte.wrapping_sub(1);
            if *byte != u8::MAX {
                return Some(Self(bytes));
            }
        }
        None
    }

    /// The highest number of this length.
    pub(crate) fn highest(&self) -> Self {
        Self(vec![u8::MAX; self.0.len()])
    }
}

impl From<Ipv4Addr> for Value {
    fn from(address: Ipv4Addr) -> Self {
        Self(address.octets().to_vec())
    }
}

impl From<Ipv6Addr> for Value {
    fn from(address: Ipv6Addr) -> Self {
        Self(address.octets().to_vec())
    }
}

impl From<IpAddr> for Value {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

/// In hexadecimal, a group for each word.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        for (index, byte) in self.0.iter().enumerate() {
            if index > 0 && index % 4 == 0 {
                f.write_str("_")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// It goes on, past the rest of this base chain.
    Accept,
    /// It is dropped.
    Drop,
    /// The next rule sees it.
    Continue,
    /// The rest of the rule does not see it.
    Break,
    /// The rules of a chain see it, then the next rule.
    Jump(Name),
    /// The rules of a chain see it, then those behind the last jump.
    Goto(Name),
    /// The rules behind the last jump see it.
    Return,
    /// A verdict that this crate does not know, such as one of `NF_QUEUE`.
    Other(i32),
}

impl Verdict {
    const fn code(&self) -> i32 {
        match self {
            Self::Accept => NF_ACCEPT,
            Self::Drop => NF_DROP,
            Self::Continue => NFT_CONTINUE,
            Self::Break => NFT_BREAK,
            Self::Jump(_) => NFT_JUMP,
            Self::Goto(_) => NFT_GOTO,
            Self::Return => NFT_RETURN,
            Self::Other(code) => *code,
        }
    }

    fn chain(&self) -> Option<&Name> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            _ => None,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Continue => f.write_str("continue"),
            Self::Break => f.write_str("break"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
            Self::Other(code) => write!(f, "verdict {code}"),
        }
    }
}

/// Nested, as the verdict of an `NFTA_DATA_VERDICT`.
impl Wire for Verdict {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError> {
        let mut code = None;
        let mut chain = None;
        for raw in list(raw.value()) {
            let raw = raw?;
            match raw.kind() {
                NFTA_VERDICT_CODE => code = Some(i32::read(&raw, "NFTA_VERDICT_CODE")?),
                NFTA_VERDICT_CHAIN => chain = Some(Name::read(&raw, "NFTA_VERDICT_CHAIN")?),
                other => {
                    return Err(DecodeError::Value {
                        attribute: name,
                        reason: format!("attribute {other} of a verdict is not known"),
                    });
                }
            }
        }
        match (code.ok_or(missing("NFTA_VERDICT_CODE"))?, chain) {
            (NF_ACCEPT, None) => Ok(Self::Accept),
            (NF_DROP, None) => Ok(Self::Drop),
            (NFT_CONTINUE, None) => Ok(Self::Continue),
            (NFT_BREAK, None) => Ok(Self::Break),
            (NFT_RETURN, None) => Ok(Self::Return),
            (NFT_JUMP, Some(chain)) => Ok(Self::Jump(chain)),
            (NFT_GOTO, Some(chain)) => Ok(Self::Goto(chain)),
            (NFT_JUMP | NFT_GOTO, None) => Err(missing("NFTA_VERDICT_CHAIN")),
            (code, None) => Ok(Self::Other(code)),
            (code, Some(chain)) => Err(DecodeError::Value {
                attribute: name,
                reason: format!("verdict {code} has a chain, {chain}"),
            }),
        }
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |verdict| {
            self.code().write(NFTA_VERDICT_CODE, verdict);
            if let Some(chain) = self.chain() {
                chain.write(NFTA_VERDICT_CHAIN, verdict);
            }
        });
    }
}

/// A value or a verdict: what an expression compares with or loads, and both sides of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Data {
    /// Bytes.
    Value(Value),
    /// A verdict.
    Verdict(Verdict),
}

impl From<Value> for Data {
    fn from(value: Value) -> Self {
        Self::Value(value)
    }
}

impl From<Verdict> for Data {
    fn from(verdict: Verdict) -> Self {
        Self::Verdict(verdict)
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => value.fmt(f),
            Self::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

impl Wire for Data {
    fn read(raw: &Attribute<'_>, name: &'static str) -> Result<Self, DecodeError> {
        let mut data = None;
        for raw in list(raw.value()) {
            let raw = raw?;
            data = Some(match raw.kind() {
                NFTA_DATA_VALUE => Self::Value(Value::new(raw.value())),
                NFTA_DATA_VERDICT => Self::Verdict(Verdict::read(&raw, name)?),
                other => {
                    return Err(DecodeError::Value {
                        attribute: name,
                        reason: format!("attribute {other} of data is not known"),
                    });
                }
            });
        }
        data.ok_or(DecodeError::Value {
            attribute: name,
            reason: "it holds neither a value nor a verdict".to_owned(),
        })
    }

    fn write(&self, kind: u16, writer: &mut Writer) {
        writer.nested(kind, |data| match self {
            Self::Value(value) => {
                data.bytes(NFTA_DATA_VALUE, value.as_bytes());
            }
            Self::Verdict(verdict) => verdict.write(NFTA_DATA_VERDICT, data),
        });
    }
}
