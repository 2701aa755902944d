// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with sets, the kernel's numbers classified once.

use std::fmt;

use super::constants as c;
use super::types::{SetEntry, SetName, SetType};
use netlink_pipeline::attribute::{AttributeTooLong, DecodeError};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError};

/// What was to be done with a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Destroy,
    Flush,
    Swap,
    Add,
    Delete,
    List,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create set",
            Self::Destroy => "destroy set",
            Self::Flush => "flush set",
            Self::Swap => "swap set",
            Self::Add => "add entries to set",
            Self::Delete => "delete entries of set",
            Self::List => "list set",
        })
    }
}

/// An operation on sets failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot talk to the kernel about sets")]
    Netlink(#[source] NetlinkError),
    /// The kernel lacks ipset (module `ip_set`), or we lack `CAP_NET_ADMIN`.
    #[error("cannot use ipset (kernel module ip_set, capability NET_ADMIN)")]
    Unavailable(#[source] KernelError),
    #[error("the kernel speaks ipset protocols {minimum} to {maximum}, needed is 6 or 7")]
    Protocol { minimum: u8, maximum: u8 },
    #[error("cannot {operation} {set}")]
    Refused {
        operation: Operation,
        set: SetName,
        #[source]
        source: Refusal,
    },
    #[error("the kernel has no usable set type {set_type} (module {})", set_type.module())]
    TypeUnavailable {
        set_type: SetType,
        #[source]
        source: Refusal,
    },
    #[error(
        "the kernel knows revisions {minimum} to {maximum} of set type {set_type}, needed is {known} or older"
    )]
    Revision {
        set_type: SetType,
        minimum: u8,
        maximum: u8,
        known: u8,
    },
    #[error("cannot read the kernel's answer about sets")]
    Malformed(#[from] DecodeError),
    #[error("request about sets is too long")]
    TooLong(#[from] AttributeTooLong),
}

impl Error {
    /// The kernel's refusal, if that is what went wrong.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { source, .. } | Self::TypeUnavailable { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether there is no such set.
    pub fn is_not_found(&self) -> bool {
        matches!(self.refusal(), Some(refusal) if refusal.kind == RefusalKind::NotFound)
    }

    /// Whether a set of that name exists with other properties.
    pub fn is_already_exists(&self) -> bool {
        matches!(self.refusal(), Some(refusal) if refusal.kind == RefusalKind::AlreadyExists)
    }
}

/// One entry that the kernel refused; the others of the same call are done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry}")]
pub struct EntryFailure {
    pub entry: SetEntry,
    #[source]
    pub refusal: Refusal,
}

/// Why the kernel said no.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Refusal {
    pub kind: RefusalKind,
    /// `errno`, or `enum ipset_errno` from 4096 on.
    pub errno: i32,
}

/// The classes of refusal that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RefusalKind {
    /// No such set.
    NotFound,
    /// The set exists with other properties, or the entry exists (or, when deleting, does not).
    AlreadyExists,
    /// `IPSET_ERR_HASH_FULL`: `maxelem` is reached.
    Full,
    /// `IPSET_ERR_BITMAP_RANGE`: the port is outside of the bitmap.
    OutOfRange,
    /// `IPSET_ERR_BUSY`, `IPSET_ERR_REFERENCED`: a rule or another set uses the set.
    Busy,
    /// `IPSET_ERR_TYPE_MISMATCH`: sets of different types cannot be swapped.
    TypeMismatch,
    /// `IPSET_ERR_FIND_TYPE`: the kernel has no such type or not in this revision.
    UnknownType,
    /// An address, prefix length, protocol or option that the set does not take.
    InvalidEntry,
    /// No `CAP_NET_ADMIN`.
    Permission,
    /// Too many sets, or no memory.
    NoRoom,
    Other,
}

impl Refusal {
    /// Classifies. `set_type` is needed for numbers that each type uses for its own purposes.
    pub(super) fn of(error: &KernelError, set_type: Option<SetType>) -> Self {
        let kind = match error.errno {
            c::IPSET_ERR_BUSY | c::IPSET_ERR_REFERENCED => RefusalKind::Busy,
            c::IPSET_ERR_EXIST | c::IPSET_ERR_EXIST_SETNAME2 => RefusalKind::AlreadyExists,
            c::IPSET_ERR_TYPE_MISMATCH => RefusalKind::TypeMismatch,
            c::IPSET_ERR_FIND_TYPE => RefusalKind::UnknownType,
            c::IPSET_ERR_MAX_SETS => RefusalKind::NoRoom,
            c::IPSET_ERR_TYPE_SPECIFIC => match set_type {
                Some(SetType::BitmapPort) => RefusalKind::OutOfRange,
                _ => RefusalKind::Full,
            },
            c::IPSET_ERR_INVALID_CIDR..=c::IPSET_ERR_TIMEOUT
            | c::IPSET_ERR_IPADDR_IPV4..=c::IPSET_ERR_SKBINFO => RefusalKind::InvalidEntry,
            // An address of the other family is a missing attribute to the kernel.
            c::IPSET_ERR_PROTOCOL if set_type.is_some() => RefusalKind::InvalidEntry,
            errno if errno > c::IPSET_ERR_TYPE_SPECIFIC => RefusalKind::InvalidEntry,
            _ => match error.kind {
                KernelErrorKind::NotFound => RefusalKind::NotFound,
                KernelErrorKind::AlreadyExists => RefusalKind::AlreadyExists,
                KernelErrorKind::Permission => RefusalKind::Permission,
                KernelErrorKind::Busy => RefusalKind::Busy,
                KernelErrorKind::Full => RefusalKind::NoRoom,
                KernelErrorKind::Unsupported
                | KernelErrorKind::Invalid
                | KernelErrorKind::Other => RefusalKind::Other,
            },
        };
        Self {
            kind,
            errno: error.errno,
        }
    }

    fn describe(&self) -> String {
        let text = match self.errno {
            c::IPSET_ERR_PROTOCOL => "protocol error",
            c::IPSET_ERR_FIND_TYPE => "the kernel has no such set type",
            c::IPSET_ERR_MAX_SETS => "too many sets",
            c::IPSET_ERR_BUSY => "the set is in use by a rule or another set",
            c::IPSET_ERR_EXIST_SETNAME2 => "the other set's name is taken",
            c::IPSET_ERR_TYPE_MISMATCH => "the sets are of different types",
            c::IPSET_ERR_EXIST => "the entry is there already, or not there to be deleted",
            c::IPSET_ERR_INVALID_CIDR => "invalid prefix length",
            c::IPSET_ERR_INVALID_NETMASK => "invalid netmask",
            c::IPSET_ERR_INVALID_FAMILY => "invalid address family",
            c::IPSET_ERR_TIMEOUT => "the set has no timeouts",
            c::IPSET_ERR_REFERENCED => "the set is referenced",
            c::IPSET_ERR_IPADDR_IPV4 => "an IPv4 address was expected",
            c::IPSET_ERR_IPADDR_IPV6 => "an IPv6 address was expected",
            c::IPSET_ERR_COUNTER => "the set has no counters",
            c::IPSET_ERR_COMMENT => "the set has no comments",
            c::IPSET_ERR_INVALID_MARKMASK => "invalid mark mask",
            c::IPSET_ERR_SKBINFO => "the set has no packet marks (skbinfo)",
            _ => match self.kind {
                RefusalKind::Full => "the set is full (maxelem)",
                RefusalKind::OutOfRange => "outside of the set's range",
                RefusalKind::InvalidEntry => return format!("invalid entry ({})", self.errno),
                RefusalKind::NotFound => "no such set",
                RefusalKind::AlreadyExists => "a set of this name exists with other properties",
                _ => return KernelError::from_errno(self.errno).to_string(),
            },
        };
        text.to_owned()
    }
}
