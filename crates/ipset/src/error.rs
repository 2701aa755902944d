// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with sets: the kernel's numbers, classified once.

use std::fmt;

use super::types::{SetEntry, SetName, SetType};
use netlink_pipeline::attribute::{AttributeTooLong, DecodeError};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError};

/// What was to be done with a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// `IPSET_CMD_CREATE`
    Create,
    /// `IPSET_CMD_DESTROY`
    Destroy,
    /// `IPSET_CMD_FLUSH`
    Flush,
    /// `IPSET_CMD_SWAP`
    Swap,
    /// `IPSET_CMD_ADD`
    Add,
    /// `IPSET_CMD_DEL`
    Delete,
    /// `IPSET_CMD_LIST`
    List,
}

impl fmt::Display for Action {
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

/// An action on sets failed as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The conversation broke down: what happened to the requests is unknown.
    #[error("cannot talk to the kernel about sets")]
    Netlink(#[source] NetlinkError),
    /// The kernel lacks ipset (module `ip_set`), or the process lacks `CAP_NET_ADMIN`.
    #[error("cannot use ipset (kernel module ip_set, capability NET_ADMIN)")]
    Unavailable(#[source] KernelError),
    /// The kernel speaks neither of the protocols 6 and 7 (Linux 4.16).
    #[error("the kernel speaks ipset protocols {minimum} to {maximum}, needed is 6 or 7")]
    Protocol {
        /// The oldest that it speaks.
        minimum: u8,
        /// The newest that it speaks.
        maximum: u8,
    },
    /// The kernel refused to do something with a set.
    #[error("cannot {action} {set}")]
    Refused {
        /// What was to be done.
        action: Action,
        /// The set; of a swap, the first one.
        set: SetName,
        /// Why.
        #[source]
        source: SetError,
    },
    /// The kernel module of a set type is neither loaded nor loadable.
    #[error("the kernel has no usable set type {set_type} (module {})", set_type.module())]
    TypeUnavailable {
        /// The type.
        set_type: SetType,
        /// Why.
        #[source]
        source: SetError,
    },
    /// The kernel has forgotten the revisions of a set type that this crate knows.
    #[error(
        "the kernel knows revisions {minimum} to {maximum} of set type {set_type}, needed is {known} or older"
    )]
    Revision {
        /// The type.
        set_type: SetType,
        /// The kernel's oldest.
        minimum: u8,
        /// The kernel's newest.
        maximum: u8,
        /// The newest that this crate knows.
        known: u8,
    },
    /// The kernel's answer is not what this crate understands.
    #[error("cannot read the kernel's answer about sets")]
    Malformed(#[from] DecodeError),
    /// A request has an attribute that netlink cannot carry.
    #[error("request about sets is too long")]
    TooLong(#[from] AttributeTooLong),
}

impl Error {
    /// The kernel's refusal, if that is what went wrong.
    pub const fn refusal(&self) -> Option<&SetError> {
        match self {
            Self::Refused { source, .. } | Self::TypeUnavailable { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether there is no such set.
    pub fn is_not_found(&self) -> bool {
        matches!(self.refusal(), Some(refusal) if refusal.kind == SetErrorKind::NotFound)
    }

    /// Whether a set of that name exists with other properties.
    pub fn is_already_exists(&self) -> bool {
        matches!(self.refusal(), Some(refusal) if refusal.kind == SetErrorKind::AlreadyExists)
    }
}

/// One entry that the kernel refused; the others of the same call are done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("entry {entry}")]
pub struct EntryFailure {
    /// The entry, as it was given.
    pub entry: SetEntry,
    /// Why.
    #[source]
    pub refusal: SetError,
}

/// The kernel's refusal to do something with a set or an entry: a [`KernelError`] in ipset's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
#[non_exhaustive]
pub struct SetError {
    /// The class of [`Self::errno`].
    pub kind: SetErrorKind,
    /// `errno`, or `enum ipset_errno` from 4096 on.
    pub errno: i32,
}

/// The class of a refusal: what a caller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum SetErrorKind {
    /// No such set.
    NotFound,
    /// The set exists with other properties, or the entry exists (or, when deleting, does not).
    AlreadyExists,
    /// `IPSET_ERR_HASH_FULL`: `maxelem` is reached.
    Full,
    /// `IPSET_ERR_BITMAP_RANGE`: the port is outside of the bitmap.
    OutOfRange,
    /// `IPSET_ERR_BUSY`, `IPSET_ERR_REFERENCED`, `EBUSY`: a rule or another set uses the set, or
    /// somebody is listing it.
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
    /// Anything else.
    Other,
}

impl SetError {
    /// Classifies. `set_type` is needed for numbers that each type uses for its own purposes.
    pub(super) fn of(error: &KernelError, set_type: Option<SetType>) -> Self {
        let kind = match (error.errno, set_type) {
            (IPSET_ERR_TYPE_SPECIFIC, Some(SetType::BitmapPort)) => SetErrorKind::OutOfRange,
            (IPSET_ERR_TYPE_SPECIFIC, _) => SetErrorKind::Full,
            // An address of the other family is a missing attribute to the kernel.
            (IPSET_ERR_PROTOCOL, Some(_)) | (IPSET_ERR_TYPE_SPECIFIC.., _) => {
                SetErrorKind::InvalidEntry
            }
            (errno, _) => match (named(errno), error.kind) {
                (Some((kind, _)), _) => kind,
                (None, KernelErrorKind::NotFound) => SetErrorKind::NotFound,
                (None, KernelErrorKind::AlreadyExists) => SetErrorKind::AlreadyExists,
                (None, KernelErrorKind::Permission) => SetErrorKind::Permission,
                (None, KernelErrorKind::Busy) => SetErrorKind::Busy,
                (None, KernelErrorKind::Full) => SetErrorKind::NoRoom,
                (None, _) => SetErrorKind::Other,
            },
        };
        Self {
            kind,
            errno: error.errno,
        }
    }

    fn describe(&self) -> String {
        let text = match (named(self.errno), self.kind) {
            (Some((_, text)), _) => text,
            (None, SetErrorKind::Full) => "the set is full (maxelem)",
            (None, SetErrorKind::OutOfRange) => "outside of the set's range",
            (None, SetErrorKind::InvalidEntry) => return format!("invalid entry ({})", self.errno),
            (None, SetErrorKind::NotFound) => "no such set",
            (None, SetErrorKind::AlreadyExists) => {
                "a set of this name exists with other properties"
            }
            (None, _) => return KernelError::from_errno(self.errno).to_string(),
        };
        text.to_owned()
    }
}

const IPSET_ERR_PROTOCOL: i32 = 4097;
/// `IPSET_ERR_HASH_FULL` of hash sets, `IPSET_ERR_BITMAP_RANGE` of bitmaps. Above are others of
/// single types.
const IPSET_ERR_TYPE_SPECIFIC: i32 = 4352;

/// `enum ipset_errno` from [`IPSET_ERR_PROTOCOL`] on.
const NAMED: [(SetErrorKind, &str); 18] = {
    use SetErrorKind::{
        AlreadyExists, Busy, InvalidEntry, NoRoom, Other, TypeMismatch, UnknownType,
    };
    [
        (Other, "protocol error"),
        (UnknownType, "the kernel has no such set type"),
        (NoRoom, "too many sets"),
        (
            Busy,
            "the set is in use by a rule or another set, or is being listed",
        ),
        (AlreadyExists, "the other set's name is taken"),
        (TypeMismatch, "the sets are of different types"),
        (
            AlreadyExists,
            "the entry is there already, or not there to be deleted",
        ),
        (InvalidEntry, "invalid prefix length"),
        (InvalidEntry, "invalid netmask"),
        (InvalidEntry, "invalid address family"),
        (InvalidEntry, "the set has no timeouts"),
        (Busy, "the set is referenced"),
        (InvalidEntry, "an IPv4 address was expected"),
        (InvalidEntry, "an IPv6 address was expected"),
        (InvalidEntry, "the set has no counters"),
        (InvalidEntry, "the set has no comments"),
        (InvalidEntry, "invalid mark mask"),
        (InvalidEntry, "the set has no packet marks (skbinfo)"),
    ]
};

/// What a number of `enum ipset_errno` means.
fn named(errno: i32) -> Option<(SetErrorKind, &'static str)> {
    let index = errno.checked_sub(IPSET_ERR_PROTOCOL)?;
    NAMED.get(usize::try_from(index).ok()?).copied()
}
