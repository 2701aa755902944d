// SPDX-License-Identifier: Apache-2.0
//! Between the planner's virtual and real servers and the messages of [`crate::dataplane::ipvs`].

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::time::Duration;

use crate::dataplane::ipvs::{
    AddressFamily, Destination, DestinationKey, Forwarding as Method, InvalidName, KernelName,
    Netmask, Operation, Persistence, Protocol as Transport, Service, ServiceFlags, ServiceKey,
    Timeouts as WireTimeouts, Tunnel as WireTunnel, TunnelKind,
};
use crate::model::ipvs_options::Tunnel;
use crate::model::{IpFamily, Protocol};
use crate::plan::Step;
use crate::plan::object::{
    Forwarding, RealServer, RealServerKey, Timeouts, VirtualServer, VirtualServerKey, flags,
};

/// The operation of a step about IPVS; `None` for steps about other things.
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
            let protocol = match protocol {
                Transport::Tcp => Protocol::Tcp,
                Transport::Udp => Protocol::Udp,
                Transport::Sctp => Protocol::Sctp,
                Transport::Other(_) => return None,
            };
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

/// A virtual server as the planner compares it.
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
            // A mask with holes is nobody's that we know; it differs from every wanted one.
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

/// `None` for one that we never make.
fn tunnel(wire: WireTunnel) -> Option<Tunnel> {
    let tunnel = match wire.kind {
        TunnelKind::IpIp => Tunnel::IpIp,
        TunnelKind::Gre => Tunnel::Gre,
        TunnelKind::Gue => Tunnel::Gue(NonZeroU16::new(wire.port)?),
        TunnelKind::Other(_) => return None,
    };
    (wire_tunnel(tunnel) == wire).then_some(tunnel)
}

/// A real server as the planner compares it.
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
        // No method that we ever want: it differs, and is repaired where it is ours.
        Method::Bypass | Method::Other(_) => Forwarding::Bypass,
    };
    (
        key,
        RealServer {
            weight: destination.weight,
            forwarding,
        },
    )
}

/// Time-outs in whole seconds, as the kernel has them.
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
}
