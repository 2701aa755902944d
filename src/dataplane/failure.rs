// SPDX-License-Identifier: Apache-2.0
//! Classifies errors by what they mean for the step that failed.
//!
//! Only the kernel's own answer is a refusal. A conversation that broke off (a time-out, an
//! overrun, a lost socket, a program that could not run) says nothing about the request: it is
//! [`FailureKind::Transient`] and the step is retried. A program that used more time than its input
//! deserves is [`FailureKind::TimedOut`]: the same input would take it again.

use std::error::Error;
use std::io;

use super::conntrack;
use super::exec::ExecError;
use super::iptables::{IptablesError, RestoreFailureKind};
use super::links::LinkError;
use super::nftables::NftablesError;
use super::sysctl::SysctlError;
use crate::telemetry::ErrorChain;
use ipset_netlink::{self as ipset, InvalidSetName, SetErrorKind};
use ipvs_netlink::{self as ipvs, InvalidName};
use kpr_core::plan::{Failure, FailureKind, Outcome};
use netlink_pipeline::{KernelError, KernelErrorKind, NetlinkError};
use nft_netlink as nft;

/// An error of the dataplane.
pub trait Failed: Error + Sized + 'static {
    /// What it means for what is done next.
    fn failure_kind(&self) -> FailureKind;

    /// The error as the planner takes it, with all its causes.
    fn failure(&self) -> Failure {
        Failure {
            kind: self.failure_kind(),
            message: ErrorChain(self).to_string(),
        }
    }
}

/// The outcome of a step that goes by itself.
pub(super) fn outcome<E: Failed>(result: &Result<(), E>) -> Outcome {
    match result {
        Ok(()) => Outcome::Done,
        Err(error) => failed(error),
    }
}

pub(super) fn failed(error: &impl Failed) -> Outcome {
    Outcome::Failed(error.failure())
}

impl Failed for KernelError {
    fn failure_kind(&self) -> FailureKind {
        match self.kind {
            KernelErrorKind::NotFound => FailureKind::NotFound,
            KernelErrorKind::AlreadyExists => FailureKind::AlreadyExists,
            KernelErrorKind::Busy => FailureKind::Busy,
            KernelErrorKind::Full => FailureKind::Full,
            KernelErrorKind::Permission => FailureKind::Permission,
            KernelErrorKind::Unsupported => FailureKind::Unsupported,
            _ => FailureKind::Other,
        }
    }
}

/// The kernel did not even answer a first, general question.
const fn unavailable(refusal: &KernelError) -> FailureKind {
    match refusal.kind {
        KernelErrorKind::Permission => FailureKind::Permission,
        _ => FailureKind::Unsupported,
    }
}

impl Failed for NetlinkError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Refused(refusal) => refusal.failure_kind(),
            // Never sent, and no shorter next time.
            Self::TooLong { .. } => FailureKind::Other,
            Self::Open { source, .. } | Self::Send { source, .. } | Self::Receive(source)
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                FailureKind::Permission
            }
            _ => FailureKind::Transient,
        }
    }
}

impl Failed for ipvs::Error {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::NotAvailable(_) | Self::SchedulerNotAvailable { .. } => FailureKind::Unsupported,
            Self::Permission(_) => FailureKind::Permission,
            Self::Probe { source, .. }
            | Self::Service { source, .. }
            | Self::Command { source, .. } => source.failure_kind(),
            Self::Netlink { source, .. } => source.failure_kind(),
            Self::TooLong(_) => FailureKind::Other,
            _ => FailureKind::Transient,
        }
    }
}

impl Failed for ipset::SetError {
    fn failure_kind(&self) -> FailureKind {
        match self.kind {
            SetErrorKind::NotFound => FailureKind::NotFound,
            SetErrorKind::AlreadyExists => FailureKind::AlreadyExists,
            SetErrorKind::Full => FailureKind::Full,
            SetErrorKind::Busy => FailureKind::Busy,
            SetErrorKind::UnknownType => FailureKind::Unsupported,
            SetErrorKind::Permission => FailureKind::Permission,
            _ => FailureKind::Other,
        }
    }
}

impl Failed for ipset::EntryFailure {
    fn failure_kind(&self) -> FailureKind {
        self.refusal.failure_kind()
    }
}

impl Failed for ipset::Error {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Netlink(error) => error.failure_kind(),
            Self::Unavailable(refusal) => unavailable(refusal),
            Self::Refused { source, .. } | Self::TypeUnavailable { source, .. } => {
                source.failure_kind()
            }
            Self::Protocol { .. } | Self::Revision { .. } => FailureKind::Unsupported,
            Self::TooLong(_) => FailureKind::Other,
            _ => FailureKind::Transient,
        }
    }
}

/// A name that is too long is not sent.
impl Failed for InvalidName {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::Other
    }
}

/// A name that is too long is not sent.
impl Failed for InvalidSetName {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::Other
    }
}

impl Failed for LinkError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Netlink(error) => error.failure_kind(),
            Self::Refused { source, .. } => source.failure_kind(),
            Self::NotDummy { .. } => FailureKind::AlreadyExists,
            Self::Vanished { .. } | Self::Malformed(_) | Self::Watch(_) => FailureKind::Transient,
        }
    }
}

impl Failed for conntrack::Error {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Netlink(error) => error.failure_kind(),
            Self::Unavailable(refusal) => unavailable(refusal),
            Self::Refused { source, .. } => source.failure_kind(),
            Self::TooLong(_) => FailureKind::Other,
            Self::Malformed(_) | Self::Undecodable(_) => FailureKind::Transient,
        }
    }
}

impl Failed for NftablesError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Nft(error) => error.failure_kind(),
            // Never sent.
            Self::Name(_) => FailureKind::Other,
        }
    }
}

impl Failed for nft::Error {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::NotAvailable(_) => FailureKind::Unsupported,
            Self::Permission(_) => FailureKind::Permission,
            Self::Refused { first, .. } => first.source.failure_kind(),
            Self::Listing { source, .. } => source.failure_kind(),
            Self::Netlink { source, .. } => source.failure_kind(),
            Self::TooLong(_) => FailureKind::Other,
            _ => FailureKind::Transient,
        }
    }
}

impl Failed for nft::Refusal {
    fn failure_kind(&self) -> FailureKind {
        self.source.failure_kind()
    }
}

/// A name that is too long is not sent.
impl Failed for nft::InvalidName {
    fn failure_kind(&self) -> FailureKind {
        FailureKind::Other
    }
}

impl Failed for SysctlError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Missing { .. } => FailureKind::NotFound,
            Self::Permission { .. } => FailureKind::Permission,
            _ => FailureKind::Other,
        }
    }
}

impl Failed for ExecError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::TimedOut { .. } => FailureKind::TimedOut,
            _ => FailureKind::Transient,
        }
    }
}

impl Failed for IptablesError {
    fn failure_kind(&self) -> FailureKind {
        match self {
            Self::Exec(error) => error.failure_kind(),
            Self::Restore { source, .. } => match source.kind {
                RestoreFailureKind::LockHeld | RestoreFailureKind::Signal => FailureKind::Transient,
                RestoreFailureKind::Permission => FailureKind::Permission,
                RestoreFailureKind::Busy => FailureKind::Busy,
                _ => FailureKind::Other,
            },
            _ => FailureKind::Other,
        }
    }
}
