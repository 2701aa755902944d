// SPDX-License-Identifier: Apache-2.0
//! PURE: what a Service requests and does not get, for Events and the log.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

pub use crate::model::Holder;
use crate::model::ServicePortName;
use crate::model::ipvs_options::{ForwardingMethod, Scheduler};
use crate::model::service_port::WIDE;
use crate::plan::ipvs::marks::SHARE;

/// A request of a Service that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmet {
    /// The kernel lacks the scheduler.
    SchedulerMissing { wanted: Scheduler, used: Arc<str> },
    /// The kernel lacks the scheduler that keeps clients behind a firewall mark with their
    /// endpoints. `None`: it lacks the next best one, too.
    ClientHashMissing {
        wanted: Scheduler,
        used: Option<Scheduler>,
    },
    /// Only `sh` and `mh` have flags.
    NoSchedulerFlags { scheduler: Arc<str> },
    /// The scheduler does not go by weights, so a new endpoint gets its whole share at once.
    NoSlowStart { scheduler: Arc<str> },
    /// The scheduler does not spread connections by weight.
    NoPlaceWeights { scheduler: Arc<str> },
    /// No endpoint is known to be in the zone of this node.
    NoZone,
    /// Datagrams are not scheduled one by one: their packets are masqueraded, those to one endpoint
    /// or all.
    NoOnePacket { endpoint: Option<IpAddr> },
    /// Another holder owns the address, so the node must not bind it.
    NotBound { address: IpAddr, holder: Holder },
    /// The same, and packets to it are the holder's as well. `binds`: in a mode that binds
    /// addresses.
    NotServed {
        address: IpAddr,
        holder: Holder,
        binds: bool,
    },
    /// Chains of this name are another Service port's, too.
    SameChains { other: ServicePortName },
    /// Older Services hold all firewall marks.
    NoMark,
    /// The Service wants more firewall marks than one may have.
    MarkShareUsed,
    /// The scheduler has a table for each virtual server, and the Service has very many of them.
    SchedulerTooCostly { wanted: Scheduler, used: Arc<str> },
    /// The kernel would have to load a module that no operator allows Services to ask for.
    SchedulerNotAllowed { wanted: Scheduler, used: Arc<str> },
    /// Clients cannot be kept in sets: an endpoint remembers its last ones only.
    FewClients { clients: u32 },
    /// Nothing can remember clients.
    NoAffinity,
    /// All packets are masqueraded instead.
    NoForwarding {
        method: ForwardingMethod,
        obstacle: Obstacle,
    },
    /// Some packets are still masqueraded.
    ForwardingInPart {
        method: ForwardingMethod,
        node_port: Option<NonZeroU16>,
    },
}

impl Unmet {
    /// Who has the address that the Service does not get.
    pub const fn holder(&self) -> Option<Holder> {
        match self {
            Self::NotBound { holder, .. } | Self::NotServed { holder, .. } => Some(*holder),
            _ => None,
        }
    }
}

/// Why packets cannot be forwarded without translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// No external IP and no load-balancer VIP.
    NoVip,
    /// The external traffic policy is Local.
    LocalPolicy,
    /// `--masquerade-all`.
    MasqueradeAll,
    /// The endpoints serve at another port.
    TargetPort { port: u16, target: u16 },
    /// No firewall mark is left to distinguish clients inside from those outside.
    NoMark,
    /// An endpoint is outside of the ranges that tunnels may lead to.
    TunnelOutside { address: IpAddr },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVip => f.write_str("the Service has no external IP and no load-balancer VIP"),
            Self::LocalPolicy => {
                f.write_str("with externalTrafficPolicy Local all endpoints are on this node")
            }
            Self::MasqueradeAll => f.write_str("--masquerade-all is set"),
            Self::TargetPort { port, target } => write!(
                f,
                "packets keep their port {port}, but the endpoints serve at {target}"
            ),
            Self::NoMark => f.write_str("no firewall mark is left"),
            Self::TunnelOutside { address } => write!(
                f,
                "tunnels lead to the pods' ranges and to those in --tunnel-cidrs only, and endpoint {address} is outside"
            ),
        }
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SchedulerMissing { wanted, used } => write!(
                f,
                "this node's kernel has no scheduler {wanted} (module ip_vs_{wanted}); {used} is used"
            ),
            Self::ClientHashMissing { wanted, used } => {
                write!(
                    f,
                    "this node's kernel has no scheduler {wanted} (module ip_vs_{wanted}), which keeps clients in the cluster with their endpoints at external addresses; "
                )?;
                match used {
                    Some(used) => write!(f, "{used} is used, with which more clients move when endpoints change"),
                    None => f.write_str("there is no alternative, so they have no session affinity there"),
                }
            }
            Self::NoSchedulerFlags { scheduler } => write!(
                f,
                "scheduler {scheduler} has no flags (only sh and mh do); they are ignored"
            ),
            Self::NoSlowStart { scheduler } => write!(
                f,
                "scheduler {scheduler} does not let endpoints start slowly (wrr, wlc, sed, nq and twos do); a new one gets its whole share at once"
            ),
            Self::NoPlaceWeights { scheduler } => write!(
                f,
                "scheduler {scheduler} does not spread connections by weight (wrr, wlc, sed, nq, twos and mh do), so topology-weights do not prefer near endpoints"
            ),
            Self::NoZone => f.write_str(
                "this node has no label topology.kubernetes.io/zone, so topology-weights take no endpoint for one of the same zone",
            ),
            Self::NoOnePacket { endpoint } => {
                f.write_str("datagrams are not scheduled one by one: ")?;
                match endpoint {
                    Some(endpoint) => write!(f, "packets to endpoint {endpoint} are masqueraded, and it")?,
                    None => f.write_str("packets are masqueraded (see forwarding-method), and endpoints")?,
                }
                f.write_str(" would answer from an address that the client has not asked")
            }
            Self::NotBound { address, holder } => {
                write!(f, "address {address} is not bound to kube-ipvs0: {holder}")
            }
            Self::NotServed {
                address,
                holder,
                binds,
            } => {
                let bound = if *binds { "bound to kube-ipvs0 and not " } else { "" };
                write!(f, "address {address} is not {bound}served: {holder}")
            }
            Self::SameChains { other } => write!(
                f,
                "not served, nor is port {other}: the hashes of both names, and so their chains, are the same; rename one"
            ),
            Self::NoMark => f.write_str(
                "older Services hold all firewall marks; pods and the node reach local endpoints only",
            ),
            Self::MarkShareUsed => write!(
                f,
                "other ports of this Service have the {SHARE} firewall marks that it may have; pods and the node reach local endpoints only"
            ),
            Self::SchedulerTooCostly { wanted, used } => write!(
                f,
                "scheduler {wanted} takes kernel memory for each virtual server, and this Service has more than {WIDE} of them; {used} is used"
            ),
            Self::SchedulerNotAllowed { wanted, used } => write!(
                f,
                "scheduler {wanted} is not loaded in this node's kernel, and --service-schedulers does not list it; {used} is used"
            ),
            Self::FewClients { clients } => write!(
                f,
                "this node keeps no ipset of its clients (kernel modules ip_set_hash_ip and xt_set): each endpoint remembers its last {clients} clients (xt_recent), and all others lose their session affinity"
            ),
            Self::NoAffinity => f.write_str(
                "this node's kernel or iptables has neither ipsets (kernel modules ip_set_hash_ip and xt_set) nor xt_recent, so clients have no session affinity",
            ),
            Self::NoForwarding { method, obstacle } => write!(
                f,
                "forwarding method {method} is not possible, packets are masqueraded: {obstacle}"
            ),
            Self::ForwardingInPart { method, node_port } => {
                write!(
                    f,
                    "forwarding method {method} applies only to external IPs and load-balancer VIPs, for clients outside the cluster and endpoints on other nodes; all other traffic is masqueraded: to the cluster IP"
                )?;
                if let Some(port) = node_port {
                    write!(f, ", to node port {port}")?;
                }
                f.write_str(" and from clients in the cluster")
            }
        }
    }
}
