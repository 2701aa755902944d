// SPDX-License-Identifier: Apache-2.0
//! `explain`, `top`, the page and the traffic metrics of Services, compared with what `ipvsadm`
//! prints of the same kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::packets::seen::shown;
use kpr_testkit::proxy::{METRICS_PORT, ask_proxy, get, series};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Connection, Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

/// Connections, packets in and out, bytes in and out.
type Counts = [u64; 5];

/// What `ipvsadm` prints of servers: by virtual server, and by virtual and real server.
#[derive(Debug, Default)]
struct Printed {
    servers: BTreeMap<String, Vec<u64>>,
    real_servers: BTreeMap<(String, String), Vec<u64>>,
}

/// The numbers behind the names that `ipvsadm -Ln` and `ipvsadm -Ln --stats --exact` print.
fn ipvsadm(node: &Namespace, options: &[&str]) -> Result<Printed> {
    let text = node.run("ipvsadm", &[&["-L", "-n"], options].concat())?;
    let mut printed = Printed::default();
    let mut server = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let numbers = |from: usize| -> Vec<u64> {
            let rest = words.iter().skip(from);
            rest.filter_map(|word| word.parse().ok()).collect()
        };
        match words.as_slice() {
            ["->", real, rest @ ..] if !server.is_empty() && !rest.is_empty() => {
                // A method and a weight, where counters are not asked for.
                let from = if options.is_empty() { 4 } else { 2 };
                let key = (server.clone(), (*real).to_owned());
                printed.real_servers.insert(key, numbers(from));
            }
            [protocol @ ("TCP" | "UDP" | "SCTP"), place, ..] => {
                server = format!("{protocol} {place}");
                printed.servers.insert(server.clone(), numbers(2));
            }
            _ => {}
        }
    }
    Ok(printed)
}

pub(super) fn connections(binary: &Path) -> Result<()> {
    let hosts = [Host::Web1, Host::Web3];
    let service = Service::new("web", 1, &hosts).protocols(&[Protocol::Tcp, Protocol::Udp]);
    let lab = Lab::new(binary, std::slice::from_ref(&service), &[])?;
    let proxy = lab.start()?;
    let (node, shell) = (lab.node(), lab.topology.host(Host::Shell));
    let mut opened = Vec::new();
    for family in Family::ALL {
        let to = At::ClusterIp.address(&service, family, 80);
        for _ in 0..3 {
            let connection = Connection::open(shell, to, Protocol::Tcp, Patience::Long)?;
            opened.push(connection.map_err(|outcome| anyhow!("{to}: {outcome}"))?);
        }
        ensure!(
            matches!(
                ask(shell, None, to, Protocol::Udp, Patience::Long)?,
                Outcome::Answered(_)
            ),
            "{to}"
        );
    }
    for family in Family::ALL {
        let to = At::ClusterIp.address(&service, family, 80);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            wait::until(&format!("{to} {protocol} is shown as it is"), || {
                is_shown(node, binary, to, protocol)
            })
            .with_context(|| format!("the log:\n{}", proxy.log()))?;
        }
    }
    wait::until("the page shows what ipvsadm prints", || {
        let page = get(node, METRICS_PORT, "/?q=default/web")?;
        let printed = ipvsadm(node, &[])?;
        let rows = page.matches("<tr class=\"e\">").count();
        ensure!(rows == printed.real_servers.len(), "{rows}: {printed:?}");
        for server in printed.servers.keys() {
            let code = format!("<code>{server}</code>");
            ensure!(page.contains(&code), "{code} is not in {page}");
        }
        for ((_, real), numbers) in &printed.real_servers {
            let [active, inactive] = numbers.as_slice() else {
                anyhow::bail!("{printed:?}")
            };
            let end = format!("<td class=\"n\">{active}<td class=\"n\">{inactive}</tr>");
            let start = format!("<code>{real}</code>");
            let mut lines = page.lines();
            ensure!(
                lines.any(|line| line.contains(&start) && line.ends_with(&end)),
                "{real} {numbers:?} is not in {page}"
            );
        }
        Ok(())
    })?;
    drop(opened);
    Ok(())
}

fn is_shown(node: &Namespace, binary: &Path, to: SocketAddr, protocol: Protocol) -> Result<()> {
    let target = format!("{to}/{protocol}");
    let arguments = ["explain", &target, "--from=pod", "--output=json"];
    // Read between two readings of the other program that agree.
    let before = remembered(node, to, protocol)?;
    let printed = ask_proxy(node, binary, &arguments)?;
    let explained: serde_json::Value = serde_json::from_str(&printed.text)?;
    let explained = &explained[0];
    ensure!(before == remembered(node, to, protocol)?, "it changes");
    ensure!(!before.is_empty(), "ipvsadm prints no connection");
    let found = shown(&explained["ipvsConnections"])?;
    ensure!(found == before, "ipvsadm prints {before:?}, {explained:#}");
    let server = format!("{} {to}", protocol.manifest_name());
    ensure!(explained["virtualServer"] == server, "{explained:#}");
    let there = ipvsadm(node, &[])?;
    let real_servers = explained["realServers"].as_array();
    for real in real_servers.context("no real servers")? {
        let endpoint = real["endpoint"].as_str().unwrap_or_default().to_owned();
        let numbers = there.real_servers.get(&(server.clone(), endpoint));
        let shown = ["activeConnections", "inactiveConnections"].map(|name| real[name].as_u64());
        let shown: Option<Vec<u64>> = shown.into_iter().collect();
        ensure!(numbers == shown.as_ref(), "{there:?}, {explained:#}");
    }
    Ok(())
}

/// What `ipvsadm -Lnc` prints of connections to a place: client and real server.
fn remembered(
    node: &Namespace,
    to: SocketAddr,
    protocol: Protocol,
) -> Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    let text = node.run("ipvsadm", &["-L", "-n", "-c"])?;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        // TCP 14:58  ESTABLISHED 10.244.1.5:41234 10.96.0.1:80 10.244.1.11:8080
        if let [name, _, _, client, server, real] =
            line.split_whitespace().collect::<Vec<_>>().as_slice()
            && *name == protocol.manifest_name()
            && server.parse() == Ok(to)
        {
            found.insert((client.parse()?, real.parse()?));
        }
    }
    Ok(found)
}

pub(super) fn counters(binary: &Path) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let other = Service::new("other", 2, &[Host::Web2]);
    let flags = [
        "--service-metrics-namespaces=default",
        "--service-metrics-endpoints",
        "--ipvs-sync-period=3s",
    ];
    let lab = Lab::new(binary, &[web.clone(), other], &flags)?;
    let proxy = lab.start()?;
    let node = lab.node();
    let talk = |count: usize| -> Result<()> {
        let shell = lab.topology.host(Host::Shell);
        let to = At::ClusterIp.address(&web, Family::V4, 80);
        let vip = At::Vip.address(&web, Family::V4, 80);
        for _ in 0..count {
            for to in [to, vip] {
                let outcome = ask(shell, None, to, Protocol::Tcp, Patience::Long)?;
                ensure!(matches!(outcome, Outcome::Answered(_)), "{to}: {outcome}");
            }
        }
        Ok(())
    };
    talk(4)?;
    let all = wait::until("the metrics are as ipvsadm counts", || {
        let counted = counted(node, "service", "web")?;
        let there = sum(&ipvsadm(node, &["--stats", "--exact"])?, &web)?;
        ensure!(counted == there && there[0] >= 8, "{counted:?}, {there:?}");
        ensure!(counted_endpoints(node)? == there, "{there:?}");
        Ok(counted)
    })
    .with_context(|| format!("the log:\n{}", proxy.log()))?;

    let top = ask_proxy(
        node,
        binary,
        &["top", "--once", "--filter=default/web", "--limit=99"],
    )?;
    ensure!(top.code == Some(0), "{top:?}");
    wait::until("top is as ipvsadm counts", || {
        let top = ask_proxy(
            node,
            binary,
            &["top", "--once", "--filter=default/web", "--limit=99"],
        )?;
        let printed = ipvsadm(node, &["--stats", "--exact"])?;
        let rates = ipvsadm(node, &["--rate"])?;
        let mut found = BTreeMap::new();
        for line in top.text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            // Name and protocol are a word each, and so is the place.
            let server = words.get(1..3).context("no server")?.join(" ");
            let numbers: Vec<u64> = words
                .iter()
                .skip(3)
                .filter_map(|w| w.parse().ok())
                .collect();
            found.insert(server, numbers);
        }
        ensure!(found.len() == of(&web).len(), "{top:?}");
        for (server, numbers) in found {
            let (stats, rate) = (printed.servers.get(&server), rates.servers.get(&server));
            let (Some([connections, ..]), Some(rate)) = (stats.map(Vec::as_slice), rate) else {
                anyhow::bail!("{server}: {printed:?}")
            };
            let wanted = [rate.as_slice(), &[*connections]].concat();
            ensure!(
                numbers.starts_with(&wanted),
                "{server}: {numbers:?}, {wanted:?}"
            );
        }
        Ok(())
    })?;

    // Somebody deletes virtual servers: they come back, and count from zero.
    let mut deleted = 0;
    for server in of(&web) {
        let (protocol, place) = server.split_once(' ').context("no place")?;
        if protocol == "TCP" && place.parse::<SocketAddr>()?.is_ipv4() {
            node.run("ipvsadm", &["-D", "-t", place])?;
            deleted += 1;
        }
    }
    ensure!(deleted > 2, "{deleted}");
    wait::until("the virtual servers are back", || lab.nothing_to_do())?;
    talk(1)?;
    let more = wait::until("both are counted", || {
        let there = sum(&ipvsadm(node, &["--stats", "--exact"])?, &web)?;
        ensure!(there[0] >= 2, "{there:?}");
        let counted = counted(node, "service", "web")?;
        let wanted: Vec<u64> = all.iter().zip(there).map(|(a, b)| a + b).collect();
        ensure!(counted.as_slice() == wanted, "{counted:?}, {wanted:?}");
        Ok(counted)
    })?;
    ensure!(more[0] > all[0], "{more:?}");

    // A restart begins with what the kernel says.
    proxy.kill()?;
    let proxy = lab.start()?;
    wait::until("a new process counts as the kernel does", || {
        let counted = counted(node, "service", "web")?;
        let there = sum(&ipvsadm(node, &["--stats", "--exact"])?, &web)?;
        ensure!(counted == there, "{counted:?}, {there:?}");
        Ok(())
    })
    .with_context(|| format!("the log:\n{}", proxy.log()))
}

/// The virtual servers of a Service in both families, as `ipvsadm` names them.
fn of(service: &Service) -> Vec<String> {
    let nodes = kpr_testkit::oracle::node_addresses();
    let services = std::slice::from_ref(service);
    let wanted = kpr_testkit::oracle::wanted_virtual_servers(services, "rr", &nodes);
    // That of a mark belongs to no Service.
    let keys = wanted
        .into_keys()
        .filter(|(_, at)| !at.ip().is_unspecified());
    keys.map(|(protocol, at)| format!("{} {at}", protocol.manifest_name()))
        .collect()
}

/// What `ipvsadm` has counted of all virtual servers of a Service.
fn sum(printed: &Printed, service: &Service) -> Result<Counts> {
    let mut sum = Counts::default();
    for server in of(service) {
        let counts = printed.servers.get(&server);
        let counts = counts.with_context(|| format!("no {server} in {printed:?}"))?;
        ensure!(counts.len() == sum.len(), "{server}: {counts:?}");
        for (sum, count) in sum.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    Ok(sum)
}

/// The metrics of a Service, in the order of `ipvsadm`'s columns.
fn counted(node: &Namespace, kind: &str, service: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    let columns = [
        ("connections", ""),
        ("packets", "direction=\"in\""),
        ("packets", "direction=\"out\""),
        ("bytes", "direction=\"in\""),
        ("bytes", "direction=\"out\""),
    ];
    for (count, (name, direction)) in counts.iter_mut().zip(columns) {
        let found = series(node, &format!("kube_proxy_rs_{kind}_{name}_total"))?;
        let of_service = format!("service_name=\"{service}\"");
        let ours = found
            .iter()
            .filter(|(labels, _)| labels.contains(&of_service) && labels.contains(direction));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count"
        )]
        let total = ours.map(|(_, value)| *value as u64).sum();
        *count = total;
    }
    Ok(counts)
}

fn counted_endpoints(node: &Namespace) -> Result<Counts> {
    counted(node, "endpoint", "web")
}

/// An endpoint that is removed while a client is connected: `status`, `top`, `explain` and the page
/// say of it what `ipvsadm` prints, and that a virtual server was put right.
pub(super) fn draining(binary: &Path) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).protocols(&[Protocol::Tcp]);
    let other = Service::new("other", 2, &[Host::Web2]);
    let lab = Lab::new(
        binary,
        &[web.clone(), other.clone()],
        &["--ipvs-sync-period=3s"],
    )?;
    let proxy = lab.start()?;
    let node = lab.node();
    let status = || -> Result<serde_json::Value> {
        let printed = ask_proxy(node, binary, &["status", "--output=json"])?;
        Ok(serde_json::from_str(&printed.text)?)
    };
    // Endpoints take turns.
    let mut opened = Vec::new();
    for family in Family::ALL {
        let to = At::ClusterIp.address(&web, family, 80);
        for _ in 0..2 {
            let shell = lab.topology.host(Host::Shell);
            let connection = Connection::open(shell, to, Protocol::Tcp, Patience::Long)?;
            opened.push(connection.map_err(|outcome| anyhow!("{to}: {outcome}"))?);
        }
    }
    let left = Service::new("web", 1, &[Host::Web1]).protocols(&[Protocol::Tcp]);
    lab.manifests.apply(&left)?;
    wait::until("status counts what ipvsadm prints with weight 0", || {
        let printed = ipvsadm(node, &[])?;
        let weights = weights(node)?;
        let drains = weights.values().filter(|weight| **weight == 0).count();
        let status = status()?;
        ensure!(
            drains == 2 && status["drainingServers"] == drains,
            "{status:#}, {weights:?}"
        );
        let by_family =
            ["IPv4", "IPv6"].map(|family| status["families"][family]["draining"].as_u64());
        ensure!(by_family == [Some(1), Some(1)], "{status:#}");
        let rows = endpoints_of_top(node, binary, "default/web")?;
        let of_web = of(&left);
        let wanted = printed
            .real_servers
            .iter()
            .filter(|((server, _), _)| of_web.contains(server));
        let wanted: BTreeMap<_, _> = wanted
            .map(|(key, counts)| (key.clone(), (weights.get(key).copied(), counts.clone())))
            .collect();
        ensure!(rows == wanted, "top {rows:?}, ipvsadm {wanted:?}");
        let page = get(node, METRICS_PORT, "/?q=default/web")?;
        ensure!(page.matches(", drains").count() == drains, "{page}");
        ensure!(
            page.contains(&format!("{drains} endpoints draining")),
            "{page}"
        );
        Ok(())
    })
    .with_context(|| format!("the log:\n{}", proxy.log()))?;
    drop(opened);

    // Somebody deletes a virtual server.
    let place = At::ClusterIp.address(&other, Family::V4, 80).to_string();
    node.run("ipvsadm", &["-D", "-t", &place])?;
    wait::until("status says that it was put right", || {
        let status = status()?;
        let drift = &status["drift"]["add-virtual-server"];
        ensure!(*drift == serde_json::json!([1, 1]), "{status:#}");
        ensure!(
            ipvsadm(node, &[])?
                .servers
                .contains_key(&format!("TCP {place}"))
        );
        Ok(())
    })
}

/// The weights that `ipvsadm -Ln` prints, by virtual and real server.
fn weights(node: &Namespace) -> Result<BTreeMap<(String, String), u64>> {
    let text = node.run("ipvsadm", &["-L", "-n"])?;
    let mut weights = BTreeMap::new();
    let mut server = String::new();
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["->", real, _, weight, _, _] if !server.is_empty() => {
                weights.insert((server.clone(), (*real).to_owned()), weight.parse()?);
            }
            [protocol @ ("TCP" | "UDP" | "SCTP"), place, ..] => {
                server = format!("{protocol} {place}");
            }
            _ => {}
        }
    }
    Ok(weights)
}

/// Weight, active and inactive connections of each endpoint, as `top` prints them.
type Endpoints = BTreeMap<(String, String), (Option<u64>, Vec<u64>)>;

fn endpoints_of_top(node: &Namespace, binary: &Path, filter: &str) -> Result<Endpoints> {
    let filter = format!("--filter={filter}");
    let arguments = ["top", "--once", "--endpoints", &filter, "--limit=99"];
    let top = ask_proxy(node, binary, &arguments)?;
    ensure!(top.code == Some(0), "{top:?}");
    let mut rows = BTreeMap::new();
    for line in top.text.lines().skip(1) {
        // SERVICE, TCP 10.96.0.1:80, 10.244.1.11:8080, 1 or 0 drains, five rates, CONNS, ACTIVE,
        // INACTIVE
        let words: Vec<&str> = line
            .split_whitespace()
            .filter(|it| *it != "drains")
            .collect();
        let [_, protocol, place, endpoint, weight, .., active, inactive] = words.as_slice() else {
            anyhow::bail!("{line:?}")
        };
        let key = (format!("{protocol} {place}"), (*endpoint).to_owned());
        let counts = vec![active.parse()?, inactive.parse()?];
        rows.insert(key, (Some(weight.parse()?), counts));
    }
    Ok(rows)
}
