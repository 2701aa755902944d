// SPDX-License-Identifier: Apache-2.0
//! PURE: forwarding without address translation, for the addresses that outside clients use.
//!
//! Replies then go straight to the client, so this works only where the packet reaches the endpoint
//! unchanged: at the same port, from outside, on another node. Everything else is translated as
//! usual. Clients inside get the mark of [`crate::plan::ipvs::marks`], whose virtual server
//! translates: otherwise the endpoint's reply to them would have a source address that is this
//! node's own, and kernels drop such packets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::ipvs_options::ForwardingMethod;
use crate::model::{Endpoint, ServicePort};
use crate::plan::context::Context;
use crate::plan::ipvs::object::{Forwarding, RealServer, RealServerKey, RealServers};
use crate::plan::ipvs::port_objects::{Extras, Role};
use crate::plan::unmet::{Obstacle, Unmet};

/// Whether the Service requests a method other than translation.
pub(super) fn is_wanted(service_port: &ServicePort) -> bool {
    method(service_port) != ForwardingMethod::Masquerade
}

fn method(service_port: &ServicePort) -> ForwardingMethod {
    let options = service_port.ipvs.as_deref();
    options.map_or(ForwardingMethod::Masquerade, |options| options.forwarding)
}

/// Whether addresses of this kind support it.
pub(super) const fn is_for(role: Role) -> bool {
    matches!(role, Role::ExternalIp | Role::LoadBalancer)
}

/// The real servers of addresses for which packets are not translated, if there are such addresses.
pub(super) fn servers(
    service_port: &ServicePort,
    (chosen, cluster): (&[&Endpoint], &RealServers),
    endpoints: &[Endpoint],
    context: &Context,
    mark: Option<u32>,
    extras: &mut Extras,
) -> Option<Arc<RealServers>> {
    if !is_wanted(service_port) {
        return None;
    }
    let unmet = &mut extras.unmet;
    let outside = outside(cluster, endpoints, context);
    let method = direct(service_port, (chosen, outside), context, mark, unmet)?;
    Some(Arc::new(of_remote(cluster, endpoints, method)))
}

/// How packets reach endpoints on other nodes, if not by translation.
fn direct(
    service_port: &ServicePort,
    (chosen, outside): (&[&Endpoint], Option<IpAddr>),
    context: &Context,
    mark: Option<u32>,
    unmet: &mut Vec<Unmet>,
) -> Option<Forwarding> {
    let method = method(service_port);
    let forwarding = match method {
        ForwardingMethod::Masquerade => return None,
        ForwardingMethod::DirectRouting => Forwarding::Route,
        ForwardingMethod::Tunnel(tunnel) => Forwarding::Tunnel(tunnel),
    };
    let refused = outside.filter(|_| matches!(forwarding, Forwarding::Tunnel(_)));
    let refused = refused.map(|address| Obstacle::TunnelOutside { address });
    let obstacle = obstacle(service_port, chosen, context, mark);
    if let Some(obstacle) = obstacle.or(refused) {
        unmet.push(Unmet::NoForwarding { method, obstacle });
        return None;
    }
    let node_port = service_port.node_port;
    unmet.push(Unmet::ForwardingInPart { method, node_port });
    Some(forwarding)
}

/// The same real servers; those on other nodes get another method.
fn of_remote(servers: &RealServers, endpoints: &[Endpoint], method: Forwarding) -> RealServers {
    let local: BTreeSet<IpAddr> = endpoints
        .iter()
        .filter(|endpoint| endpoint.local)
        .map(|endpoint| endpoint.address)
        .collect();
    let forwarding = |key: &RealServerKey| {
        if local.contains(&key.address) {
            Forwarding::Masquerade
        } else {
            method
        }
    };
    let of = |(key, server): (&RealServerKey, &RealServer)| {
        let forwarding = forwarding(key);
        (
            *key,
            RealServer {
                forwarding,
                ..*server
            },
        )
    };
    servers.iter().map(of).collect()
}

/// An endpoint on another node that a tunnel must not lead to. A tunnel's packets have the node's
/// own address: they must not reach whatever a Service names as its endpoint.
fn outside(servers: &RealServers, endpoints: &[Endpoint], context: &Context) -> Option<IpAddr> {
    let is_local = |address: IpAddr| {
        let mut local = endpoints.iter().filter(|endpoint| endpoint.local);
        local.any(|endpoint| endpoint.address == address)
    };
    let is_open = |address: IpAddr| {
        let mut ranges = context.tunnel_ranges.iter();
        ranges.any(|range| range.contains(&address))
    };
    let mut addresses = servers.keys().map(|key| key.address);
    addresses.find(|address| !is_open(*address) && !is_local(*address))
}

fn obstacle(
    service_port: &ServicePort,
    chosen: &[&Endpoint],
    context: &Context,
    mark: Option<u32>,
) -> Option<Obstacle> {
    let has_vip =
        !service_port.external_ips.is_empty() || !service_port.load_balancer_vips.is_empty();
    let mut remote = chosen.iter().filter(|endpoint| !endpoint.local);
    let other_port = remote.find(|endpoint| endpoint.port != service_port.port);
    if !has_vip {
        Some(Obstacle::NoVip)
    } else if service_port.external_policy_local {
        Some(Obstacle::LocalPolicy)
    } else if context.masquerade_all {
        Some(Obstacle::MasqueradeAll)
    } else if let Some(endpoint) = other_port {
        Some(Obstacle::TargetPort {
            port: service_port.port,
            target: endpoint.port,
        })
    } else if mark.is_none() {
        Some(Obstacle::NoMark)
    } else {
        None
    }
}
