// SPDX-License-Identifier: Apache-2.0
//! What can go wrong in a conversation with IPVS.

use super::name::KernelName;
use super::service::ServiceKey;
use netlink_pipeline::attribute::{AttributeTooLong, DecodeError};
use netlink_pipeline::{KernelError, NetlinkError};

/// A failed call of the client.
///
/// A refusal by the kernel has its [`KernelError`] as source; a conversation that broke down its
/// [`NetlinkError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel does not know the family and could not load it.
    #[error("IPVS is not available: kernel module ip_vs is neither loaded nor loadable")]
    NotAvailable(#[source] KernelError),
    /// The process lacks `CAP_NET_ADMIN` in the user namespace of its network namespace.
    #[error("no permission to use IPVS: CAP_NET_ADMIN is needed")]
    Permission(#[source] KernelError),
    /// The kernel has no such scheduler and could not load it.
    #[error("IPVS scheduler \"{scheduler}\" is not available: kernel module ip_vs_{scheduler}")]
    SchedulerNotAvailable {
        /// The scheduler that was asked for.
        scheduler: KernelName,
        /// `ENOENT`.
        #[source]
        source: KernelError,
    },
    /// The kernel refused the virtual service that was to try a scheduler out, or its deletion.
    #[error("cannot try out IPVS scheduler \"{scheduler}\" with virtual service {service}")]
    Probe {
        /// The scheduler that was tried out.
        scheduler: KernelName,
        /// The virtual service, which is still there where its deletion was refused.
        service: ServiceKey,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The kernel refused to show a service. One that does not exist is no error.
    #[error("cannot read IPVS service {service}")]
    Service {
        /// The service that was asked for.
        service: ServiceKey,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The kernel refused a command that is not about one object.
    #[error("IPVS refused to {what}")]
    Command {
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
    #[error("request about IPVS is too long")]
    TooLong(#[from] AttributeTooLong),
}
