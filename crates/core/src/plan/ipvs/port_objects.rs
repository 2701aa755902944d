// SPDX-License-Identifier: Apache-2.0
//! PURE: everything that one Service port wants in the kernel in IPVS mode, in one family.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::holders::Held;
use crate::model::ipvs_options::Thresholds;
use crate::model::topology::{self, Choice};
use crate::model::{Endpoint, Protocol, ServicePort, ServicePortName};
use crate::plan::claim::{Claim, Right};
use crate::plan::compact::CompactMap;
use crate::plan::context::{Context, IpvsRules};
use crate::plan::ipvs::object::{
    Forwarding, RealServer, RealServerKey, RealServers, VirtualServer, VirtualServerKey,
};
use crate::plan::ipvs::ramps;
use crate::plan::ipvs::set::{SetEntry, SetId};
use crate::plan::unmet::{Holder, Unmet};

mod forwarding;
mod server;

pub use server::CLIENT_HASHES;

/// The objects of one Service port. Two Service ports may want the same address, entry or even
/// virtual server; [`crate::plan::ipvs::desired::Desired`] resolves that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortObjects {
    /// The Service's age, which decides between claims on a virtual server by the same right.
    pub created: i64,
    pub virtual_servers: CompactMap<VirtualServerKey, WantedServer>,
    /// To be bound. Sorted and deduplicated, like the entries.
    pub addresses: Box<[IpAddr]>,
    /// Those of them that are external IPs only: an endpoint that has one goes before it.
    pub lendable: Box<[IpAddr]>,
    /// The entries that belong to no virtual server.
    pub entries: Box<[(SetId, SetEntry)]>,
    /// The internal or external policy is Local and no endpoint is on this node, although there are
    /// some elsewhere.
    pub no_local_internal: bool,
    pub no_local_external: bool,
    /// What follows from annotations. Nearly all Services have none.
    pub extras: Option<Box<Extras>>,
}

impl PortObjects {
    /// The claim of the Service port on a virtual server.
    pub fn claim(&self, key: &VirtualServerKey, name: &ServicePortName) -> Claim {
        let right = self.virtual_servers.get(key).map(|wanted| wanted.right);
        Claim::new(right.unwrap_or_default(), self.created, name.clone())
    }

    /// All entries, those of its virtual servers too.
    pub fn entries_of_all(&self) -> impl Iterator<Item = &(SetId, SetEntry)> {
        let of_servers = self.virtual_servers.values();
        let of_servers = of_servers.flat_map(|server| &server.entries);
        self.entries.iter().chain(of_servers)
    }

    /// Requests that cannot be met.
    pub fn unmet(&self) -> impl Iterator<Item = &Unmet> {
        self.extras.iter().flat_map(|extras| &extras.unmet)
    }
}

/// The effects of a Service's annotations, apart from objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extras {
    pub drain_limit: Option<Duration>,
    /// The time in which a new real server gets its whole weight, where the scheduler goes by
    /// weights.
    pub slow_start: Option<Duration>,
    /// Requests that cannot be met.
    pub unmet: Vec<Unmet>,
}

impl Extras {
    fn lacks(&mut self, unmet: Unmet) {
        if !self.unmet.contains(&unmet) {
            self.unmet.push(unmet);
        }
    }
}

/// A virtual server and its real servers, which those of one Service port and policy share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedServer {
    pub server: VirtualServer,
    /// By what the Service port claims it.
    pub right: Right,
    pub real_servers: Arc<RealServers>,
    /// The entries that admit, masquerade or filter its packets. Only the winner of the virtual
    /// server gets them: another Service's source ranges must not open or close it.
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
    const fn right(self) -> Right {
        match self {
            Self::ClusterIp => Right::ClusterIp,
            Self::LoadBalancer => Right::LoadBalancer,
            Self::NodePort => Right::NodePort,
            Self::ExternalIp => Right::ExternalIp,
        }
    }

    /// Whether the traffic policy of the role is Local.
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
    /// Packets of outside clients must not be masqueraded: their address is needed, or the endpoint
    /// replies to them directly. Inside clients have another virtual server, by their mark.
    is_split: bool,
}

/// Whether a Service port needs a mark: its external addresses serve outside clients from local
/// endpoints, but pods and the node from all, or its packets from outside are to be forwarded
/// without translation.
pub fn needs_mark(service_port: &ServicePort) -> bool {
    (service_port.external_policy_local || forwarding::is_wanted(service_port))
        && service_port.is_externally_accessible()
}

/// Computes the objects of a Service port from all of its endpoints. `mark` is its mark, if any.
pub fn port_objects(
    service_port: &ServicePort,
    endpoints: &[Endpoint],
    context: &Context,
    mark: Option<u32>,
) -> PortObjects {
    let zone = context.zone.as_deref();
    let choice = topology::choose(service_port, endpoints, zone);
    let options = service_port.ipvs.as_deref();
    let mut extras = Extras {
        drain_limit: options.and_then(|options| options.drain_limit),
        ..Extras::default()
    };
    let server = server::wanted(service_port, context, &mut extras.unmet);
    let slow_start = options.and_then(|options| options.slow_start);
    extras.slow_start = slow_start.filter(|_| ramps::suits(&server.scheduler));
    if extras.slow_start != slow_start {
        let scheduler = server.scheduler.clone();
        extras.lacks(Unmet::NoSlowStart { scheduler });
    }
    if options.is_some_and(|options| options.place_weights.is_some()) {
        extras.unmet.extend(server::no_place_weights(&server, zone));
    }
    let leaving = leaving(service_port, endpoints);
    let cluster = real_servers(
        service_port,
        &server,
        &choice.cluster,
        leaving.iter().copied(),
        zone,
    );
    let local_leaving = leaving.iter().copied().filter(|endpoint| endpoint.local);
    let local = real_servers(service_port, &server, &choice.local, local_leaving, zone);
    let servers = (&choice.cluster[..], &*cluster);
    let direct = forwarding::servers(service_port, servers, endpoints, context, mark, &mut extras);
    let direct_server = server::of_direct(&server, direct.as_deref(), service_port, &mut extras);
    let mut virtual_servers: BTreeMap<_, ((&VirtualServer, &Arc<_>), Right, BTreeSet<_>)> =
        BTreeMap::new();
    let mut addresses = BTreeSet::new();
    let mut entries = BTreeSet::new();
    let held = service_port.held.as_deref();
    extras.unmet.extend(not_served(held));
    for mut frontend in frontends(service_port, context) {
        let is_local = frontend.role.is_local(service_port);
        let direct = direct
            .as_ref()
            .filter(|_| forwarding::is_for(frontend.role));
        frontend.is_split = is_local || direct.is_some();
        let key = VirtualServerKey::Address {
            address: frontend.address,
            port: frontend.port,
            protocol: service_port.name.protocol,
        };
        let servers = match direct {
            Some(direct) => (&direct_server, direct),
            None if is_local => (&server, &local),
            None => (&server, &cluster),
        };
        // An address may have two roles (an external IP that is also a load balancer's). Both have
        // the same policy, so only their entries differ and add up.
        let (_, right, of_server) = virtual_servers
            .entry(key)
            .or_insert_with(|| (servers, Right::ExternalIp, BTreeSet::new()));
        *right = (*right).min(frontend.role.right());
        add_entries(of_server, &frontend, service_port, context);
        if frontend.is_split {
            let lacks_local = is_local && choice.has_any && choice.local.is_empty();
            add_split_entries(of_server, &frontend, service_port, mark, lacks_local);
        }
        let Frontend { role, address, .. } = frontend;
        if role == Role::NodePort {
            continue;
        }
        if let Some(holder) = holder(role, address, held, context) {
            extras.lacks(Unmet::NotBound { address, holder });
        } else {
            addresses.insert(address);
            entries.insert((SetId::IpvsIps, SetEntry::Ip(address)));
        }
    }
    if context.ipvs_rules == IpvsRules::Iptables {
        add_loop_back_entries(&mut entries, service_port.name.protocol, endpoints);
    }
    add_health_check_entries(&mut entries, service_port);
    let mut virtual_servers: BTreeMap<_, _> = virtual_servers
        .into_iter()
        .map(|(key, (servers, right, entries))| (key, wanted(servers, right, entries)))
        .collect();
    if let Some(mark) = mark.filter(|_| service_port.external_policy_local || direct.is_some()) {
        let family = service_port.family;
        let server = server::of_mark(server, context, &mut extras.unmet);
        let wanted = wanted_of_mark(server, cluster, extras.slow_start.is_some());
        virtual_servers.insert(VirtualServerKey::Mark { mark, family }, wanted);
    }
    PortObjects {
        created: service_port.created,
        virtual_servers: virtual_servers.into(),
        lendable: lendable(service_port, &addresses),
        addresses: addresses.into_iter().collect(),
        entries: entries.into_iter().collect(),
        no_local_internal: lacks_local(&choice, service_port.internal_policy_local),
        no_local_external: lacks_local(
            &choice,
            service_port.external_policy_local && service_port.is_externally_accessible(),
        ),
        extras: (extras != Extras::default()).then(|| Box::new(extras)),
    }
}

/// The virtual server of a mark. Its scheduler may be another one than that of addresses.
fn wanted_of_mark(
    server: VirtualServer,
    cluster: Arc<RealServers>,
    starts_slowly: bool,
) -> WantedServer {
    let real_servers = if starts_slowly && !ramps::suits(&server.scheduler) {
        Arc::new(ramps::undivided(&cluster))
    } else {
        cluster
    };
    WantedServer {
        server,
        right: Right::LoadBalancer,
        real_servers,
        entries: Box::default(),
    }
}

fn wanted(
    (server, real_servers): (&VirtualServer, &Arc<RealServers>),
    right: Right,
    entries: BTreeSet<(SetId, SetEntry)>,
) -> WantedServer {
    WantedServer {
        server: server.clone(),
        right,
        real_servers: real_servers.clone(),
        entries: entries.into_iter().collect(),
    }
}

/// The addresses that the Service port claims and that are others'.
fn not_served(held: Option<&Held>) -> impl Iterator<Item = Unmet> {
    let refused = held.into_iter().flat_map(|held| &held.refused);
    refused.map(|(address, holder)| Unmet::NotServed {
        address: *address,
        holder: *holder,
        binds: true,
    })
}

/// The bound addresses that the Service port claims as external IPs alone.
fn lendable(service_port: &ServicePort, addresses: &BTreeSet<IpAddr>) -> Box<[IpAddr]> {
    let is_lendable = |ip: &IpAddr| Right::of(service_port, *ip) == Right::ExternalIp;
    addresses.iter().copied().filter(is_lendable).collect()
}

/// The holder of an address that the node must not bind because of it.
fn holder(role: Role, address: IpAddr, held: Option<&Held>, context: &Context) -> Option<Holder> {
    if context.node_addresses.contains(&address) {
        return Some(Holder::OtherLink);
    }
    // A proxy in a pod may reach the API server at its cluster IP, which then counts as held.
    let held = held.filter(|_| role != Role::ClusterIp);
    let mut unbound = held.into_iter().flat_map(|held| &held.unbound);
    unbound.find_map(|(other, holder)| (*other == address).then_some(*holder))
}

fn frontends(service_port: &ServicePort, context: &Context) -> Vec<Frontend> {
    let at = |role, addresses: &[IpAddr], port| {
        addresses
            .iter()
            .map(move |address| Frontend {
                role,
                address: *address,
                port,
                is_split: false,
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

/// The end of a UDP flow is not visible: flows to an endpoint that shuts down stay as long as it
/// serves, and then move at once. Other protocols need nothing here: what is no longer wanted
/// drains.
fn leaving<'a>(service_port: &ServicePort, endpoints: &'a [Endpoint]) -> Vec<&'a Endpoint> {
    let is_udp = service_port.name.protocol == Protocol::Udp;
    endpoints
        .iter()
        .filter(|endpoint| is_udp && endpoint.is_serving_while_terminating())
        .collect()
}

/// Turns endpoints into real servers. Terminating ones get no new connections, unless they were
/// chosen.
fn real_servers<'a>(
    service_port: &ServicePort,
    server: &VirtualServer,
    chosen: &[&Endpoint],
    leaving: impl Iterator<Item = &'a Endpoint>,
    zone: Option<&str>,
) -> Arc<RealServers> {
    let options = service_port.ipvs.as_deref();
    let starts_slowly = options.is_some_and(|options| options.slow_start.is_some());
    let scale = if starts_slowly && ramps::suits(&server.scheduler) {
        ramps::STEPS
    } else {
        1
    };
    let weight = |endpoint: &Endpoint| {
        let of_service = options.map(|options| options.weight_of(endpoint, zone));
        let weight = of_service.unwrap_or(endpoint.weight);
        weight.map_or(1, |weight| weight.get().into()) * scale
    };
    let thresholds = options.map_or_else(Thresholds::default, |options| options.thresholds);
    let leaving = leaving.map(|endpoint| (endpoint, 0));
    let chosen = chosen.iter().map(|endpoint| (*endpoint, weight(endpoint)));
    Arc::new(
        leaving
            .chain(chosen)
            .filter(|(_, weight)| *weight > 0 || server.passes_over_weight_0())
            .map(|(endpoint, weight)| {
                let key = RealServerKey {
                    address: endpoint.address,
                    port: endpoint.port,
                };
                let server = RealServer {
                    weight,
                    forwarding: Forwarding::Masquerade,
                    thresholds,
                };
                (key, server)
            })
            .collect(),
    )
}

fn lacks_local(choice: &Choice<'_>, policy_is_local: bool) -> bool {
    policy_is_local && choice.has_any && choice.local.is_empty()
}

/// The entries of a frontend whose outside and inside clients have different virtual servers.
fn add_split_entries(
    entries: &mut BTreeSet<(SetId, SetEntry)>,
    frontend: &Frontend,
    service_port: &ServicePort,
    mark: Option<u32>,
    lacks_local: bool,
) {
    let Frontend { address, port, .. } = *frontend;
    let protocol = service_port.name.protocol;
    if lacks_local {
        let entry = SetEntry::IpPort(address, protocol, port);
        entries.insert((SetId::NoLocalEndpoints, entry));
    }
    if let Some(mark) = mark.filter(|_| frontend.role != Role::ClusterIp) {
        let entry = SetEntry::IpPortMark(address, protocol, port, mark);
        entries.insert((SetId::LocalPolicyMark, entry));
    }
}

/// The entries by which the static rules masquerade, admit or filter packets of a frontend.
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
        is_split,
    } = *frontend;
    let protocol = service_port.name.protocol;
    let frontend_entry = SetEntry::IpPort(address, protocol, port);
    match role {
        Role::ClusterIp => {
            entries.insert((SetId::ClusterIp, frontend_entry));
        }
        Role::ExternalIp => {
            let set = if is_split {
                SetId::ExternalIpLocal
            } else {
                SetId::ExternalIp
            };
            entries.insert((set, frontend_entry));
        }
        Role::LoadBalancer => {
            entries.insert((SetId::LoadBalancer, frontend_entry));
            if is_split {
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
            entries.insert((SetId::NodePort, frontend_entry));
            if is_split {
                entries.insert((SetId::NodePortLocal, frontend_entry));
            }
        }
    }
}

/// The port of the health check is open on the node, and at the addresses that a balancer probes.
fn add_health_check_entries(entries: &mut BTreeSet<(SetId, SetEntry)>, service_port: &ServicePort) {
    let Some(port) = service_port.health_check_node_port else {
        return;
    };
    entries.insert((SetId::HealthCheckNodePort, SetEntry::Port(port.get())));
    let vips = service_port.load_balancer_vips.iter();
    entries.extend(vips.map(|vip| {
        let entry = SetEntry::IpPort(*vip, Protocol::Tcp, port.get());
        (SetId::HealthCheckVip, entry)
    }));
}

/// A pod that reaches itself through a Service must be masqueraded, or it would reply to itself
/// directly. On this node that concerns local pods only, whatever their condition. Rules of
/// nftables see that by themselves.
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
