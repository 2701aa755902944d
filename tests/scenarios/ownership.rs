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
use kpr_testkit::cases::At;
use kpr_testkit::manifests::{Endpoint, Service};
use kpr_testkit::namespace::{Namespace, command};
use kpr_testkit::oracle;
use kpr_testkit::proxy::series;
use kpr_testkit::topology::{Family, Host, external_ip};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
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

    let mut cleanup = command(binary);
    cleanup
        .args(["--cleanup", "--ipvs-exclude-cidrs=172.21.0.10/32"])
        .stdin(Stdio::null());
    let output = node.enter(|| cleanup.output())??;
    ensure!(
        output.status.success(),
        "--cleanup: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    survived(node, "by --cleanup")?;
    let left = node.run("ipvsadm", &["-S", "-n"])?;
    let left = left.lines().filter(|line| line.starts_with("-A")).count();
    let foreign = VIRTUAL_SERVERS.iter().filter(|line| line.starts_with("-A"));
    ensure!(left == foreign.count(), "{left} virtual servers are left");
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
