// SPDX-License-Identifier: Apache-2.0
//! Converts between the planner's virtual and real servers and the messages of [`ipvs_netlink`].

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipvs_netlink::{
    AddressFamily, Destination, DestinationKey, Forwarding as Method, InvalidName, KernelName,
    ListedForwarding, ListedKey, ListedService, Netmask, Operation, Persistence,
    Protocol as Transport, Service, ServiceFlags, ServiceKey, SyncDaemon as WireDaemon,
    SyncRole as WireRole, Timeouts as WireTimeouts, Tunnel as WireTunnel, TunnelKind,
};
use kpr_core::model::ipvs_options::{Thresholds, Tunnel};
use kpr_core::model::{IpFamily, Protocol};
use kpr_core::plan::ipvs::Step;
use kpr_core::plan::ipvs::object::{
    Forwarding, RealServer, RealServerKey, RealServers, SyncDaemon, SyncRole, Timeouts,
    VirtualServer, VirtualServerKey, flags,
};

/// The IPVS operation of a step; `None` for steps of other kinds.
pub(super) fn operation(step: &Step) -> Option<Result<Operation, InvalidName>> {
    Some(match step {
        Step::AddVirtualServer { key, server } => service(key, server).map(Operation::AddService),
        Step::SetVirtualServer { key, server } => service(key, server).map(Operation::SetService),
        Step::DeleteVirtualServer { key } => Ok(Operation::DelService(service_key(key))),
        Step::AddRealServer { vs, key, server } => Ok(Operation::AddDestination(
            service_key(vs),
            destination(*key, *server),
        )),
        Step::SetRealServer { vs, key, server } => Ok(Operation::SetDestination(
            service_key(vs),
            destination(*key, *server),
        )),
        Step::DeleteRealServer { vs, key } => Ok(Operation::DelDestination(
            service_key(vs),
            destination_key(*key),
        )),
        _ => return None,
    })
}

pub(super) fn service_key(key: &VirtualServerKey) -> ServiceKey {
    match *key {
        VirtualServerKey::Address {
            address,
            port,
            protocol,
        } => {
            let protocol = match protocol {
                Protocol::Tcp => Transport::Tcp,
                Protocol::Udp => Transport::Udp,
                Protocol::Sctp => Transport::Sctp,
            };
            ServiceKey::new(protocol, address, port)
        }
        VirtualServerKey::Mark { mark, family } => ServiceKey::Mark {
            family: address_family(family),
            mark,
        },
    }
}

/// `None` for a protocol that no Service can have: such a virtual server is not ours.
pub(super) fn virtual_server_key(key: &ServiceKey) -> Option<VirtualServerKey> {
    Some(match *key {
        ServiceKey::Address {
            protocol,
            address,
            port,
        } => {
            let protocol = self::protocol(protocol)?;
            VirtualServerKey::Address {
                address,
                port,
                protocol,
            }
        }
        ServiceKey::Mark { family, mark } => {
            let family = match family {
                AddressFamily::Inet => IpFamily::V4,
                AddressFamily::Inet6 => IpFamily::V6,
            };
            VirtualServerKey::Mark { mark, family }
        }
    })
}

/// `None` for one that no Service can have.
pub(super) const fn protocol(transport: Transport) -> Option<Protocol> {
    match transport {
        Transport::Tcp => Some(Protocol::Tcp),
        Transport::Udp => Some(Protocol::Udp),
        Transport::Sctp => Some(Protocol::Sctp),
        _ => None,
    }
}

const fn address_family(family: IpFamily) -> AddressFamily {
    match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    }
}

fn service(key: &VirtualServerKey, server: &VirtualServer) -> Result<Service, InvalidName> {
    let scheduler: KernelName = server.scheduler.parse()?;
    let mut service = Service::new(service_key(key), scheduler);
    service.flags = ServiceFlags::from_bits(server.flags & !flags::PERSISTENT);
    if server.flags & flags::PERSISTENT != 0 {
        let netmask = match key.family() {
            IpFamily::V4 => {
                let host_bits = 32_u8.saturating_sub(server.netmask);
                let mask = u32::MAX.checked_shl(host_bits.into()).unwrap_or(0);
                Netmask::Inet(Ipv4Addr::from_bits(mask))
            }
            IpFamily::V6 => Netmask::Inet6(server.netmask.into()),
        };
        service.persistence = Some(Persistence {
            timeout: server.timeout,
            netmask,
        });
    }
    Ok(service)
}

/// A virtual server in the form that the planner compares.
pub(super) fn virtual_server(service: &Service) -> VirtualServer {
    let host = match service.key.family() {
        AddressFamily::Inet => 32,
        AddressFamily::Inet6 => 128,
    };
    let mut server = VirtualServer {
        scheduler: service.scheduler.as_str().into(),
        flags: service.flags.bits(),
        timeout: 0,
        netmask: host,
    };
    if let Some(persistence) = service.persistence {
        server.flags |= flags::PERSISTENT;
        server.timeout = persistence.timeout;
        server.netmask = match persistence.netmask {
            // No known program sets a mask with holes; it differs from every wanted one.
            Netmask::Inet(mask) => {
                let bits = mask.to_bits();
                if bits.count_ones() == bits.leading_ones() {
                    prefix(bits.leading_ones())
                } else {
                    0
                }
            }
            Netmask::Inet6(prefix_len) => prefix(prefix_len),
        };
    }
    server
}

fn prefix(length: u32) -> u8 {
    u8::try_from(length).unwrap_or(u8::MAX)
}

pub(super) const fn destination_key(key: RealServerKey) -> DestinationKey {
    DestinationKey {
        address: key.address,
        port: key.port,
    }
}

fn destination(key: RealServerKey, server: RealServer) -> Destination {
    let mut destination = Destination::new(destination_key(key), server.weight);
    destination.forwarding = match server.forwarding {
        Forwarding::Masquerade => Method::Masquerade,
        Forwarding::Local => Method::Local,
        Forwarding::Tunnel(tunnel) => Method::Tunnel(wire_tunnel(tunnel)),
        Forwarding::Route => Method::DirectRoute,
        Forwarding::Bypass => Method::Bypass,
    };
    destination.upper_threshold = server.thresholds.upper;
    destination.lower_threshold = server.thresholds.lower;
    destination
}

fn wire_tunnel(tunnel: Tunnel) -> WireTunnel {
    let (kind, port) = match tunnel {
        Tunnel::IpIp => (TunnelKind::IpIp, 0),
        Tunnel::Gre => (TunnelKind::Gre, 0),
        Tunnel::Gue(port) => (TunnelKind::Gue, port.get()),
    };
    WireTunnel {
        kind,
        port,
        ..WireTunnel::default()
    }
}

/// `None` for one that we never create.
fn tunnel(wire: WireTunnel) -> Option<Tunnel> {
    let tunnel = match wire.kind {
        TunnelKind::IpIp => Tunnel::IpIp,
        TunnelKind::Gre => Tunnel::Gre,
        TunnelKind::Gue => Tunnel::Gue(NonZeroU16::new(wire.port)?),
        _ => return None,
    };
    (wire_tunnel(tunnel) == wire).then_some(tunnel)
}

/// A real server in the form that the planner compares.
pub(super) fn real_server(destination: &Destination) -> (RealServerKey, RealServer) {
    let key = RealServerKey {
        address: destination.key.address,
        port: destination.key.port,
    };
    let forwarding = match destination.forwarding {
        Method::Masquerade => Forwarding::Masquerade,
        Method::Local => Forwarding::Local,
        Method::Tunnel(wire) => match tunnel(wire) {
            Some(tunnel) => Forwarding::Tunnel(tunnel),
            None => Forwarding::Bypass,
        },
        Method::DirectRoute => Forwarding::Route,
        // We never want this method, so it differs and is repaired if the server is ours.
        _ => Forwarding::Bypass,
    };
    (
        key,
        RealServer {
            weight: destination.weight,
            forwarding,
            thresholds: Thresholds {
                upper: destination.upper_threshold,
                lower: destination.lower_threshold,
            },
        },
    )
}

/// A virtual server of a family and its real servers, if the listing shows everything that the
/// planner compares.
pub(super) fn proc_listing(
    family: IpFamily,
    listed: &ListedService,
) -> Option<(VirtualServerKey, RealServers)> {
    let (key, is_shown) = match listed.key {
        ListedKey::Address {
            protocol,
            address,
            port,
        } => {
            let key = ServiceKey::new(protocol, address, port);
            (virtual_server_key(&key)?, true)
        }
        // Marks of both families look the same; their real servers do not.
        ListedKey::Mark(mark) => {
            let key = VirtualServerKey::Mark { mark, family };
            (key, !listed.destinations.is_empty())
        }
        _ => return None,
    };
    if key.family() != family || !is_shown {
        return None;
    }
    let listed = listed.destinations.iter();
    let real_servers = listed.map(|found| {
        let forwarding = match found.forwarding {
            ListedForwarding::Masquerade => Forwarding::Masquerade,
            ListedForwarding::Local => Forwarding::Local,
            ListedForwarding::DirectRoute => Forwarding::Route,
            // For a tunnel the listing lacks the type, which counts too.
            _ => return None,
        };
        let key = RealServerKey {
            address: found.key.address,
            port: found.key.port,
        };
        let server = RealServer {
            weight: found.weight,
            forwarding,
            // The listing does not show them: with thresholds, belief never matches it.
            thresholds: Thresholds::default(),
        };
        Some((key, server))
    });
    Some((key, real_servers.collect::<Option<RealServers>>()?))
}

pub(super) const fn wire_role(role: SyncRole) -> WireRole {
    match role {
        SyncRole::Master => WireRole::Master,
        SyncRole::Backup => WireRole::Backup,
    }
}

pub(super) fn wire_daemon(role: SyncRole, daemon: &SyncDaemon) -> WireDaemon {
    WireDaemon {
        role: wire_role(role),
        interface: daemon.interface.to_string(),
        sync_id: daemon.sync_id,
        max_length: daemon.max_length,
        group: daemon.group,
        port: daemon.port,
        ttl: daemon.ttl,
    }
}

/// A running sync daemon; `None` for a role that no kernel had when this was written.
pub(super) fn sync_daemon(wire: &WireDaemon) -> Option<(SyncRole, SyncDaemon)> {
    let mut roles = SyncRole::ALL.into_iter();
    let role = roles.find(|role| wire_role(*role) == wire.role)?;
    let daemon = SyncDaemon {
        interface: wire.interface.as_str().into(),
        link: None,
        sync_id: wire.sync_id,
        group: wire.group,
        port: wire.port,
        ttl: wire.ttl,
        max_length: wire.max_length,
    };
    Some((role, daemon))
}

/// Timeouts in whole seconds, the kernel's unit.
pub(super) fn timeouts(wire: WireTimeouts) -> Timeouts {
    let seconds = |timeout: Duration| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
    Timeouts {
        tcp: seconds(wire.tcp),
        tcp_fin: seconds(wire.tcp_fin),
        udp: seconds(wire.udp),
    }
}

pub(super) fn wire_timeouts(timeouts: Timeouts) -> WireTimeouts {
    let seconds = |timeout: u32| Duration::from_secs(timeout.into());
    WireTimeouts {
        tcp: seconds(timeouts.tcp),
        tcp_fin: seconds(timeouts.tcp_fin),
        udp: seconds(timeouts.udp),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipvs_netlink::Listing;
    use kpr_core::plan::testing::{rs, tcp};

    #[test]
    fn forwarding_methods_come_back_as_they_were_sent() {
        let key = RealServerKey {
            address: Ipv4Addr::new(10, 0, 0, 1).into(),
            port: 80,
        };
        let gue = NonZeroU16::new(6080).unwrap();
        for forwarding in [
            Forwarding::Masquerade,
            Forwarding::Route,
            Forwarding::Tunnel(Tunnel::IpIp),
            Forwarding::Tunnel(Tunnel::Gre),
            Forwarding::Tunnel(Tunnel::Gue(gue)),
        ] {
            let server = RealServer {
                weight: 3,
                forwarding,
                thresholds: Thresholds {
                    upper: 100,
                    lower: 80,
                },
            };
            assert_eq!(real_server(&destination(key, server)), (key, server));
        }
    }

    #[test]
    fn a_tunnel_that_we_never_make_is_none_that_is_wanted() {
        let checksummed = WireTunnel {
            kind: TunnelKind::Gue,
            port: 6080,
            flags: 1,
        };
        assert_eq!(tunnel(checksummed), None);
        assert_eq!(tunnel(WireTunnel::default()), Some(Tunnel::IpIp));
    }

    fn shown(text: &str) -> Vec<(VirtualServerKey, RealServers)> {
        let heading = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        let text = format!("{heading}{text}");
        Listing::new(text.as_bytes())
            .unwrap()
            .filter_map(|listed| proc_listing(IpFamily::V4, &listed.unwrap()))
            .collect()
    }

    #[test]
    fn a_listed_virtual_server_is_as_the_planner_compares_it() {
        let found = shown(
            "TCP  0A60000A:0035 rr  \n  -> 0A010002:0035      Masq    7      0          0         \n  -> 0A010003:0035      Local   0      0          0         \n  -> 0A010004:0035      Route   1      0          0         \n",
        );
        let servers = [
            ("10.1.0.2:53", 7, Forwarding::Masquerade),
            ("10.1.0.3:53", 0, Forwarding::Local),
            ("10.1.0.4:53", 1, Forwarding::Route),
        ];
        let servers = servers
            .map(|(at, weight, forwarding)| {
                let server = RealServer {
                    weight,
                    forwarding,
                    ..RealServer::default()
                };
                (rs(at), server)
            })
            .into_iter()
            .collect();
        assert_eq!(found, [(tcp("10.96.0.10:53"), servers)]);
    }

    #[test]
    fn what_the_listing_does_not_show_whole_is_not_shown() {
        let destination = "  -> 0A010002:0035      Masq    1      0          0         \n";
        let marked = VirtualServerKey::Mark {
            mark: 8193,
            family: IpFamily::V4,
        };
        assert_eq!(shown("FWM  00002001 rr \n"), []);
        let found = shown(&format!("FWM  00002001 rr \n{destination}"));
        assert_eq!(found[0].0, marked);
        let tunnel = destination.replace("Masq  ", "Tunnel");
        for text in [
            &format!("TCP  0A60000A:0035 rr  \n{destination}{tunnel}"),
            "ICMP  0A60000A:0035 rr  \n",
            "TCP  [fd00:0096:0000:0000:0000:0000:0000:000a]:0035 rr \n",
        ] {
            assert_eq!(shown(text), [], "{text}");
        }
    }
}
