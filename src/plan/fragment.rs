// SPDX-License-Identifier: Apache-2.0
//! PURE: all that one Service port wants in the kernel in IPVS mode, in one family.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::compact::CompactMap;
use super::context::Context;
use super::object::{
    Forwarding, RealServer, RealServerKey, RealServers, VirtualServer, VirtualServerKey, flags,
};
use super::set::{SetEntry, SetId};
use crate::model::topology::{self, Choice};
use crate::model::{Endpoint, Protocol, ServicePort};

/// What one Service port wants. Two Service ports may want the same address, entry or even virtual
/// server; [`super::desired::Desired`] settles that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// The Service's age; the oldest claim on a virtual server wins.
    pub created: i64,
    pub virtual_servers: CompactMap<VirtualServerKey, WantedServer>,
    /// In order, each once, as are entries.
    pub addresses: Box<[IpAddr]>,
    /// The entries that belong to no virtual server.
    pub entries: Box<[(SetId, SetEntry)]>,
    /// The internal, the external policy is Local and no endpoint is on this node, though
    /// elsewhere there are some.
    pub no_local_internal: bool,
    pub no_local_external: bool,
}

/// A virtual server and its real servers. Those of one Service port and policy share the latter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedServer {
    pub server: VirtualServer,
    pub real_servers: Arc<RealServers>,
    /// The entries that admit, masquerade or filter its packets. Only the claimant that has the
    /// virtual server gets them: another Service's source ranges must not open or close it.
    pub entries: Box<[(SetId, SetEntry)]>,
}

/// The kinds of addresses at which a Service port answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

impl Role {
    /// The traffic policy of the role is Local.
    fn is_local(self, service_port: &ServicePort) -> bool {
        match self {
            Self::ClusterIp => service_port.internal_policy_local,
            Self::ExternalIp | Self::LoadBalancer | Self::NodePort => {
                service_port.external_policy_local
            }
        }
    }
}

/// One address and port at which a Service port answers.
struct Frontend {
    role: Role,
    address: IpAddr,
    port: u16,
}

/// Computes the fragment of a Service port from all of its endpoints.
pub fn fragment(service_port: &ServicePort, endpoints: &[Endpoint], context: &Context) -> Fragment {
    let choice = topology::choose(service_port, endpoints, context.zone.as_deref());
    let server = virtual_server(service_port, context);
    let cluster = real_servers(&choice.cluster);
    let local = real_servers(&choice.local);
    let mut virtual_servers: BTreeMap<_, (&Arc<RealServers>, BTreeSet<_>)> = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    let mut entries = BTreeSet::new();
    for frontend in frontends(service_port, context) {
        let is_local = frontend.role.is_local(service_port);
        let key = VirtualServerKey::Address {
            address: frontend.address,
            port: frontend.port,
            protocol: service_port.name.protocol,
        };
        let real_servers = if is_local { &local } else { &cluster };
        // An address may have two roles (an external IP that is also a load balancer's). Both have
        // the same policy, so only their entries add up.
        let (_, of_server) = virtual_servers
            .entry(key)
            .or_insert_with(|| (real_servers, BTreeSet::new()));
        add_entries(of_server, &frontend, service_port, context);
        if frontend.role != Role::NodePort && !context.node_addresses.contains(&frontend.address) {
            addresses.insert(frontend.address);
            entries.insert((SetId::IpvsIps, SetEntry::Ip(frontend.address)));
        }
    }
    add_loop_back_entries(&mut entries, service_port.name.protocol, endpoints);
    if let Some(port) = service_port.health_check_node_port {
        entries.insert((SetId::HealthCheckNodePort, SetEntry::Port(port.get())));
    }
    let virtual_servers: BTreeMap<_, _> = virtual_servers
        .into_iter()
        .map(|(key, (real_servers, entries))| {
            let wanted = WantedServer {
                server: server.clone(),
                real_servers: real_servers.clone(),
                entries: entries.into_iter().collect(),
            };
            (key, wanted)
        })
        .collect();
    Fragment {
        created: service_port.created,
        virtual_servers: virtual_servers.into(),
        addresses: addresses.into_iter().collect(),
        entries: entries.into_iter().collect(),
        no_local_internal: lacks_local(&choice, service_port.internal_policy_local),
        no_local_external: lacks_local(
            &choice,
            service_port.external_policy_local && service_port.is_externally_accessible(),
        ),
    }
}

fn frontends(service_port: &ServicePort, context: &Context) -> Vec<Frontend> {
    let at = |role, addresses: &[IpAddr], port| {
        addresses
            .iter()
            .map(move |address| Frontend {
                role,
                address: *address,
                port,
            })
            .collect::<Vec<_>>()
    };
    let port = service_port.port;
    let mut frontends = at(Role::ClusterIp, &[service_port.cluster_ip], port);
    frontends.extend(at(Role::ExternalIp, &service_port.external_ips, port));
    frontends.extend(at(
        Role::LoadBalancer,
        &service_port.load_balancer_vips,
        port,
    ));
    if let Some(node_port) = service_port.node_port {
        let addresses: Vec<_> = context.node_port_addresses.iter().copied().collect();
        frontends.extend(at(Role::NodePort, &addresses, node_port.get()));
    }
    frontends
}

fn virtual_server(service_port: &ServicePort, context: &Context) -> VirtualServer {
    // A server of weight 0 is draining: hashing must not choose it. The port makes `mh` spread the
    // connections of one client, as kube-proxy has it.
    let mut server_flags = match &*context.scheduler {
        "mh" => flags::SCHED_FALLBACK | flags::SCHED_PORT,
        "sh" => flags::SCHED_FALLBACK,
        _ => 0,
    };
    let mut timeout = 0;
    if let Some(affinity) = service_port.client_ip_affinity {
        server_flags |= flags::PERSISTENT;
        timeout = u32::try_from(affinity.as_secs()).unwrap_or(u32::MAX);
    }
    VirtualServer {
        scheduler: context.scheduler.clone(),
        flags: server_flags,
        timeout,
        netmask: service_port.family.host_prefix_len(),
    }
}

/// This is where an endpoint becomes a real server.
fn real_servers(endpoints: &[&Endpoint]) -> Arc<RealServers> {
    let server = RealServer {
        weight: 1,
        forwarding: Forwarding::Masquerade,
    };
    Arc::new(
        endpoints
            .iter()
            .map(|e| {
                (
                    RealServerKey {
                        address: e.address,
                        port: e.port,
                    },
                    server,
                )
            })
            .collect(),
    )
}

fn lacks_local(choice: &Choice<'_>, policy_is_local: bool) -> bool {
    policy_is_local && choice.has_any && choice.local.is_empty()
}

/// The entries that make the fixed rules masquerade, admit or filter a frontend.
fn add_entries(
    entries: &mut BTreeSet<(SetId, SetEntry)>,
    frontend: &Frontend,
    service_port: &ServicePort,
    context: &Context,
) {
    let Frontend {
        role,
        address,
        port,
    } = *frontend;
    let protocol = service_port.name.protocol;
    let is_local = role.is_local(service_port);
    let frontend_entry = SetEntry::IpPort(address, protocol, port);
    match role {
        Role::ClusterIp => {
            entries.insert((SetId::ClusterIp, frontend_entry));
        }
        Role::ExternalIp => {
            let set = if is_local {
                SetId::ExternalIpLocal
            } else {
                SetId::ExternalIp
            };
            entries.insert((set, frontend_entry));
        }
        Role::LoadBalancer => {
            entries.insert((SetId::LoadBalancer, frontend_entry));
            if is_local {
                entries.insert((SetId::LoadBalancerLocal, frontend_entry));
            }
            if !service_port.load_balancer_source_ranges.is_empty() {
                entries.insert((SetId::LoadBalancerFw, frontend_entry));
                entries.extend(
                    service_port
                        .load_balancer_source_ranges
                        .iter()
                        .map(|range| {
                            let entry = SetEntry::IpPortNet(address, protocol, port, *range);
                            (SetId::LoadBalancerSourceCidr, entry)
                        }),
                );
                if service_port.admits_node(context.node_ip) {
                    let entry = SetEntry::IpPortIp(address, protocol, port, address);
                    entries.insert((SetId::LoadBalancerSourceIp, entry));
                }
            }
        }
        Role::NodePort => {
            let (all, local, entry) = match protocol {
                Protocol::Tcp => (
                    SetId::NodePortTcp,
                    SetId::NodePortLocalTcp,
                    SetEntry::Port(port),
                ),
                Protocol::Udp => (
                    SetId::NodePortUdp,
                    SetId::NodePortLocalUdp,
                    SetEntry::Port(port),
                ),
                Protocol::Sctp => (
                    SetId::NodePortSctp,
                    SetId::NodePortLocalSctp,
                    frontend_entry,
                ),
            };
            entries.insert((all, entry));
            if is_local {
                entries.insert((local, entry));
            }
        }
    }
}

/// A pod that reaches itself through a Service must be masqueraded, or it would answer itself
/// directly. Only pods of this node can meet that here, in whatever condition they are.
fn add_loop_back_entries(
    entries: &mut BTreeSet<(SetId, SetEntry)>,
    protocol: Protocol,
    endpoints: &[Endpoint],
) {
    entries.extend(
        endpoints
            .iter()
            .filter(|endpoint| endpoint.local)
            .map(|endpoint| {
                let address = endpoint.address;
                (
                    SetId::LoopBack,
                    SetEntry::IpPortIp(address, protocol, endpoint.port, address),
                )
            }),
    );
}

#[cfg(test)]
mod tests;
