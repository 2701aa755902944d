// SPDX-License-Identifier: Apache-2.0
//! The kernel's state as other programs print it: `ipvsadm`, `ip`, `ipset`, `iptables-save`. None
//! of the proxy's own code is used, so a mistake in it cannot hide itself here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use crate::manifests::Service;
use crate::namespace::Namespace;
use crate::topology::{Family, Host, cluster_ip, external_ip, load_balancer_vip};
use crate::traffic::{Protocol, any};
use crate::wait;

/// Name of a set of the proxy in a family.
pub fn set_name(base: &str, family: Family) -> String {
    match family {
        Family::V4 => format!("KUBE-{base}"),
        // The kernel's limit.
        Family::V6 => format!("KUBE-6-{base}").chars().take(31).collect(),
    }
}

/// A virtual server as `ipvsadm` prints it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtualServer {
    pub scheduler: String,
    /// Of the scheduler.
    pub flags: Option<String>,
    pub persistent: Option<u32>,
    /// Real servers and their weights.
    pub real_servers: BTreeMap<SocketAddr, u32>,
}

/// That of a firewall mark is at no address and has the mark as its port.
pub type VirtualServers = BTreeMap<(Protocol, SocketAddr), VirtualServer>;

/// The mark of answers to clients of the node, which no virtual server shall take.
const PASS: u16 = 8191;

fn of_mark(mark: u16, family: Family) -> (Protocol, SocketAddr) {
    (Protocol::Tcp, SocketAddr::new(any(family), mark))
}

/// The virtual server of those answers: the node itself, whatever their port.
fn pass(scheduler: &str, family: Family) -> VirtualServer {
    let itself: IpAddr = match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    VirtualServer {
        scheduler: scheduler.to_owned(),
        flags: Some("-o".to_owned()),
        persistent: None,
        real_servers: BTreeMap::from([(SocketAddr::new(itself, 0), 1)]),
    }
}

/// What `ipvsadm -Sn` prints.
pub fn virtual_servers(node: &Namespace) -> Result<VirtualServers> {
    parse_virtual_servers(&node.run("ipvsadm", &["-S", "-n"])?)
}

/// Lines such as `-A -t 10.96.0.1:80 -s rr -p 10800` and
/// `-a -t 10.96.0.1:80 -r 10.244.1.11:8080 -m -w 1`.
fn parse_virtual_servers(text: &str) -> Result<VirtualServers> {
    let mut found = VirtualServers::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let value_of = |flag: &str| {
            let mut rest = words.iter().skip_while(|word| **word != flag);
            rest.next()?;
            rest.next().copied()
        };
        let key = if let Some(mark) = value_of("-f") {
            let family = if words.contains(&"-6") {
                Family::V6
            } else {
                Family::V4
            };
            of_mark(mark.parse()?, family)
        } else if let Some(address) = value_of("-t") {
            (Protocol::Tcp, address.parse()?)
        } else if let Some(address) = value_of("-u") {
            (Protocol::Udp, address.parse()?)
        } else if let Some(address) = value_of("--sctp-service") {
            (Protocol::Sctp, address.parse()?)
        } else {
            bail!("ipvsadm printed {line:?}");
        };
        match words.first() {
            Some(&"-A") => {
                let server = VirtualServer {
                    scheduler: value_of("-s").unwrap_or_default().to_owned(),
                    flags: value_of("-b")
                        .or_else(|| words.iter().find(|word| **word == "-o").copied())
                        .map(str::to_owned),
                    persistent: value_of("-p").map(str::parse).transpose()?,
                    real_servers: BTreeMap::new(),
                };
                found.insert(key, server);
            }
            Some(&"-a") => {
                let (real_server, weight) = (value_of("-r"), value_of("-w"));
                let real_server = real_server.unwrap_or_default().parse()?;
                let weight = weight.unwrap_or_default().parse()?;
                let server = found.get_mut(&key).context("a server before its service")?;
                server.real_servers.insert(real_server, weight);
            }
            _ => bail!("ipvsadm printed {line:?}"),
        }
    }
    Ok(found)
}

/// The virtual servers that these Services want on the addresses of a family, straight from the
/// manifests. Not for Services with traffic policies, hints or endpoints that are not ready.
pub fn wanted_virtual_servers(
    services: &[Service],
    scheduler: &str,
    node_addresses: &[IpAddr],
) -> VirtualServers {
    let mut wanted = VirtualServers::new();
    for service in services {
        for family in Family::ALL {
            for port in &service.ports {
                let mut frontends = vec![SocketAddr::new(cluster_ip(family, service.n), port.port)];
                if service.external {
                    frontends.push(SocketAddr::new(external_ip(family, service.n), port.port));
                }
                if service.load_balancer {
                    let vip = load_balancer_vip(family, service.n);
                    frontends.push(SocketAddr::new(vip, port.port));
                }
                if let Some(number) = port.node_port {
                    let of_family = |a: &&IpAddr| a.is_ipv4() == (family == Family::V4);
                    let addresses = node_addresses.iter().filter(of_family);
                    frontends.extend(addresses.map(|a| SocketAddr::new(*a, number)));
                }
                let server = VirtualServer {
                    scheduler: scheduler.to_owned(),
                    flags: flags_of(scheduler).map(str::to_owned),
                    persistent: None,
                    real_servers: service
                        .endpoints
                        .iter()
                        .map(|e| (SocketAddr::new(e.host.address(family), port.target), 1))
                        .collect(),
                };
                for frontend in frontends {
                    for protocol in &service.protocols {
                        wanted.insert((*protocol, frontend), server.clone());
                    }
                }
                if port.node_port.is_some() {
                    wanted.insert(of_mark(PASS, family), pass(scheduler, family));
                }
            }
        }
    }
    wanted
}

/// Flags that a scheduler has unless an annotation says otherwise.
fn flags_of(scheduler: &str) -> Option<&'static str> {
    match scheduler {
        "sh" => Some("sh-fallback"),
        "mh" => Some("mh-fallback,mh-port"),
        _ => None,
    }
}

/// The node's own addresses of both families, where node ports answer.
pub fn node_addresses() -> Vec<IpAddr> {
    Family::ALL
        .into_iter()
        .flat_map(|family| Host::Node.addresses(family))
        .collect()
}

/// Where two states differ, one line each.
pub fn differences(wanted: &VirtualServers, found: &VirtualServers) -> Vec<String> {
    let keys: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    keys.into_iter()
        .filter(|key| wanted.get(key) != found.get(key))
        .map(|key| {
            let (protocol, address) = key;
            let (wanted, found) = (wanted.get(key), found.get(key));
            format!("{protocol} {address}: wanted {wanted:?}, found {found:?}")
        })
        .collect()
}

/// The addresses of `kube-ipvs0`, but for a link-local one.
pub fn bound_addresses(node: &Namespace) -> Result<BTreeSet<IpAddr>> {
    let text = node.run("ip", &["-o", "address", "show", "dev", "kube-ipvs0"])?;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        let mut words = line
            .split_whitespace()
            .skip_while(|w| !w.starts_with("inet"));
        let (kind, address) = (words.next(), words.next().unwrap_or_default());
        let (address, bits) = address.split_once('/').unwrap_or((address, ""));
        let address: IpAddr = address.parse().context(line.to_owned())?;
        if address.to_string().starts_with("fe80:") {
            continue;
        }
        let host_bits = if kind == Some("inet") { "32" } else { "128" };
        ensure!(bits.is_empty() || bits == host_bits, "{line}");
        found.insert(address);
    }
    Ok(found)
}

/// Whether the node has a link of this name.
pub fn has_link(node: &Namespace, name: &str) -> Result<bool> {
    let links = node.run("ip", &["-o", "link", "show"])?;
    let mut names = links.lines().filter_map(|line| line.split(": ").nth(1));
    Ok(names.any(|found| found == name))
}

/// Waits until the IPv6 addresses of `kube-ipvs0` can be reached: the kernel makes their routes
/// some time after it has answered that they are there. Nothing to wait for where there is no such
/// link.
pub fn addresses_are_routed(node: &Namespace) -> Result<()> {
    let arguments = ["-6", "route", "show", "table", "local", "dev", "kube-ipvs0"];
    wait::until("the addresses of kube-ipvs0 are routed", || {
        // Asked each time: addresses of former Services may go meanwhile, when they have drained,
        // and the whole link when another mode has taken over.
        if !has_link(node, "kube-ipvs0")? {
            return Ok(());
        }
        let bound = bound_addresses(node)?;
        let wanted = bound.iter().filter(|address| address.is_ipv6()).count();
        let routes = node.run("ip", &arguments)?;
        let found = routes.lines().filter(|l| l.starts_with("local ")).count();
        ensure!(found >= wanted, "{found} of {wanted} are");
        Ok(())
    })
}

/// All service addresses that these Services want bound.
pub fn wanted_addresses(services: &[Service]) -> BTreeSet<IpAddr> {
    let mut wanted = BTreeSet::new();
    for service in services {
        for family in Family::ALL {
            wanted.insert(cluster_ip(family, service.n));
            if service.external {
                wanted.insert(external_ip(family, service.n));
            }
            if service.load_balancer {
                wanted.insert(load_balancer_vip(family, service.n));
            }
        }
    }
    wanted
}

/// The members of each ipset whose name starts with `KUBE-`.
pub fn sets(node: &Namespace) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut found = BTreeMap::new();
    for line in node.run("ipset", &["save"])?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["create", name, ..] if name.starts_with("KUBE-") => {
                found.insert((*name).to_owned(), BTreeSet::new());
            }
            ["add", name, member, ..] if name.starts_with("KUBE-") => {
                let set: &mut BTreeSet<String> =
                    found.get_mut(*name).context("a member before its set")?;
                set.insert((*member).to_owned());
            }
            _ => {}
        }
    }
    Ok(found)
}

/// The members that these Services want in the sets that tell what is a Service, and the hairpin
/// set.
pub fn wanted_sets(services: &[Service]) -> BTreeMap<String, BTreeSet<String>> {
    let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let bases = [
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "LOAD-BALANCER",
        "NODE-PORT-HASH",
        "LOOP-BACK",
        "IPVS-IPS",
    ];
    for family in Family::ALL {
        for base in bases {
            wanted.insert(set_name(base, family), BTreeSet::new());
        }
        let mut add = |base: &str, member: String| {
            wanted
                .entry(set_name(base, family))
                .or_default()
                .insert(member);
        };
        for service in services {
            let mut addresses = vec![("CLUSTER-IP", cluster_ip(family, service.n))];
            if service.external {
                addresses.push(("EXTERNAL-IP", external_ip(family, service.n)));
            }
            if service.load_balancer {
                addresses.push(("LOAD-BALANCER", load_balancer_vip(family, service.n)));
            }
            for (base, address) in addresses {
                add("IPVS-IPS", address.to_string());
                for port in &service.ports {
                    for protocol in &service.protocols {
                        add(base, format!("{address},{protocol}:{}", port.port));
                    }
                }
            }
            for port in &service.ports {
                for protocol in &service.protocols {
                    for address in Host::Node.addresses(family) {
                        if let Some(number) = port.node_port {
                            add("NODE-PORT-HASH", format!("{address},{protocol}:{number}"));
                        }
                    }
                    let local = |host: Host| host.node() == Some(Host::Node);
                    for endpoint in service.endpoints.iter().filter(|e| local(e.host)) {
                        let ip = endpoint.host.address(family);
                        add("LOOP-BACK", format!("{ip},{protocol}:{},{ip}", port.target));
                    }
                }
            }
        }
    }
    wanted
}

/// What `iptables-save` or `ip6tables-save` prints, without comments and counters.
pub fn rules(node: &Namespace, family: Family) -> Result<Vec<String>> {
    let program = match family {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    };
    let text = node.run(program, &[])?;
    Ok(text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| match line.split_once(" [") {
            Some((declaration, _)) if line.starts_with(':') => declaration.to_owned(),
            _ => line.to_owned(),
        })
        .collect())
}
