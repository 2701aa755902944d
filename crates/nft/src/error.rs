// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in a conversation with `nf_tables`.

use netlink_pipeline::attribute::{AttributeTooLong, DecodeError};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError};

/// `ERESTART` of `asm-generic/errno.h`: the generation is another one.
const ERESTART: i32 = 85;

/// A failed call of the client.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not know nftables and could not load it.
    #[error("nftables is not available: kernel module nf_tables is neither loaded nor loadable")]
    NotAvailable(#[source] KernelError),
    /// The process lacks `CAP_NET_ADMIN` in the user namespace of its network namespace.
    #[error("no permission to use nftables: CAP_NET_ADMIN is needed")]
    Permission(#[source] KernelError),
    /// Another process changed some table since the generation that the transaction was for.
    /// Nothing of it was done.
    #[error("nftables were changed meanwhile")]
    Changed(#[source] KernelError),
    /// The kernel refused a transaction, of which nothing was done.
    #[error("nftables refused {} of {operations} operations", others.len() + 1)]
    Refused {
        /// What it refused first.
        #[source]
        first: Box<Refusal>,
        /// What else it refused, in the order of the operations.
        others: Vec<Refusal>,
        /// Operations of the transaction.
        operations: usize,
    },
    /// The kernel refused to list something. What does not exist is no error.
    #[error("cannot {what}")]
    Listing {
        /// A verb and its object.
        what: &'static str,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The conversation broke down: what happened to the requests is unknown.
    #[error("cannot {what} over netlink")]
    Netlink {
        /// A verb and its object.
        what: &'static str,
        /// How.
        #[source]
        source: NetlinkError,
    },
    /// The kernel's answer is not what this crate understands.
    #[error("cannot decode the kernel's answer: cannot {what}")]
    Decode {
        /// A verb and its object.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
    /// A request has an attribute that netlink cannot carry.
    #[error("request about nftables is too long")]
    TooLong(#[from] AttributeTooLong),
}

/// The kernel's refusal of one operation, for whose sake nothing of its transaction was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}")]
#[non_exhaustive]
pub struct Refusal {
    /// The index of the operation; `None` if it is the transaction as a whole.
    pub operation: Option<usize>,
    /// Of operations on elements: the index of the one that is refused, where the kernel says so.
    pub element: Option<usize>,
    /// A verb and its object, such as `delete chain ip nat web`.
    pub what: String,
    /// Why.
    #[source]
    pub source: KernelError,
}

impl Refusal {
    /// A refusal, for those who play the kernel.
    pub const fn new(
        operation: Option<usize>,
        element: Option<usize>,
        what: String,
        source: KernelError,
    ) -> Self {
        Self {
            operation,
            element,
            what,
            source,
        }
    }
}

impl Error {
    /// Whether the same call may succeed later without anybody repairing something: the rules were
    /// changed meanwhile, the kernel was short of memory or busy, answers were lost.
    ///
    /// After [`Error::Netlink`] it is unknown whether a transaction was done: read before you try
    /// again.
    pub fn is_retryable(&self) -> bool {
        use NetlinkError::{DumpInterrupted, Overrun, TimedOut};
        match self {
            Self::Changed(_) => true,
            Self::Refused { first, .. } => is_passing(&first.source),
            Self::Listing { source, .. } => is_passing(source),
            Self::Netlink { source, .. } => match source {
                TimedOut { .. } | Overrun | DumpInterrupted { .. } => true,
                NetlinkError::Refused(refusal) => is_passing(refusal),
                _ => false,
            },
            _ => false,
        }
    }

    /// Everything that the kernel refused of a transaction.
    pub fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        let (first, others) = match self {
            Self::Refused { first, others, .. } => (Some(first.as_ref()), others.as_slice()),
            _ => (None, &[][..]),
        };
        first.into_iter().chain(others)
    }

    /// A refusal of the first question to the kernel.
    pub(crate) fn of_first_question(refusal: KernelError) -> Self {
        match refusal.kind {
            KernelErrorKind::Permission => Self::Permission(refusal),
            // nfnetlink says either of a subsystem that it does not know.
            KernelErrorKind::Unsupported | KernelErrorKind::Invalid => Self::NotAvailable(refusal),
            _ => Self::Listing {
                what: "read the generation of nftables",
                source: refusal,
            },
        }
    }

    /// A refusal of a transaction for what it is, whatever is in it.
    pub(crate) fn of_transaction(refusal: KernelError) -> Result<Self, KernelError> {
        match refusal.kind {
            _ if refusal.errno == ERESTART => Ok(Self::Changed(refusal)),
            KernelErrorKind::Permission => Ok(Self::Permission(refusal)),
            _ => Err(refusal),
        }
    }
}

/// Whether it passes by itself.
fn is_passing(error: &KernelError) -> bool {
    matches!(error.kind, KernelErrorKind::Busy | KernelErrorKind::Full)
}
