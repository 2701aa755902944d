// SPDX-License-Identifier: Apache-2.0
//! PURE: answers to clients on the node that IPVS would take for new connections.
//!
//! IPVS schedules every TCP packet with SYN and every UDP packet to the address and port of a
//! virtual server that belongs to no connection it knows: also the answer to a client on the node
//! whose own port equals a node port. conntrack knows better. Such answers get a mark with a
//! virtual server of its own, whose only real server is the node itself by direct routing, so that
//! they go on as they came.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::model::IpFamily;
use crate::plan::claim::Right;
use crate::plan::context::Context;
use crate::plan::ipvs::mark::{MarkRange, is_pass};
use crate::plan::ipvs::object::{
    Forwarding, RealServer, RealServerKey, RealServers, VirtualServer, VirtualServerKey, flags,
};
use crate::plan::ipvs::port_objects::WantedServer;
use crate::plan::ipvs::set::SetId;
use crate::plan::ipvs::state::VirtualServerState;

/// The sets with the virtual servers at addresses that a client on the node may have, by which its
/// answers are known.
pub const SETS: [SetId; 4] = [
    SetId::NodePort,
    SetId::LoadBalancer,
    SetId::ExternalIp,
    SetId::ExternalIpLocal,
];

/// The comment of the rules that mark such answers.
pub const COMMENT: &str = "answers to clients of the node";

/// The node, where packets keep their port.
fn itself(family: IpFamily) -> RealServerKey {
    let address: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
        IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    RealServerKey { address, port: 0 }
}

/// Whether a virtual server in the kernel is the one of such answers, whoever made it.
pub fn is(key: &VirtualServerKey, present: &VirtualServerState) -> bool {
    let VirtualServerKey::Mark { mark, family } = key else {
        return false;
    };
    is_pass(*mark) && present.real_servers.keys().all(|it| *it == itself(*family))
}

/// The virtual server of such answers.
pub fn virtual_server(context: &Context) -> (VirtualServerKey, WantedServer) {
    let family = context.family;
    let node = RealServer {
        weight: 1,
        forwarding: Forwarding::Route,
        ..RealServer::default()
    };
    let wanted = WantedServer {
        server: VirtualServer {
            scheduler: context.scheduler.clone(),
            // Nothing is remembered of a datagram, for the same ports may be a client's later.
            flags: flags::ONE_PACKET,
            timeout: 0,
            netmask: family.host_prefix_len(),
        },
        right: Right::NodePort,
        real_servers: Arc::new(RealServers::from_iter([(itself(family), node)])),
        entries: Box::default(),
    };
    let mark = MarkRange::beside(context.masquerade_mark).pass();
    (VirtualServerKey::Mark { mark, family }, wanted)
}
