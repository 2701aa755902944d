// SPDX-License-Identifier: Apache-2.0
//! PURE: what a Service asks of IPVS mode and does not get here: said in Events and in the log.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use crate::model::ipvs_options::{ForwardingMethod, Scheduler};

/// Something that a Service asks for and that cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmet {
    /// The kernel lacks the scheduler.
    SchedulerMissing { wanted: Scheduler, used: Arc<str> },
    /// The kernel lacks the scheduler that keeps clients behind a firewall mark with their
    /// endpoints. `None`: it lacks the next best, too.
    ClientHashMissing {
        wanted: Scheduler,
        used: Option<Scheduler>,
    },
    /// Only `sh` and `mh` have flags.
    NoSchedulerFlags { scheduler: Arc<str> },
    /// The address is somebody's: the node does not take it for its own.
    NotBound { address: IpAddr, holder: Holder },
    /// Older Services have all firewall marks.
    NoMark,
    /// All packets are masqueraded instead.
    NoForwarding {
        method: ForwardingMethod,
        obstacle: Obstacle,
    },
    /// Some packets are masqueraded nevertheless.
    ForwardingInPart {
        method: ForwardingMethod,
        node_port: Option<NonZeroU16>,
    },
}

/// Whose an address is that a Service claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// This node has it on a link that is not ours.
    OtherLink,
    /// The Node object names it.
    Node,
    /// The default route leads there.
    Gateway,
    ApiServer,
    /// Endpoints of some Service have it.
    Endpoint,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherLink => "it is on another link of this node",
            Self::Node => "it is this node's address",
            Self::Gateway => "it is the default gateway's",
            Self::ApiServer => "it is the API server's",
            Self::Endpoint => "it is an endpoint's",
        })
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
    /// No firewall mark is left to tell clients inside from those outside.
    NoMark,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVip => f.write_str("it has no external IP and no load-balancer VIP"),
            Self::LocalPolicy => {
                f.write_str("with externalTrafficPolicy Local all endpoints are on this node")
            }
            Self::MasqueradeAll => f.write_str("--masquerade-all is set"),
            Self::TargetPort { port, target } => write!(
                f,
                "packets keep their port {port}, but the endpoints serve at {target}"
            ),
            Self::NoMark => f.write_str("no firewall mark is left"),
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
                    Some(used) => write!(f, "{used} is used: more clients move when endpoints change"),
                    None => f.write_str("there is no other: they have no session affinity there"),
                }
            }
            Self::NoSchedulerFlags { scheduler } => write!(
                f,
                "scheduler {scheduler} has no flags, only sh and mh have; they are ignored"
            ),
            Self::NotBound { address, holder } => {
                write!(f, "address {address} is not bound to kube-ipvs0: {holder}")
            }
            Self::NoMark => f.write_str(
                "older Services have all firewall marks; pods and the node reach local endpoints only",
            ),
            Self::NoForwarding { method, obstacle } => write!(
                f,
                "forwarding method {method} is not possible, packets are masqueraded: {obstacle}"
            ),
            Self::ForwardingInPart { method, node_port } => {
                write!(
                    f,
                    "forwarding method {method} is for external IPs and load-balancer VIPs, for clients outside of the cluster and endpoints on other nodes; masqueraded are the cluster IP"
                )?;
                if let Some(port) = node_port {
                    write!(f, ", node port {port}")?;
                }
                f.write_str(" and clients in the cluster")
            }
        }
    }
}
