// SPDX-License-Identifier: Apache-2.0
//! Namespaces of this machine on the same wire as a guest that is a node: a client outside, and
//! pods, which have the node for a router.

use std::net::IpAddr;

use anyhow::{Result, bail};

use crate::guest::Guest;
use crate::namespace::{Namespace, Uplink};
use crate::testbed::Testbed;
use crate::topology::{Family, Host};
use crate::traffic::Servers;

/// The last part of the client's address in the network of the test bed.
const CLIENT: u8 = 230;

#[derive(Debug)]
pub struct Neighbours {
    /// Outside of the cluster, with a route to its Services.
    pub client: Namespace,
    /// A pod that asks.
    pub shell: Namespace,
    _servers: Servers,
    _uplinks: Vec<Uplink>,
}

impl Neighbours {
    /// With pods that serve on port 8080. The guest becomes their router.
    pub fn new(testbed: &Testbed, guest: &mut Guest, web: &[Host]) -> Result<Self> {
        let [v4, v6] = guest.addresses[..] else {
            bail!("the guest has addresses {:?}", guest.addresses);
        };
        let bridge = testbed.env("BRIDGE");
        let mut uplinks = Vec::new();
        let mut on_the_wire = |addresses: &[String], gateways: &str| -> Result<Namespace> {
            let (host, uplink) = on_the_wire(bridge, addresses, gateways)?;
            uplinks.push(uplink);
            Ok(host)
        };
        let (net4, net6) = (testbed.env("NET4"), testbed.env("NET6"));
        let client = on_the_wire(
            &[
                format!("{net4}.{CLIENT}/24"),
                format!("{net6}:{CLIENT:x}/64"),
            ],
            &format!(
                "route add 10.96.0.0/12 via {v4}\nroute add 203.0.113.0/24 via {v4}\nroute add fd00:96::/108 via {v6}\n"
            ),
        )?;
        let mut pod = |host: Host| {
            let addresses = Family::ALL.map(|family| with_all_bits(host.address(family)));
            on_the_wire(&addresses, &through_node(v4, v6))
        };
        let shell = pod(Host::Shell)?;
        let pods: Vec<(Host, Namespace)> = web
            .iter()
            .map(|host| Ok((*host, pod(*host)?)))
            .collect::<Result<_>>()?;
        let servers = Servers::at(
            pods.iter()
                .map(|(host, namespace)| (*host, namespace, 8080)),
        )?;
        make_router(guest, testbed, web.iter().copied().chain([Host::Shell]));
        Ok(Self {
            client,
            shell,
            _servers: servers,
            _uplinks: uplinks,
        })
    }
}

/// One more namespace, with the addresses of many pods.
pub fn pods(
    testbed: &Testbed,
    guest: &mut Guest,
    addresses: &[IpAddr],
) -> Result<(Namespace, Uplink)> {
    let [v4, v6] = guest.addresses[..] else {
        bail!("the guest has addresses {:?}", guest.addresses);
    };
    let own: Vec<String> = addresses.iter().copied().map(with_all_bits).collect();
    let pods = on_the_wire(testbed.env("BRIDGE"), &own, &through_node(v4, v6))?;
    guest.run(&routes_to(addresses.iter().copied()));
    Ok(pods)
}

/// A namespace of this machine on the wire of the test bed.
fn on_the_wire(bridge: &str, addresses: &[String], gateways: &str) -> Result<(Namespace, Uplink)> {
    let host = Namespace::new()?;
    host.sysctl(&[("net/ipv6/conf/default/accept_redirects", "0")])?;
    host.ip("link set lo up\n")?;
    let uplink = Uplink::new(&host, "eth0", bridge)?;
    for address in addresses {
        let nodad = if address.contains(':') { "nodad" } else { "" };
        host.ip(&format!("address add {address} dev eth0 {nodad}\n"))?;
    }
    host.ip(gateways)?;
    Ok((host, uplink))
}

/// Nobody but the node is a neighbour of a pod.
fn through_node(v4: IpAddr, v6: IpAddr) -> String {
    format!(
        "route add {v4} dev eth0\nroute add default via {v4}\nroute add {v6} dev eth0\nroute add default via {v6}\n"
    )
}

fn with_all_bits(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

/// Commands for the guest.
fn routes_to(addresses: impl Iterator<Item = IpAddr>) -> String {
    let route = |address| format!("ip route add {address} dev vec0\n");
    addresses.map(route).collect()
}

/// The guest routes between pods and others.
fn make_router(guest: &mut Guest, testbed: &Testbed, pods: impl Iterator<Item = Host>) {
    let mut set_up = "set -e
            cd /proc/sys/net
            echo 1 >ipv4/ip_forward
            echo 1 >ipv6/conf/all/forwarding
            for link in all default vec0; do echo 0 >ipv4/conf/$link/send_redirects; done\n"
        .to_owned();
    let both = |host: Host| Family::ALL.map(|family| host.address(family));
    set_up.push_str(&routes_to(pods.flat_map(both)));
    // Without a route to Services the node could not ask them in iptables mode.
    for (gateway, family) in [(testbed.env("HOST4"), "4"), (testbed.env("HOST6"), "6")] {
        set_up.extend(["ip -", family, " route add default via ", gateway, "\n"]);
    }
    guest.run(&set_up);
}
