// SPDX-License-Identifier: Apache-2.0
//! What `explain` shows of connections, compared with what `conntrack -L` prints, and of rules,
//! compared with those that count a packet (`iptables-save -c`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use crate::cases::run::{SharedWorld, World, failed};
use crate::cases::{At, Backend, Dataplane};
use crate::flows::{Flow, flows};
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::Namespace;
use crate::proxy::{Invocation, Proxy, ask_proxy};
use crate::topology::{Family, Host};
use crate::traffic::{Connection, Outcome, Patience, Protocol, ask_again, datagram_socket};
use crate::wait;

/// The tests of a world.
pub fn trials(world: &SharedWorld, binary: &'static Path) -> Vec<Trial> {
    let (of_world, name) = (world.clone(), format!("{}::seen", world.dataplane()));
    let run = move || {
        of_world
            .without_proxy(|world| connections_are_shown(world, binary))
            .map_err(failed)
    };
    let mut trials = vec![Trial::test(
        format!("{name}::connections_are_as_conntrack_shows_them"),
        run,
    )];
    if let Dataplane::Iptables(backend) = world.dataplane() {
        let world = world.clone();
        let run = move || {
            world
                .without_proxy(|world| rules_are_met(world, binary, backend))
                .map_err(failed)
        };
        trials.push(Trial::test(
            format!("{name}::rules_are_those_that_count_a_packet"),
            run,
        ));
    }
    trials
}

/// Clients, and where they meet the Service.
const CLIENTS: [(Host, At); 4] = [
    (Host::Shell, At::ClusterIp),
    (Host::Node, At::ClusterIp),
    (Host::Client, At::Vip),
    (Host::Client, At::NodePort),
];

fn connections_are_shown(world: &World, binary: &Path) -> Result<()> {
    let service = Service::new("seen", 78, &[Host::Web1, Host::Web3])
        .protocols(&[Protocol::Tcp, Protocol::Udp])
        .exposed();
    let manifests = ManifestDirectory::new(std::slice::from_ref(&service))?;
    let mode = world.dataplane.mode().name();
    let invocation = Invocation::new(binary, &manifests, mode).in_cluster();
    let node = world.topology.host(Host::Node);
    let proxy = Proxy::start(node, &invocation)?;
    let shown = open(world, &service).and_then(|opened| {
        let result = compare(node, binary, &service);
        drop(opened);
        result
    });
    shown.with_context(|| format!("the log:\n{}", proxy.log()))
}

/// Held open while they are looked at.
struct Opened {
    _connections: Vec<Connection>,
    _sockets: Vec<std::net::UdpSocket>,
}

/// Two clients of each kind and protocol.
fn open(world: &World, service: &Service) -> Result<Opened> {
    let (mut connections, mut sockets) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        for (from, at) in CLIENTS {
            let to = at.address(service, family, 80);
            let host = world.topology.host(from);
            for _ in 0..2 {
                let opened = Connection::open(host, to, Protocol::Tcp, Patience::Long)?;
                connections.push(opened.map_err(|outcome| anyhow!("{from} at {to}: {outcome}"))?);
                let socket = datagram_socket(host, to)?;
                let outcome = ask_again(&socket, Patience::Long)?;
                let is_answered = matches!(outcome, Outcome::Answered(_));
                ensure!(is_answered, "{from} at {to}: {outcome}");
                sockets.push(socket);
            }
        }
    }
    Ok(Opened {
        _connections: connections,
        _sockets: sockets,
    })
}

fn compare(node: &Namespace, binary: &Path, service: &Service) -> Result<()> {
    for family in Family::ALL {
        for at in [At::ClusterIp, At::Vip, At::NodePort] {
            let to = at.address(service, family, 80);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                wait::until(&format!("{to} {protocol} is shown as it is"), || {
                    let there = flows(node, family, protocol)?;
                    let explained = explain(node, binary, &format!("{to}/{protocol}"), None)?;
                    is_shown(&explained["conntrack"], to, &there)
                })?;
            }
        }
    }
    // Of one client alone, and for people.
    let (to, from) = (
        At::ClusterIp.address(service, Family::V4, 80),
        Host::Shell.address(Family::V4),
    );
    let explained = explain(node, binary, &to.to_string(), Some(&from.to_string()))?;
    let clients = shown(&explained["conntrack"])?;
    ensure!(
        !clients.is_empty() && clients.iter().all(|(client, _)| client.ip() == from),
        "{explained:#}"
    );
    let printed = ask_proxy(node, binary, &["explain", &to.to_string(), "--from=pod"])?;
    let wanted = format!("{} -> ", clients.first().context("no client")?.0);
    ensure!(
        printed.text.contains("  conntrack    ") && printed.text.contains(&wanted),
        "{wanted:?} in {printed:?}"
    );
    Ok(())
}

/// The one explanation of a place for a pod, or for an address.
fn explain(node: &Namespace, binary: &Path, target: &str, from: Option<&str>) -> Result<Value> {
    let from = format!("--from={}", from.unwrap_or("pod"));
    let printed = ask_proxy(node, binary, &["explain", target, &from, "--output=json"])?;
    let explained: Value =
        serde_json::from_str(&printed.text).with_context(|| format!("{printed:?}"))?;
    ensure!(
        explained.as_array().map(Vec::len) == Some(1),
        "{explained:#}"
    );
    Ok(explained[0].clone())
}

/// Clients and who answers them.
type Ends = BTreeSet<(SocketAddr, SocketAddr)>;

/// The ends that are listed in an explanation.
pub fn shown(table: &Value) -> Result<Ends> {
    let end = |of: &Value| -> Result<SocketAddr> {
        let text = of.as_str().with_context(|| format!("{table:#}"))?;
        Ok(text.parse()?)
    };
    let listed = table["shown"].as_array();
    let listed = listed.with_context(|| format!("{table:#}"))?.iter();
    listed
        .map(|one| Ok((end(&one["client"])?, end(&one["endpoint"])?)))
        .collect()
}

fn is_shown(
    table: &Value,
    to: SocketAddr,
    there: &BTreeMap<(SocketAddr, SocketAddr), Flow>,
) -> Result<()> {
    let here = there
        .iter()
        .filter(|((_, destination), _)| *destination == to);
    let wanted: Ends = here
        .map(|((client, _), flow)| (*client, flow.answerer))
        .collect();
    ensure!(!wanted.is_empty(), "conntrack prints none to {to}");
    let found = shown(table)?;
    ensure!(found == wanted, "conntrack prints {wanted:?}, {table:#}");
    ensure!(table["count"] == wanted.len(), "{table:#}");
    let mut by_endpoint: BTreeMap<String, u64> = BTreeMap::new();
    for (_, endpoint) in &wanted {
        *by_endpoint.entry(endpoint.to_string()).or_default() += 1;
    }
    ensure!(
        table["byEndpoint"] == serde_json::json!(by_endpoint),
        "{table:#}"
    );
    Ok(())
}

/// Each client's connection is counted by the rules that `explain` shows for that client, and by no
/// other rule of any Service: those before the Service's own chains name it, too.
fn rules_are_met(world: &World, binary: &Path, backend: Backend) -> Result<()> {
    let web = Service::new("seen", 78, &[Host::Web1, Host::Web3]).exposed();
    let other = Service::new("unseen", 79, &[Host::Web2]).exposed();
    let nobody = Service::new("nobody", 80, &[]).exposed();
    let manifests = ManifestDirectory::new(&[web.clone(), other, nobody.clone()])?;
    let mode = world.dataplane.mode().name();
    let invocation = Invocation::new(binary, &manifests, mode).in_cluster();
    let node = world.topology.host(Host::Node);
    let proxy = Proxy::start(node, &invocation)?;
    for family in Family::ALL {
        for (from, at) in CLIENTS {
            let to = at.address(&web, family, 80);
            is_met(world, binary, (backend, family), from, to)
                .with_context(|| format!("{from} at {to}; the log:\n{}", proxy.log()))?;
            let to = at.address(&nobody, family, 80);
            is_met(world, binary, (backend, family), from, to)
                .with_context(|| format!("{from} at {to}; the log:\n{}", proxy.log()))?;
        }
    }
    Ok(())
}

fn is_met(
    world: &World,
    binary: &Path,
    (backend, family): (Backend, Family),
    from: Host,
    to: SocketAddr,
) -> Result<()> {
    let node = world.topology.host(Host::Node);
    let before = counted(node, backend, family)?;
    let host = world.topology.host(from);
    let opened = Connection::open(host, to, Protocol::Tcp, Patience::Long)?;
    let after = counted(node, backend, family)?;
    let last = match &opened {
        Ok(_) => "-j DNAT",
        Err(Outcome::Refused) => "-j REJECT",
        Err(outcome) => bail!("it was {outcome}"),
    };
    drop(opened);
    let met = after
        .iter()
        .filter(|(rule, packets)| before.get(*rule) < Some(packets));
    let met: BTreeSet<&str> = met.map(|(rule, _)| rule.as_str()).collect();
    let decisions = met.iter().filter(|rule| rule.contains(last));
    ensure!(decisions.count() == 1, "one rule decides: {met:#?}");
    let source = match from {
        Host::Shell => "pod",
        Host::Node => "node",
        _ => "outside",
    };
    let target = format!("{to}/tcp");
    let from = format!("--from={source}");
    let printed = ask_proxy(node, binary, &["explain", &target, &from, "--output=json"])?;
    let explained: Value = serde_json::from_str(&printed.text)?;
    let shown = explained[0]["rules"].as_array();
    let shown = shown.with_context(|| format!("{explained:#}"))?.iter();
    let shown: BTreeSet<&str> = shown.filter_map(Value::as_str).collect();
    let hidden: Vec<_> = met.difference(&shown).collect();
    ensure!(
        hidden.is_empty(),
        "not shown: {hidden:#?}\nof {met:#?}\n{explained:#}"
    );
    Ok(())
}

/// How many packets each rule of Services has counted: those of chains of a Service, those that
/// lead there, and those that refuse. A rule that is there twice counts for both.
fn counted(node: &Namespace, backend: Backend, family: Family) -> Result<BTreeMap<String, u64>> {
    let program = match family {
        Family::V4 => format!("iptables-{}-save", backend.name()),
        Family::V6 => format!("ip6tables-{}-save", backend.name()),
    };
    let text = node.run(&program, &["-c"])?;
    let mut counted = BTreeMap::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            // As `explain` has it.
            table = if name == "nat" {
                String::new()
            } else {
                format!("-t {name} ")
            };
        }
        // [5:300] -A KUBE-SVC-X -j KUBE-SEP-Y
        let Some((packets, rule)) = line.strip_prefix('[').and_then(|it| it.split_once("] "))
        else {
            continue;
        };
        let (packets, _) = packets.split_once(':').context("no counter")?;
        let is_of_service = ["SVC-", "SVL-", "EXT-", "FW-", "SEP-"]
            .iter()
            .any(|kind| rule.contains(&format!("KUBE-{kind}")));
        if is_of_service || rule.contains("-j REJECT") {
            *counted.entry(format!("{table}{rule}")).or_default() += packets.parse::<u64>()?;
        }
    }
    Ok(counted)
}
