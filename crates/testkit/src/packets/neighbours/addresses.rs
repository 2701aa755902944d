// SPDX-License-Identifier: Apache-2.0
//! Programs that bind addresses of Services themselves: node-local DNS, and those that move an
//! address between nodes.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{Lab, PROTOCOLS, Probe, Wanted, of_service};
use crate::cases::{At, Dataplane};
use crate::manifests::Service;
use crate::namespace::Namespace;
use crate::proxy::{HEALTH_PORT, Proxy, get_at};
use crate::topology::{Family, Host, load_balancer_vip};
use crate::traffic::{Outcome, Patience, Protocol, Servers, ask};
use crate::wait;

const ROUNDS: usize = 10;

/// Links that have an address.
fn holders(node: &Namespace, address: IpAddr) -> Result<Vec<String>> {
    let listed = node.run("ip", &["-o", "address"])?;
    let start = format!("{address}/");
    Ok(listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.get(3).is_some_and(|it| it.starts_with(&start)))
        .filter_map(|words| words.get(1).map(|link| (*link).to_owned()))
        .collect())
}

/// node-cache 1.26.7 with the cluster IP of DNS among its addresses, on and off. Every query is
/// answered: in iptables mode by the cache while it is there, in IPVS mode by the Service.
pub(super) fn dns_cache(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let mut dns = Service::new("dns", 1, &[Host::Web1]).protocols(&PROTOCOLS);
    dns.ports = dns
        .ports
        .iter()
        .map(|port| crate::manifests::Port { port: 53, ..*port })
        .collect();
    let lab = Lab::new(binary, dataplane, std::slice::from_ref(&dns), &[])?;
    let service = At::ClusterIp.address(&dns, Family::V4, 53);
    let own = SocketAddr::from(([169, 254, 20, 10], 53));
    let addresses = [service, own].map(|at| at.ip().to_string());
    let [a, b] = addresses.each_ref().map(String::as_str);
    let probes = |by: &'static [Host], at: &[SocketAddr]| -> Vec<Probe<'static>> {
        let clients = [Host::Shell, Host::Node].into_iter();
        clients
            .flat_map(|from| {
                at.iter()
                    .map(move |to| (from, *to, Wanted::Answer(by, None)))
            })
            .collect()
    };
    let start = || -> Result<Servers> {
        lab.script("node-local-dns", &["up", a, b])?;
        let cache = Servers::at([])?;
        for protocol in PROTOCOLS {
            for at in [service, own] {
                cache.add(&lab.topology, Host::Node, protocol, at)?;
            }
        }
        Ok(cache)
    };
    let while_there: &[Host] = match dataplane {
        Dataplane::Ipvs => &[Host::Web1],
        Dataplane::Iptables(_) => &[Host::Node],
    };
    // Before the proxy.
    let mut cache = start()?;
    let before = lab.kernel()?;
    let mut proxy = lab.start()?;
    for round in 0..ROUNDS {
        lab.becomes("the cache answers", &probes(&[Host::Node], &[own]))?;
        lab.becomes("with the cache", &probes(while_there, &[service]))?;
        let found = holders(lab.node(), service.ip())?;
        ensure!(found == ["nodelocaldns"], "{found:?}");
        lab.script("node-local-dns", &["down", a, b])?;
        drop(cache);
        lab.becomes("without the cache", &probes(&[Host::Web1], &[service]))?;
        if round == ROUNDS / 2 {
            proxy.terminate()?;
            proxy = lab.start()?;
        }
        cache = start()?;
    }
    drop(cache);
    lab.script("node-local-dns", &["down", a, b])?;
    lab.becomes("at the end", &probes(&[Host::Web1], &[service]))?;
    lab.is_settled()?;
    is_quiet(&proxy.log(), &service.ip().to_string())?;
    let _cache = start()?;
    lab.is_left_by(proxy, &before)
}

/// A change is said once, not at each look.
fn is_quiet(log: &str, address: &str) -> Result<()> {
    let is_said = |line: &&str| line.contains(" WARN ") && line.contains(address);
    let lines: Vec<&str> = log.lines().filter(is_said).collect();
    ensure!(lines.len() <= 2 * ROUNDS, "{}", lines.join("\n"));
    Ok(())
}

/// kube-vip v1.2.3 and keepalived give the address of a load balancer to a link of this node and
/// take it away: it has one holder, serves, and the node's routes are what they were.
pub(super) fn moving(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, dataplane, std::slice::from_ref(&web), &[])?;
    // Those that are there, and the address that packets to others get from the node.
    let routes = || -> Result<Vec<String>> {
        let mut said = Vec::new();
        for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
            said.push(lab.node().run("ip", &[flag, "route"])?);
            let to = Host::Client.address(family).to_string();
            said.push(lab.node().run("ip", &[flag, "route", "get", &to])?);
        }
        Ok(said)
    };
    let of = |family: Family, bits: u8| format!("{}/{bits}", load_balancer_vip(family, 1));
    let lengths = |round: usize| match round % 2 {
        0 => [of(Family::V4, 32), of(Family::V6, 128)],
        _ => [of(Family::V4, 24), of(Family::V6, 64)],
    };
    let change = |verb: &str, addresses: &[String; 2]| -> Result<()> {
        addresses
            .iter()
            .try_for_each(|it| lab.script("kube-vip", &[verb, it, "eth0"]))
    };
    let is_at = |links: &[&str]| -> Result<()> {
        for family in Family::ALL {
            wait::until("the address has one holder", || {
                let found = holders(lab.node(), load_balancer_vip(family, 1))?;
                ensure!(found == links, "{found:?}");
                Ok(())
            })?;
            lab.becomes(
                "it serves",
                &of_service(&web, family, &[Host::Web1, Host::Web3]),
            )?;
        }
        Ok(())
    };
    let ours: &[&str] = match dataplane {
        Dataplane::Ipvs => &["kube-ipvs0"],
        Dataplane::Iptables(_) => &[],
    };
    let without = routes()?;
    // What they are with the address, which comes with both lengths, and no proxy.
    let mut with = Vec::new();
    for round in [1, 0] {
        change("add", &lengths(round))?;
        with.push(routes()?);
        change("delete", &lengths(round))?;
    }
    with.reverse();
    let are = |wanted: &[String]| -> Result<()> {
        let found = routes()?;
        ensure!(found == wanted, "{wanted:#?}\n{found:#?}");
        Ok(())
    };
    // One of the changes of both kinds is made while there is no proxy.
    let make = |proxy: Proxy, is_alone: bool, verb: &str, round: usize| -> Result<Proxy> {
        if !is_alone {
            change(verb, &lengths(round))?;
            return Ok(proxy);
        }
        let (_, log) = proxy.terminate()?;
        is_quiet_of_both(&log)?;
        change(verb, &lengths(round))?;
        lab.start()
    };
    // Before the proxy.
    change("add", &lengths(0))?;
    let with_address = lab.kernel()?;
    let mut proxy = lab.start()?;
    for round in 0..ROUNDS {
        is_at(&["eth0"])?;
        are(&with[round % 2])?;
        proxy = make(proxy, round == ROUNDS / 2, "delete", round)?;
        is_at(ours)?;
        are(&without)?;
        proxy = make(proxy, round == ROUNDS / 3, "add", round + 1)?;
    }
    is_at(&["eth0"])?;
    lab.is_settled()?;
    is_quiet_of_both(&proxy.log())?;
    lab.is_left_by(proxy, &with_address)
}

fn is_quiet_of_both(log: &str) -> Result<()> {
    let mut families = Family::ALL.into_iter();
    families.try_for_each(|family| is_quiet(log, &load_balancer_vip(family, 1).to_string()))
}

/// A balancer that probes node ports with its own address as source. Where that address is on
/// `kube-ipvs0` the node takes it for its own: it drops the probe, or answers itself. With ipMode
/// Proxy it is not bound.
pub(super) fn probes_from_balancer(binary: &Path, dataplane: Dataplane) -> Result<()> {
    let bound = Service::new("bound", 1, &[Host::Web1]).exposed();
    let proxied = Service::new("proxied", 2, &[Host::Web1])
        .exposed()
        .ip_mode("Proxy");
    let services = [bound.clone(), proxied.clone()];
    let lab = Lab::new(binary, dataplane, &services, &[])?;
    let balancer = lab.topology.host(Host::Client);
    // It asks for the node's link address with its own, not with that of the Service.
    balancer.sysctl(&[("net/ipv4/conf/all/arp_announce", "2")])?;
    for service in &services {
        for family in Family::ALL {
            let vip = load_balancer_vip(family, service.n);
            balancer.ip(&format!("address add {vip} dev lo\n"))?;
            let via = Host::Client.address(family);
            lab.node().ip(&format!("route add {vip} via {via}\n"))?;
        }
    }
    let _proxy = lab.start()?;
    for service in &services {
        for family in Family::ALL {
            let source = Some(load_balancer_vip(family, service.n));
            let to = At::NodePort.address(service, family, 80);
            let is_lost = dataplane == Dataplane::Ipvs && *service == bound;
            let patience = if is_lost {
                Patience::Short
            } else {
                Patience::Long
            };
            let outcome = ask(balancer, source, to, Protocol::Tcp, patience)?;
            let is_right = if is_lost {
                outcome == Outcome::TimedOut
            } else {
                matches!(&outcome, Outcome::Answered(answer) if answer.by == Host::Web1.name())
            };
            ensure!(is_right, "{} from {source:?}: {outcome}", service.name);
        }
    }
    Ok(())
}

/// How the address of a load balancer that passes packets through becomes one of the node: an
/// object of `ip`, and words before and after the address.
const MADE_LOCAL: [[&str; 3]; 2] = [
    ["address", "", "dev lo"],
    // Google's guest agent (GoogleCloudPlatform/guest-agent google_guest_agent/addresses.go).
    ["route", "local ", "dev eth0 proto 66"],
];

/// A balancer that passes packets through probes at the address that it balances, which the node
/// has too: the port of the health check says whether there are endpoints on the node, and the
/// proxy's own port whether it works, as it does of kube-proxy.
pub(super) fn health_checks_at_a_local_address(binary: &Path, dataplane: Dataplane) -> Result<()> {
    const PORT: u16 = 31_700;
    const AWAY_PORT: u16 = 31_701;
    let service = |name: &str, n, endpoint, port: u16| {
        Service::new(name, n, &[endpoint])
            .exposed()
            .with("externalTrafficPolicy", json!("Local"))
            .with("healthCheckNodePort", json!(port))
    };
    let here = service("here", 1, Host::Web1, PORT);
    let away = service("away", 2, Host::Web3, AWAY_PORT);
    // As it is without that flag.
    let flag = format!("--healthz-bind-address=0.0.0.0:{HEALTH_PORT}");
    let services = [here.clone(), away.clone()];
    let lab = Lab::new(binary, dataplane, &services, &[&flag])?;
    let client = lab.topology.host(Host::Client);
    for [object, kind, place] in MADE_LOCAL {
        let change = |verb: &str| -> Result<()> {
            let vips = Family::ALL.map(|family| [1, 2].map(|n| load_balancer_vip(family, n)));
            let mut lines = vips
                .iter()
                .flatten()
                .map(|vip| format!("{object} {verb} {kind}{vip} {place}\n"));
            lines.try_for_each(|line| lab.node().ip(&line))
        };
        change("add")?;
        let proxy = lab.start()?;
        for family in Family::ALL {
            for (service, port, wanted) in [
                (&here, PORT, "200 OK"),
                (&away, AWAY_PORT, "503 Service Unavailable"),
                (&here, HEALTH_PORT, "200 OK"),
            ] {
                let at = At::Vip.address(service, family, port);
                wait::until("the health check answers", || {
                    let answer = get_at(client, at, "/healthz").with_context(|| at.to_string())?;
                    ensure!(answer.contains(wanted), "{at} {place}: {answer}");
                    Ok(())
                })?;
            }
            let to = At::Vip.address(&here, family, 80);
            let seen = Some(Host::Client.address(family));
            let served = Wanted::Answer(&[Host::Web1], seen);
            lab.becomes("it serves", &[(Host::Client, to, served)])?;
        }
        lab.is_settled()?;
        proxy.terminate()?;
        change("delete")?;
    }
    Ok(())
}
