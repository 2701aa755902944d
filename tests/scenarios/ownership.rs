// SPDX-License-Identifier: Apache-2.0
//! What others made stays, without any setting: virtual servers, addresses, sets and rules.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Lab;
use super::neighbours::iptables;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::namespace::{Namespace, command};
use kpr_testkit::oracle;
use kpr_testkit::proxy::{Proxy, ask_proxy, series};
use kpr_testkit::topology::{Family, Host, external_ip};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, Servers, ask};
use kpr_testkit::wait;

/// `ipvsadm -R` takes these lines, `ipvsadm -S -n` prints them.
const VIRTUAL_SERVERS: [&str; 9] = [
    // An administrator's, by hand.
    "-A -t 192.0.2.1:80 -s rr",
    "-a -t 192.0.2.1:80 -r 192.0.2.2:80 -m -w 7",
    // keepalived's and kube-vip's: the address is on another link.
    "-A -t 172.20.0.250:6443 -s wlc -p 60",
    "-a -t 172.20.0.250:6443 -r 172.20.0.11:6443 -g -w 1",
    // By firewall marks, one of them among ours.
    "-A -f 100 -s lc",
    "-a -f 100 -r 192.0.2.2:0 -m -w 1",
    "-A -f 5000 -s rr",
    // A node port that an operator says is somebody else's.
    "-A -u 172.21.0.10:32000 -s sh",
    "-a -u 172.21.0.10:32000 -r 192.0.2.2:53 -m -w 3",
];
const ADDRESSES: &str = "address add 172.20.0.250/32 dev eth0\n";
const SETS: &str = "create ADMIN hash:ip family inet hashsize 1024 maxelem 65536
add ADMIN 192.0.2.9
create KUBE-ADMIN hash:ip,port family inet hashsize 1024 maxelem 65536
add KUBE-ADMIN 192.0.2.9,tcp:80
";
const RULES: &str = "*mangle
-A PREROUTING -d 192.0.2.1/32 -p tcp -m tcp --dport 443 -j MARK --set-xmark 0x64/0xffffffff
COMMIT
*nat
-A POSTROUTING -m set --match-set ADMIN src -j ACCEPT
COMMIT
*filter
:KUBE-ADMIN - [0:0]
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j KUBE-ADMIN
-A KUBE-ADMIN -m set --match-set KUBE-ADMIN dst,dst -j ACCEPT
COMMIT
";

const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

fn feed(node: &Namespace, program: &str, arguments: &[&str], text: &str) -> Result<()> {
    let mut command = command(program);
    command.args(arguments).stdin(Stdio::piped());
    let mut child = node
        .enter(|| command.spawn())?
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    ensure!(child.wait()?.success(), "{program} failed");
    Ok(())
}

/// Lines of others that are not there any more.
fn lost(node: &Namespace) -> Result<Vec<String>> {
    let lines = |program, arguments: &[&str]| -> Result<BTreeSet<String>> {
        let text = node.run(program, arguments)?;
        Ok(text.lines().map(|line| line.trim().to_owned()).collect())
    };
    let mut found = lines("ipvsadm", &["-S", "-n"])?;
    found.extend(lines("ipset", &["save"])?);
    found.extend(oracle::rules(node, Family::V4)?);
    let set_lines = SETS.lines().map(|line| line.trim().to_owned());
    let rule_lines = RULES.lines().filter(|line| line.starts_with("-A"));
    let wanted = VIRTUAL_SERVERS
        .into_iter()
        .chain(rule_lines)
        .map(str::to_owned)
        .chain(set_lines);
    let mut lost: Vec<String> = wanted
        // The kernel adds a seed and a size of its own to a set's line.
        .filter(|line| !found.iter().any(|found| found.starts_with(line.as_str())))
        .collect();
    let addresses = node.run("ip", &["-o", "address", "show", "dev", "eth0"])?;
    if !addresses.contains("172.20.0.250/32") {
        lost.push("address 172.20.0.250".to_owned());
    }
    Ok(lost)
}

fn survived(node: &Namespace, when: &str) -> Result<()> {
    let lost = lost(node)?;
    ensure!(lost.is_empty(), "lost {when}:\n{}", lost.join("\n"));
    Ok(())
}

pub(super) fn others_survive(binary: &Path) -> Result<()> {
    let local = |n| {
        Service::new(&format!("local-{n}"), n, &[Host::Web1, Host::Web3])
            .exposed()
            .with("externalTrafficPolicy", json!("Local"))
    };
    let mut web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(
        binary,
        &[web.clone(), local(2)],
        &["--ipvs-exclude-cidrs=172.21.0.10/32"],
    )?;
    let node = lab.node();
    node.ip(ADDRESSES)?;
    feed(
        node,
        "ipvsadm",
        &["-R"],
        &(VIRTUAL_SERVERS.join("\n") + "\n"),
    )?;
    feed(node, "ipset", &["restore"], SETS)?;
    feed(node, "iptables-restore", &["--noflush"], RULES)?;
    survived(node, "before the start")?;

    let proxy = lab.start()?;
    survived(node, "at the start")?;
    // A change of every kind, a hundred in all.
    for round in 0..25 {
        web.endpoints = match round % 2 {
            0 => vec![Endpoint::ready(Host::Web2)],
            _ => vec![Endpoint::ready(Host::Web1), Endpoint::ready(Host::Web4)],
        };
        lab.manifests.apply(&web)?;
        let other = local(3 + round % 3);
        lab.manifests.apply(&other)?;
        let served = |wanted: bool| {
            let to = At::Vip.address(&other, Family::V4, 80).to_string();
            wait::until("the kernel follows", || {
                let text = node.run("ipvsadm", &["-S", "-n"])?;
                let has_server = text
                    .lines()
                    .any(|line| line.contains(&format!("-t {to} -r")));
                ensure!(has_server == wanted, "{to} is served: {has_server}");
                Ok(())
            })
        };
        served(true)?;
        lab.manifests.delete(&other)?;
        lab.manifests
            .apply(&Service::new("brief", 9, &[Host::Web1]))?;
        served(false)?;
    }
    survived(node, "after a hundred changes")?;
    proxy.kill()?;
    let proxy = lab.start()?;
    survived(node, "over a restart")?;
    lab.nothing_to_do_soon()?;
    proxy.kill()?;

    clean_up(&lab, &["--ipvs-exclude-cidrs=172.21.0.10/32"])?;
    survived(node, "by --cleanup")?;
    let left = node.run("ipvsadm", &["-S", "-n"])?;
    let left = left.lines().filter(|line| line.starts_with("-A")).count();
    let foreign = VIRTUAL_SERVERS.iter().filter(|line| line.starts_with("-A"));
    ensure!(left == foreign.count(), "{left} virtual servers are left");
    Ok(())
}

/// The proxy takes away what is its own.
fn clean_up(lab: &Lab, flags: &[&str]) -> Result<()> {
    let arguments = [&["--cleanup"][..], flags].concat();
    let said = ask_proxy(lab.node(), &lab.invocation.binary, &arguments)?;
    ensure!(said.code == Some(0), "{:?}: {}", said.code, said.errors);
    Ok(())
}

/// A node port of a cluster that has a range of its own.
const NODE_PORT: u16 = 20_080;
/// What others have at the node's own address, the second at a port of the range that API servers
/// have unless they are told another.
const AT_THE_NODE: [&str; 4] = [
    "-A -t 172.20.0.10:5000 -s rr",
    "-a -t 172.20.0.10:5000 -r 192.0.2.2:80 -m -w 1",
    "-A -t 172.20.0.10:30500 -s rr",
    "-a -t 172.20.0.10:30500 -r 192.0.2.2:80 -m -w 1",
];

/// A node port whose Service went while nobody watched is the host's again, after a start and after
/// `--cleanup`: known by the set that lists it, and where rules and sets are gone, by the range.
pub(super) fn node_ports_of_any_range(binary: &Path) -> Result<()> {
    node_port_is_given_back(binary, &[], false).context("by the set")?;
    let range = ["--service-node-port-range=20000-22767"];
    node_port_is_given_back(binary, &range, true).context("by the range")
}

fn node_port_is_given_back(binary: &Path, range: &[&str], lacks_sets: bool) -> Result<()> {
    let mut web = Service::new("web", 1, &[Host::Web1, Host::Web3]).protocols(&PROTOCOLS);
    for port in &mut web.ports {
        port.node_port = Some(NODE_PORT);
    }
    // The connections of this test need not end first.
    let flags = [&["--ipvs-drain-limit=1s"][..], range].concat();
    let lab = Lab::new(binary, std::slice::from_ref(&web), &flags)?;
    let node = lab.node();
    feed(node, "ipvsadm", &["-R"], &(AT_THE_NODE.join("\n") + "\n"))?;
    let is_answered = |by: &[Host], when: &str| {
        wait::until(&format!("{by:?} answer at the node port {when}"), || {
            for family in Family::ALL {
                for protocol in PROTOCOLS {
                    let to = SocketAddr::new(Host::Node.address(family), NODE_PORT);
                    let client = lab.topology.host(Host::Client);
                    let outcome = ask(client, None, to, protocol, Patience::Short)?;
                    let is_right = matches!(&outcome, Outcome::Answered(answer)
                        if by.iter().any(|host| host.name() == answer.by));
                    ensure!(is_right, "{protocol} {to}: {outcome}");
                }
            }
            Ok(())
        })
    };
    let is_given_back = |when: &str| -> Result<()> {
        wait::until(&format!("no virtual server has the port {when}"), || {
            let saved = node.run("ipvsadm", &["-S", "-n"])?;
            let at = format!(":{NODE_PORT} ");
            ensure!(!saved.lines().any(|line| line.contains(&at)), "{saved}");
            Ok(())
        })?;
        is_answered(&[Host::Node], when)?;
        let saved = node.run("ipvsadm", &["-S", "-n"])?;
        for wanted in AT_THE_NODE {
            let is_there = saved.lines().any(|line| line.trim_end() == wanted);
            ensure!(is_there, "lost {when}: {wanted}\n{saved}");
        }
        Ok(())
    };
    let stops = |proxy: Proxy| -> Result<()> {
        proxy.kill()?;
        if lacks_sets {
            forget_rules_and_sets(node)?;
        }
        Ok(())
    };
    let proxy = lab.start()?;
    is_answered(&[Host::Web1, Host::Web3], "at first")?;
    stops(proxy)?;
    lab.manifests.delete(&web)?;
    // IPVS comes before it.
    let _host = Servers::at([(Host::Node, node, NODE_PORT)])?;
    let proxy = lab.start()?;
    is_given_back("after a start").with_context(|| proxy.log())?;
    lab.nothing_to_do_soon()?;
    lab.manifests.apply(&web)?;
    is_answered(&[Host::Web1, Host::Web3], "again")?;
    stops(proxy)?;
    clean_up(&lab, range)?;
    is_given_back("after --cleanup")?;
    let left = oracle::virtual_servers(node)?;
    ensure!(left.len() == AT_THE_NODE.len() / 2, "{left:?}");
    Ok(())
}

/// What an administrator does who starts from nothing, and forgets IPVS.
fn forget_rules_and_sets(node: &Namespace) -> Result<()> {
    for family in Family::ALL {
        for table in ["nat", "filter", "mangle", "security"] {
            iptables(node, family, &format!("-t {table} -F"))?;
        }
    }
    node.run("ipset", &["destroy"])?;
    Ok(())
}

/// Addresses that are somebody's are served where that is possible, and never taken for the node's
/// own.
pub(super) fn addresses_of_others(binary: &Path) -> Result<()> {
    let mut services = Vec::new();
    let mut held = Vec::new();
    for (name, n, of) in [("gateway", 1, 0), ("endpoint", 2, 1), ("link", 3, 2)] {
        let addresses = Family::ALL.map(|family| match (of, family) {
            (0, Family::V4) => "172.20.0.254".parse(),
            (0, Family::V6) => "fd00:20::fe".parse(),
            (1, family) => Ok(Host::Web3.address(family)),
            (_, family) => Ok(external_ip(family, 77)),
        });
        let addresses = addresses.into_iter().collect::<Result<Vec<_>, _>>()?;
        held.extend(addresses.iter().copied());
        let service = Service::new(name, n, &[Host::Web1]);
        services.push(service.with("externalIPs", json!(addresses)));
    }
    // Its endpoint is what the second one claims.
    services.push(Service::new("web", 4, &[Host::Web3]).exposed());
    let lab = Lab::new(binary, &services, &[])?;
    let node = lab.node();
    for family in Family::ALL {
        let bits = if family == Family::V4 { 32 } else { 128 };
        let address = external_ip(family, 77);
        node.ip(&format!("address add {address}/{bits} dev eth0\n"))?;
    }
    let proxy = lab.start()?;
    let bound = oracle::bound_addresses(node)?;
    for address in &held {
        ensure!(
            !bound.contains(address),
            "{address} is bound:\n{}",
            proxy.log()
        );
        let text = format!("address {address} is not bound to kube-ipvs0");
        proxy.wait_for_log(&[&text])?;
    }
    ensure!(bound.contains(&external_ip(Family::V4, 4)), "{bound:?}");
    let unbound = series(node, "kube_proxy_rs_unbound_addresses")?;
    let is_right = unbound.len() == 2 && unbound.values().all(|count| (2.5..3.5).contains(count));
    ensure!(is_right, "addresses are said to be unbound: {unbound:?}");
    for family in Family::ALL {
        // On its own link the address is served like any other, and its other ports stay the
        // host's.
        let to = SocketAddr::new(external_ip(family, 77), 80);
        let answer = ask(
            lab.topology.host(Host::Client),
            None,
            to,
            Protocol::Tcp,
            Patience::Long,
        )?;
        let is_right = matches!(&answer, Outcome::Answered(a) if a.by == Host::Web1.name());
        ensure!(is_right, "{to}: {answer}");
        // The pod is reached, not the Service that claims its address.
        let to = SocketAddr::new(Host::Web3.address(family), 8080);
        let answer = ask(
            lab.topology.host(Host::Shell),
            None,
            to,
            Protocol::Tcp,
            Patience::Long,
        )?;
        let is_right = matches!(&answer, Outcome::Answered(a) if a.by == Host::Web3.name());
        ensure!(is_right, "{to}: {answer}");
    }
    // The address moves to another node: here it is one of a Service now.
    for family in Family::ALL {
        let bits = if family == Family::V4 { 32 } else { 128 };
        let address = external_ip(family, 77);
        node.ip(&format!("address delete {address}/{bits} dev eth0\n"))?;
        wait::until("the address is bound", || {
            ensure!(
                oracle::bound_addresses(node)?.contains(&address),
                "{address}"
            );
            Ok(())
        })?;
    }
    lab.nothing_to_do_soon()
}
