// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in a conversation with IPVS.

use super::name::KernelName;
use super::service::ServiceKey;
use netlink_pipeline::attribute::{AttributeTooLong, DecodeError};
use netlink_pipeline::{KernelError, NetlinkError};

/// A failed call of the client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not know the family and could not load it.
    #[error("IPVS is not available: kernel module ip_vs is neither loaded nor loadable")]
    NotAvailable(#[source] KernelError),
    /// The kernel knows IPVS but not us.
    #[error("no permission to use IPVS: CAP_NET_ADMIN is needed")]
    Permission(#[source] KernelError),
    /// The kernel has no such scheduler and could not load it.
    #[error("IPVS scheduler \"{scheduler}\" is not available: kernel module ip_vs_{scheduler}")]
    SchedulerNotAvailable {
        scheduler: KernelName,
        #[source]
        source: KernelError,
    },
    /// The kernel refused the virtual service that was to try a scheduler out.
    #[error("cannot try out IPVS scheduler \"{scheduler}\" with virtual service {service}")]
    Probe {
        scheduler: KernelName,
        service: ServiceKey,
        #[source]
        source: KernelError,
    },
    #[error("cannot read IPVS service {service}")]
    Service {
        service: ServiceKey,
        #[source]
        source: KernelError,
    },
    /// A command that has no object.
    #[error("IPVS refused to {what}")]
    Command {
        what: &'static str,
        #[source]
        source: KernelError,
    },
    /// The conversation broke down.
    #[error("cannot {what} over netlink")]
    Netlink {
        what: &'static str,
        #[source]
        source: NetlinkError,
    },
    /// The kernel's answer makes no sense to us.
    #[error("cannot decode the kernel's answer: cannot {what}")]
    Decode {
        what: &'static str,
        #[source]
        source: DecodeError,
    },
    /// A request has an attribute that netlink cannot carry.
    #[error("request about IPVS is too long")]
    TooLong(#[from] AttributeTooLong),
}
