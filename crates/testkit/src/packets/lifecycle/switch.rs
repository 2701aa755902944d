// SPDX-License-Identifier: Apache-2.0
//! From one mode to the other and back under load: no connection fails, none breaks, and nothing of
//! the former mode is left when its connections have ended.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::cases::At;
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::Namespace;
use crate::oracle;
use crate::proxy::{Invocation, Proxy};
use crate::steady_load::{Load, Plan};
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Connection, Outcome, Patience, Protocol, Servers, ask};
use crate::wait;

/// Connections between two events, for each load.
const BETWEEN: u64 = 100;

/// Load of both families from a pod to the cluster IP, from outside to node port and VIP, and from
/// the node itself.
pub(super) fn loads(topology: &Topology, service: &Service, rate: u32) -> Result<Vec<Load>> {
    let places: [(Host, &[At]); 3] = [
        (Host::Shell, &[At::ClusterIp]),
        (Host::Client, &[At::NodePort, At::Vip]),
        (Host::Node, &[At::ClusterIp]),
    ];
    let load = |(from, at): (Host, &[At])| {
        let both = Family::ALL.into_iter();
        let targets =
            both.flat_map(|family| at.iter().map(move |at| at.address(service, family, 80)));
        let plan = Plan {
            targets: targets.collect(),
            rate,
            held: 8,
        };
        Load::start(topology.host(from), plan).with_context(|| format!("from {from}"))
    };
    places.into_iter().map(load).collect()
}

pub(super) fn go_on(loads: &[Load]) -> Result<()> {
    loads.iter().try_for_each(|load| load.goes_on_for(BETWEEN))
}

pub(super) fn are_flawless(loads: Vec<Load>, what: &str) -> Result<()> {
    let mut results = Vec::new();
    for load in loads {
        let tally = load.finish()?;
        eprintln!("{what}: {}", tally.line());
        results.push(tally.is_flawless(2 * BETWEEN));
    }
    results.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(())
}

/// Nothing of IPVS mode is in the kernel.
fn has_no_ipvs(node: &Namespace) -> Result<()> {
    let servers = oracle::virtual_servers(node)?;
    ensure!(servers.is_empty(), "there are virtual servers: {servers:?}");
    let sets = oracle::sets(node)?;
    ensure!(sets.is_empty(), "there are sets: {sets:?}");
    let links = node.run("ip", &["-o", "link"])?;
    ensure!(!links.contains("kube-ipvs0"), "{links}");
    for family in Family::ALL {
        let rules = oracle::rules(node, family)?;
        let of_ipvs = |rule: &&String| {
            let words = [
                "KUBE-IPVS",
                "KUBE-NODE-PORT ",
                "KUBE-LOAD-BALANCER",
                "KUBE-SOURCE",
            ];
            rule.contains("kube-proxy firewall rules") || words.iter().any(|w| rule.contains(w))
        };
        let left: Vec<_> = rules.iter().filter(of_ipvs).collect();
        ensure!(left.is_empty(), "{left:#?}");
    }
    Ok(())
}

/// Nothing of iptables mode is in the kernel.
fn has_no_service_chains(node: &Namespace) -> Result<()> {
    for family in Family::ALL {
        let rules = oracle::rules(node, family)?;
        let of_iptables = |rule: &&String| {
            let words = [
                "-SVC-",
                "-SEP-",
                "-EXT-",
                "KUBE-EXTERNAL-SERVICES",
                "KUBE-NODEPORTS",
                "CANARY",
            ];
            rule.contains("load balancer firewall") || words.iter().any(|w| rule.contains(w))
        };
        let left: Vec<_> = rules.iter().filter(of_iptables).collect();
        ensure!(left.is_empty(), "{left:#?}");
    }
    Ok(())
}

pub(super) fn there_and_back(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let topology = Topology::new()?;
    let _servers = Servers::new(&topology)?;
    let manifests = ManifestDirectory::new(std::slice::from_ref(&service))?;
    let node = topology.host(Host::Node);
    let start = |mode: &str| {
        let invocation = Invocation::new(binary, &manifests, mode).in_cluster();
        Proxy::start(node, &invocation).with_context(|| format!("in {mode} mode"))
    };

    let proxy = start("ipvs")?;
    let opened_in_ipvs = loads(&topology, &service, 40)?;
    go_on(&opened_in_ipvs)?;
    proxy.terminate()?;
    go_on(&opened_in_ipvs)?;
    let proxy = start("iptables")?;
    go_on(&opened_in_ipvs).context("iptables mode after ipvs mode")?;
    are_flawless(opened_in_ipvs, "to iptables mode")?;
    wait::until_within(5 * wait::LIMIT, "ipvs mode is gone", || has_no_ipvs(node))
        .with_context(|| proxy.log())?;

    let opened_in_iptables = loads(&topology, &service, 40)?;
    go_on(&opened_in_iptables)?;
    proxy.terminate()?;
    let proxy = start("ipvs")?;
    go_on(&opened_in_iptables).context("ipvs mode after iptables mode")?;
    are_flawless(opened_in_iptables, "to ipvs mode")?;
    has_no_service_chains(node).with_context(|| proxy.log())
}

/// While a connection keeps an address of IPVS mode on the node, the node takes that address as the
/// source of its own connections to it. Nothing but the Service's own rules can tell then that the
/// answers must come back here.
pub(super) fn without_detector(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web3]);
    let topology = Topology::new()?;
    let _servers = Servers::new(&topology)?;
    let manifests = ManifestDirectory::new(std::slice::from_ref(&service))?;
    let node = topology.host(Host::Node);
    let start = |mode: &str| {
        let invocation = Invocation::new(binary, &manifests, mode);
        Proxy::start(node, &invocation).with_context(|| format!("in {mode} mode"))
    };
    let proxy = start("ipvs")?;
    let mut held = Vec::new();
    for family in Family::ALL {
        let to = At::ClusterIp.address(&service, family, 80);
        let shell = topology.host(Host::Shell);
        let opened = Connection::open(shell, to, Protocol::Tcp, Patience::Long)?;
        held.push(opened.map_err(|met| anyhow!("{to}: {met}"))?);
    }
    proxy.terminate()?;
    let _proxy = start("iptables")?;
    for family in Family::ALL {
        let to = At::ClusterIp.address(&service, family, 80);
        let met = ask(node, None, to, Protocol::Tcp, Patience::Long)?;
        let Outcome::Answered(answer) = &met else {
            bail!("{to}: {met}");
        };
        let own = Host::Node.addresses(family);
        ensure!(own.contains(&answer.source), "{to}: {met}");
    }
    held.iter_mut().try_for_each(Connection::echo)?;
    let bound = oracle::bound_addresses(node)?;
    ensure!(bound.len() == 2, "{bound:?}");
    Ok(())
}
