// SPDX-License-Identifier: Apache-2.0
//! What can go wrong on a netlink socket, and the kernel's refusals, classified once.

use std::fmt;
use std::io;

/// The exchange itself failed: nothing is known about the requests that were under way.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// No socket: the kernel lacks the protocol, or the process has no file descriptor left.
    #[error("cannot open a netlink socket of protocol {protocol}")]
    Open {
        /// `NETLINK_*` of `include/uapi/linux/netlink.h`.
        protocol: isize,
        /// Of `socket`, `bind` or `setsockopt`.
        #[source]
        source: io::Error,
    },
    /// `sendmsg` failed.
    #[error("cannot send {bytes} bytes to the kernel")]
    Send {
        /// Bytes of the datagram.
        bytes: usize,
        /// Of `sendmsg`.
        #[source]
        source: io::Error,
    },
    /// `recvmsg` failed, or a fresh socket could not be opened after an exchange that broke off.
    #[error("cannot receive from the kernel")]
    Receive(#[source] io::Error),
    /// The kernel was silent for longer than the socket waits.
    #[error("the kernel did not answer in time: {answered} of {expected} answers came")]
    TimedOut {
        /// Requests of the call that have their answer.
        answered: usize,
        /// Requests of the call; of a dump, one more answer than came.
        expected: usize,
    },
    /// `ENOBUFS`: the receive queue was full and answers were lost.
    #[error("the kernel's answers overran the receive buffer")]
    Overrun,
    /// A request is longer than 128 KiB. Nothing of the call was sent.
    #[error("a request of {bytes} bytes is too long for netlink")]
    TooLong {
        /// Bytes of the request with its header.
        bytes: usize,
    },
    /// A datagram whose messages do not fit into it.
    #[error("malformed answer from the kernel: {reason}")]
    Malformed {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `NLM_F_DUMP_INTR` on every attempt: the table changes faster than it can be read.
    #[error("the dump was interrupted by changes {attempts} times")]
    DumpInterrupted {
        /// How often the table was dumped.
        attempts: u32,
    },
    /// The kernel refused a dump.
    #[error("the kernel refused the dump")]
    Refused(#[source] KernelError),
}

/// The class of a refusal: what a caller does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum KernelErrorKind {
    /// The object is not there: `ENOENT`, `ESRCH`, `ENODEV`, `ENXIO`, `EADDRNOTAVAIL`.
    NotFound,
    /// The object is there already: `EEXIST`.
    AlreadyExists,
    /// Another object or process uses it, for now: `EBUSY`, `EAGAIN`.
    Busy,
    /// `EPERM`, `EACCES`: `CAP_NET_ADMIN` in the network namespace's user namespace is missing.
    Permission,
    /// The kernel was built without it or does not know it: `EOPNOTSUPP` and its relatives.
    Unsupported,
    /// The request makes no sense to the kernel: `EINVAL`, `ERANGE`, `EMSGSIZE`, `ENAMETOOLONG`.
    Invalid,
    /// No room: `ENOSPC`, `ENOMEM`, `ENOBUFS`.
    Full,
    /// Anything else, including errors private to a family (ipset's begin at 4096).
    Other,
}

/// The kernel's refusal of one request: `NLMSG_ERROR` with an errno.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelError {
    /// The class of [`Self::errno`].
    pub kind: KernelErrorKind,
    /// The errno, positive.
    pub errno: i32,
    /// The text of the extended ACK (`NLMSGERR_ATTR_MSG`), where the kernel gives one.
    pub message: Option<String>,
    /// Where in the request the kernel found fault (`NLMSGERR_ATTR_OFFS`), where it says so: bytes
    /// from the netlink header to the attribute.
    pub offset: Option<u32>,
    /// The refused request as the kernel echoes it: the bytes behind `struct nlmsgerr`, which are
    /// the request's payload. ipset writes the failing line number into that copy.
    pub echoed: Option<Vec<u8>>,
}

impl KernelError {
    /// A refusal with nothing but its number.
    pub fn from_errno(errno: i32) -> Self {
        Self {
            kind: KernelErrorKind::from_errno(errno),
            errno,
            message: None,
            offset: None,
            echoed: None,
        }
    }
}

impl std::error::Error for KernelError {}

/// The kernel's refusal of a transaction of nfnetlink, of which nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refused {}", self.what())]
#[non_exhaustive]
pub struct BatchRefusal {
    /// The index of the refused request; `None` if it is the transaction as a whole.
    pub request: Option<usize>,
    /// Why.
    #[source]
    pub error: KernelError,
}

impl BatchRefusal {
    /// A refusal of one request, or of all.
    pub fn new(request: Option<usize>, error: KernelError) -> Self {
        Self { request, error }
    }

    fn what(&self) -> String {
        match self.request {
            Some(index) => format!("request {index} of the transaction"),
            None => "the transaction".to_owned(),
        }
    }
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(errno, ..)| *errno == self.errno) {
            Some((_, name, text)) => write!(f, "{text} ({name})")?,
            None => write!(f, "error {}", self.errno)?,
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl KernelErrorKind {
    /// The class of an errno (positive).
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ESRCH | libc::ENODEV | libc::ENXIO | libc::EADDRNOTAVAIL => {
                Self::NotFound
            }
            libc::EEXIST => Self::AlreadyExists,
            libc::EBUSY | libc::EAGAIN => Self::Busy,
            libc::EPERM | libc::EACCES => Self::Permission,
            libc::EOPNOTSUPP
            | libc::EPROTONOSUPPORT
            | libc::EAFNOSUPPORT
            | libc::EPFNOSUPPORT
            | libc::ENOPROTOOPT
            | libc::ENOSYS => Self::Unsupported,
            libc::EINVAL | libc::ERANGE | libc::EMSGSIZE | libc::ENAMETOOLONG => Self::Invalid,
            libc::ENOSPC | libc::ENOMEM | libc::ENOBUFS => Self::Full,
            _ => Self::Other,
        }
    }
}

/// What netlink families answer. `strerror` would do for the text but not for the name, which is
/// what one searches for.
const NAMES: [(i32, &str, &str); 29] = [
    (libc::EPERM, "EPERM", "operation not permitted"),
    (libc::ENOENT, "ENOENT", "no such file or directory"),
    (libc::ESRCH, "ESRCH", "no such object"),
    (libc::EINTR, "EINTR", "interrupted"),
    (libc::EIO, "EIO", "input/output error"),
    (libc::ENXIO, "ENXIO", "no such device or address"),
    (libc::E2BIG, "E2BIG", "argument list too long"),
    (libc::EBADF, "EBADF", "bad file descriptor"),
    (libc::EAGAIN, "EAGAIN", "resource temporarily unavailable"),
    (libc::ENOMEM, "ENOMEM", "out of memory"),
    (libc::EACCES, "EACCES", "permission denied"),
    (libc::EFAULT, "EFAULT", "bad address"),
    (libc::EBUSY, "EBUSY", "device or resource busy"),
    (libc::EEXIST, "EEXIST", "already exists"),
    (libc::ENODEV, "ENODEV", "no such device"),
    (libc::EINVAL, "EINVAL", "invalid argument"),
    (libc::ENOSPC, "ENOSPC", "no space left"),
    (libc::ERANGE, "ERANGE", "out of range"),
    (libc::ENAMETOOLONG, "ENAMETOOLONG", "name too long"),
    (libc::ENOSYS, "ENOSYS", "not implemented"),
    (libc::EMSGSIZE, "EMSGSIZE", "message too long"),
    (libc::ENOPROTOOPT, "ENOPROTOOPT", "protocol not available"),
    (
        libc::EPROTONOSUPPORT,
        "EPROTONOSUPPORT",
        "protocol not supported",
    ),
    (libc::EOPNOTSUPP, "EOPNOTSUPP", "operation not supported"),
    (
        libc::EAFNOSUPPORT,
        "EAFNOSUPPORT",
        "address family not supported",
    ),
    (libc::EADDRINUSE, "EADDRINUSE", "address in use"),
    (
        libc::EADDRNOTAVAIL,
        "EADDRNOTAVAIL",
        "address not available",
    ),
    (libc::ENETDOWN, "ENETDOWN", "network is down"),
    (libc::ENOBUFS, "ENOBUFS", "no buffer space available"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_the_errno_and_adds_the_kernels_words() {
        let mut error = KernelError::from_errno(libc::ENOENT);
        assert_eq!(error.to_string(), "no such file or directory (ENOENT)");
        error.message = Some("Unknown scheduler".to_owned());
        assert_eq!(
            error.to_string(),
            "no such file or directory (ENOENT): Unknown scheduler"
        );
        assert_eq!(KernelError::from_errno(4103).to_string(), "error 4103");
    }

    #[test]
    fn classes_follow_the_errno() {
        for (errno, kind) in [
            (libc::ESRCH, KernelErrorKind::NotFound),
            (libc::EEXIST, KernelErrorKind::AlreadyExists),
            (libc::EPERM, KernelErrorKind::Permission),
            (libc::EAFNOSUPPORT, KernelErrorKind::Unsupported),
            (libc::EINVAL, KernelErrorKind::Invalid),
            (libc::ENOSPC, KernelErrorKind::Full),
            (libc::EBUSY, KernelErrorKind::Busy),
            (4352, KernelErrorKind::Other),
        ] {
            assert_eq!(KernelErrorKind::from_errno(errno), kind, "{errno}");
        }
    }
}
