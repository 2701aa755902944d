// SPDX-License-Identifier: Apache-2.0
//! Other programs of a node beside IPVS mode: what they do to packet marks, to our link, to the
//! order of rules; and a kernel that refuses something.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::oracle;
use kpr_testkit::packets::answers;
use kpr_testkit::proxy::{HEALTH_PORT, Proxy, get, get_at, metric, series, state};
use kpr_testkit::topology::{Family, Host, cluster_ip};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

/// With an hour between audits nothing but notifications can help.
const RARE: &str = "--ipvs-sync-period=1h";
const IN_NFTABLES: &str = "--ipvs-rules=nftables";

fn program(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

pub(super) fn iptables(node: &Namespace, family: Family, arguments: &str) -> Result<()> {
    let arguments: Vec<&str> = ["-w"].into_iter().chain(arguments.split(' ')).collect();
    node.run(program(family), &arguments)?;
    Ok(())
}

/// The client gets an answer from this server, which sees one of these addresses, if any are given.
fn is_served(
    lab: &Lab,
    (from, to): (Host, SocketAddr),
    protocol: Protocol,
    by: Host,
    seen: Option<IpAddr>,
) -> Result<()> {
    let outcome = ask(lab.topology.host(from), None, to, protocol, Patience::Long)?;
    let is_right = matches!(&outcome, Outcome::Answered(answer)
        if answer.by == by.name() && seen.is_none_or(|seen| seen == answer.source));
    ensure!(is_right, "{from} to {to} over {protocol}: {outcome}");
    Ok(())
}

/// What others do to marks, as rules that come and go.
const MARKERS: [&str; 7] = [
    // Calico's endpoint mark, before our rules and behind them.
    "filter INPUT 1 -j MARK --or-mark 0x00100000",
    "filter INPUT 9 -j MARK --or-mark 0xfff00000",
    // kube-router's verdicts.
    "filter INPUT 1 -j MARK --or-mark 0x30000",
    // Before routing, as for policy routing.
    "mangle PREROUTING 1 -j MARK --or-mark 0x00040000",
    // AWS VPC CNI and Cilium, among the bits of our marks.
    "mangle PREROUTING 1 -j MARK --or-mark 0xf80",
    // By what the node itself sends.
    "mangle OUTPUT 1 -j MARK --or-mark 0x00080000",
    "mangle OUTPUT 2 -j MARK --or-mark 0x00080000",
];

/// Pods and the node reach the endpoints of other nodes, and pods keep their address, whatever
/// others do to marks; and others still find their bits behind IPVS.
pub(super) fn marks(binary: &Path) -> Result<()> {
    marks_with(binary, &[RARE])
}

pub(super) fn marks_in_nftables(binary: &Path) -> Result<()> {
    marks_with(binary, &[RARE, IN_NFTABLES])
}

fn marks_with(binary: &Path, flags: &[&str]) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web3])
        .protocols(&[Protocol::Tcp, Protocol::Udp])
        .exposed()
        .with("externalTrafficPolicy", json!("Local"));
    let lab = Lab::new(binary, std::slice::from_ref(&service), flags)?;
    let node = lab.node();
    // portmap's, which masquerades for published ports.
    for family in Family::ALL {
        for rule in [
            "-t nat -N CNI-HOSTPORT-MASQ",
            "-t nat -A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
            "-t nat -I POSTROUTING 1 -j CNI-HOSTPORT-MASQ",
        ] {
            iptables(node, family, rule)?;
        }
    }
    let proxy = lab.start()?;
    let all_served = |what: &str| -> Result<()> {
        for family in Family::ALL {
            for at in [At::Vip, At::ExternalIp] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    for (from, seen) in [
                        (Host::Shell, Some(Host::Shell.address(family))),
                        (Host::Node, None),
                    ] {
                        let to = at.address(&service, family, 80);
                        is_served(&lab, (from, to), protocol, Host::Web3, seen)
                            .with_context(|| format!("{what}; the log:\n{}", proxy.log()))?;
                    }
                }
            }
        }
        Ok(())
    };
    all_served("without others")?;
    for marker in MARKERS {
        let (table, rest) = marker.split_once(' ').context("a table")?;
        let (chain, rest) = rest.split_once(' ').context("a chain")?;
        let (place, rule) = rest.split_once(' ').context("a place")?;
        for family in Family::ALL {
            let listed = node.run(program(family), &["-t", table, "-S", chain])?;
            // The first line is the policy.
            let place = place.parse::<usize>()?.min(listed.lines().count());
            iptables(
                node,
                family,
                &format!("-t {table} -I {chain} {place} {rule}"),
            )?;
        }
        all_served(marker)?;
        for family in Family::ALL {
            iptables(node, family, &format!("-t {table} -D {chain} {rule}"))?;
        }
    }
    let found_again = |bits: u32| -> Result<()> {
        for family in Family::ALL {
            let from = Host::Shell.address(family);
            let check = format!(
                "OUTPUT -s {from} -m mark ! --mark {bits:#x}/0xfff00f80 -m conntrack --ctstate NEW -j DROP"
            );
            iptables(node, family, &format!("-I {check}"))?;
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let to = At::Vip.address(&service, family, 80);
                is_served(&lab, (Host::Shell, to), protocol, Host::Web3, Some(from))
                    .with_context(|| format!("{bits:#x} is put back"))?;
            }
            iptables(node, family, &format!("-D {check}"))?;
        }
        Ok(())
    };
    let set = |edit: &str, rule: &str| -> Result<()> {
        let mut families = Family::ALL.into_iter();
        families.try_for_each(|family| iptables(node, family, &rule.replacen("-A", edit, 1)))
    };
    // Felix looks for the endpoint's bits behind IPVS to find whose policy it is.
    let felix = "-A INPUT -j MARK --or-mark 0x00100000";
    let cilium = "-t mangle -A PREROUTING -j MARK --or-mark 0xf80";
    set("-I", felix)?;
    found_again(0x0010_0000)?;
    set("-I", cilium)?;
    found_again(0x0010_0f80)?;
    set("-D", felix)?;
    found_again(0xf80)?;
    // Of rules in iptables.
    let saved = node.run("ipset", &["save"])?;
    let marks = saved.lines().filter(|line| line.contains(" skbmark "));
    for line in marks {
        let mark = line.split(" skbmark ").nth(1).unwrap_or_default();
        let mark = mark.split(['/', ' ']).next().unwrap_or_default();
        let mark =
            u32::from_str_radix(mark.trim_start_matches("0x"), 16).context(line.to_owned())?;
        ensure!(mark & 0xffff_e000 == 0, "{line}");
    }
    lab.nothing_to_do_soon()
}

/// What is done to the link, as shell text for `ip`.
fn tampering() -> Vec<(&'static str, Vec<String>)> {
    let [v4, v6] = Family::ALL.map(|family| cluster_ip(family, 1));
    let one = |text: &str| vec![text.to_owned()];
    vec![
        ("flushed", one("address flush dev kube-ipvs0")),
        (
            "up and down",
            one("link set kube-ipvs0 up\nlink set kube-ipvs0 down"),
        ),
        ("deleted", one("link delete kube-ipvs0")),
        (
            "an address deleted",
            vec![
                format!("address delete {v4}/32 dev kube-ipvs0"),
                format!("address delete {v6}/128 dev kube-ipvs0"),
            ],
        ),
        (
            "a local route deleted",
            vec![
                format!("route delete table local local {v4} dev kube-ipvs0"),
                format!("-6 route delete table local local {v6} dev kube-ipvs0"),
            ],
        ),
        (
            // kube-router v2.11.1, its service proxy beside ours and its end.
            "a link with the same address taken away",
            vec![
                "link add kube-dummy-if type dummy".to_owned(),
                "link set kube-dummy-if up".to_owned(),
                format!("address add {v4}/32 dev kube-dummy-if scope link"),
                format!(
                    "route replace local {v4} dev kube-dummy-if table local proto kernel scope host src {}",
                    Host::Node.address(Family::V4)
                ),
                "link delete kube-dummy-if".to_owned(),
            ],
        ),
    ]
}

pub(super) fn link_is_repaired(binary: &Path) -> Result<()> {
    let services = [Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed()];
    let lab = Lab::new(binary, &services, &[RARE])?;
    let node = lab.node();
    let proxy = lab.start()?;
    let wanted = oracle::wanted_addresses(&services);
    let serves = |what: &str| -> Result<()> {
        wait::until(&format!("kube-ipvs0 was {what}: it serves again"), || {
            let found = oracle::bound_addresses(node)?;
            ensure!(found == wanted, "{found:?}\n{}", proxy.log());
            for family in Family::ALL {
                let to = At::ClusterIp.address(&services[0], family, 80);
                for from in [Host::Shell, Host::Node] {
                    let from_host = lab.topology.host(from);
                    let outcome = ask(from_host, None, to, Protocol::Tcp, Patience::Short)?;
                    let is_right = matches!(outcome, Outcome::Answered(_));
                    ensure!(is_right, "{from} to {to}: {outcome}\n{}", proxy.log());
                }
            }
            Ok(())
        })
    };
    serves("made")?;
    for (what, commands) in tampering() {
        for command in commands {
            for line in command.lines() {
                let arguments: Vec<&str> = line.split(' ').collect();
                node.run("ip", &arguments).context(what)?;
            }
        }
        serves(what)?;
    }
    lab.nothing_to_do_soon()?;
    proxy.kill()?;
    // A route that went while nobody watched.
    let v4 = cluster_ip(Family::V4, 1).to_string();
    let route = [
        "route",
        "delete",
        "table",
        "local",
        "local",
        &v4,
        "dev",
        "kube-ipvs0",
    ];
    node.run("ip", &route)?;
    let proxy = lab.start()?;
    wait::until("the route is back after a start", || {
        let to = At::ClusterIp.address(&services[0], Family::V4, 80);
        let shell = lab.topology.host(Host::Shell);
        let outcome = ask(shell, None, to, Protocol::Tcp, Patience::Short)?;
        let is_right = matches!(outcome, Outcome::Answered(_));
        ensure!(is_right, "{outcome}\n{}", proxy.log());
        Ok(())
    })
}

/// IPv6 is disabled on our link: IPv4 is served, the proxy is healthy and says what to do, and
/// IPv6 is served once that is done.
pub(super) fn refused_addresses(binary: &Path) -> Result<()> {
    let services = [Service::new("web", 1, &[Host::Web1, Host::Web3])];
    let lab = Lab::new(binary, &services, &["--ipvs-sync-period=2s"])?;
    let node = lab.node();
    node.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
    // It waits until a round of both families has succeeded.
    let proxy = lab.start()?;
    let to = |family| At::ClusterIp.address(&services[0], family, 80);
    let served = |family| -> Result<()> {
        let shell = lab.topology.host(Host::Shell);
        let outcome = ask(shell, None, to(family), Protocol::Tcp, Patience::Short)?;
        let is_right = matches!(outcome, Outcome::Answered(_));
        ensure!(is_right, "{outcome}\n{}", proxy.log());
        Ok(())
    };
    served(Family::V4)?;
    proxy.wait_for_log(&["net.ipv6.conf.kube-ipvs0.disable_ipv6"])?;
    wait::until("the Service is set aside in IPv6 only", || {
        let refused = series(node, "kube_proxy_rs_refused_service_ports")?;
        let of = |family: &str| {
            let name = format!("kube_proxy_rs_refused_service_ports{{ip_family=\"{family}\"}}");
            refused.get(&name).copied()
        };
        let is_right = of("IPv4") == Some(0.0) && of("IPv6").is_some_and(|count| count > 0.0);
        ensure!(is_right, "{refused:?}");
        for path in ["/livez", "/healthz"] {
            let health = get(node, HEALTH_PORT, path)?;
            ensure!(health.starts_with("HTTP/1.0 200"), "{path}: {health}");
        }
        let shown = shown_of(node, "default/web")?;
        let object = format!("add address {} to kube-ipvs0: ", to(Family::V6).ip());
        let error = shown["IPv6"]["error"]["message"].as_str();
        let is_named = error.is_some_and(|error| error.starts_with(&object));
        ensure!(is_named && shown["IPv4"]["error"].is_null(), "{shown}");
        Ok(())
    })?;
    let drift = metric(node, "kube_proxy_rs_drift_total")?;
    ensure!(drift == 0.0, "a refusal is drift: {drift}");
    node.sysctl(&[("net/ipv6/conf/kube-ipvs0/disable_ipv6", "0")])?;
    wait::until("IPv6 is served", || served(Family::V6))?;
    wait::until("nothing is set aside", || {
        let refused = metric(node, "kube_proxy_rs_refused_service_ports")?;
        ensure!(refused == 0.0, "{refused}\n{}", proxy.log());
        let shown = shown_of(node, "default/web")?;
        ensure!(shown["IPv6"]["error"].is_null(), "{shown}");
        Ok(())
    })
}

/// What `/state` shows of a Service, by family.
fn shown_of(node: &Namespace, service: &str) -> Result<Value> {
    let shown = state(node, &format!("?service={service}"))?;
    Ok(shown["services"][service].clone())
}

/// IPv6 is off on the whole node: IPv4 is served, and nothing of it is a fault.
pub(super) fn no_ipv6(binary: &Path) -> Result<()> {
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let late = Service::new("late", 2, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, std::slice::from_ref(&web), &[RARE])?;
    let node = lab.node();
    node.sysctl(&[("net/ipv6/conf/all/disable_ipv6", "1")])?;
    let mut proxy = Proxy::spawn(node, lab.invocation.command())?;
    proxy.wait_until_synced_in(node, 1)?;
    // A change has its families too.
    lab.manifests.apply(&late)?;
    let services = [web, late];
    let mut wanted = oracle::wanted_virtual_servers(&services, "rr", &oracle::node_addresses());
    wanted.retain(|(_, address), _| address.is_ipv4());
    wait::until(
        "the virtual servers of IPv4 are there, and no other",
        || {
            let found = oracle::virtual_servers(node)?;
            let differences = oracle::differences(&wanted, &found);
            ensure!(differences.is_empty(), "{}", differences.join("\n"));
            Ok(())
        },
    )?;
    for service in &services {
        answers(&lab.topology, service, &[Family::V4], Patience::Long)?;
    }
    let mut addresses = oracle::wanted_addresses(&services);
    addresses.retain(IpAddr::is_ipv4);
    let bound = oracle::bound_addresses(node)?;
    ensure!(bound == addresses, "{bound:?}");
    let rules = oracle::rules(node, Family::V6)?;
    ensure!(
        !rules.iter().any(|rule| rule.contains("KUBE-")),
        "{rules:?}"
    );
    lab.nothing_to_do_soon()?;
    let health = get(node, HEALTH_PORT, "/healthz")?;
    ensure!(health.starts_with("HTTP/1.0 200"), "{health}");
    proxy.wait_for_log(&["IPv6 is disabled in this kernel, serving IPv4 only"])?;
    let log = proxy.log();
    let mut lines = log.lines();
    let fault = lines.find(|line| {
        // It warns of other things on every node of a test.
        line.contains(" ERROR ") || line.contains(" WARN ") && line.contains("IPv6")
    });
    ensure!(fault.is_none(), "{fault:?}");
    Ok(())
}

/// portmap publishes port 80 of a pod on all local addresses, which those of Services are here.
pub(super) fn published_ports(binary: &Path) -> Result<()> {
    let services = [Service::new("web", 1, &[Host::Web1]).protocols(&[Protocol::Tcp])];
    let lab = Lab::new(binary, &services, &[RARE])?;
    let node = lab.node();
    let publish = |family: Family| -> Result<()> {
        for chain in ["PREROUTING", "OUTPUT"] {
            let jump =
                format!("-t nat -I {chain} 1 -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT");
            iptables(node, family, &jump)?;
        }
        Ok(())
    };
    for family in Family::ALL {
        let pod = SocketAddr::new(Host::Web2.address(family), 8080);
        iptables(node, family, "-t nat -N CNI-HOSTPORT-DNAT")?;
        let rule =
            format!("-t nat -A CNI-HOSTPORT-DNAT -p tcp --dport 80 -j DNAT --to-destination {pod}");
        iptables(node, family, &rule)?;
        publish(family)?;
    }
    let proxy = lab.start()?;
    let serves = |when: &str| {
        wait::until(&format!("Services win {when}"), || {
            for family in Family::ALL {
                let to = At::ClusterIp.address(&services[0], family, 80);
                for from in [Host::Shell, Host::Node] {
                    is_served(&lab, (from, to), Protocol::Tcp, Host::Web1, None)
                        .with_context(|| proxy.log())?;
                }
                // The published port itself.
                let to = SocketAddr::new(Host::Node.address(family), 80);
                is_served(&lab, (Host::Client, to), Protocol::Tcp, Host::Web2, None)?;
            }
            Ok(())
        })
    };
    serves("where they came later")?;
    for family in Family::ALL {
        publish(family)?;
    }
    serves("where the jump is put above ours again")?;
    lab.nothing_to_do_soon()
}

/// A balancer that passes packets through probes at the address that it balances.
pub(super) fn health_checks(binary: &Path) -> Result<()> {
    health_checks_with(binary, &[])
}

pub(super) fn health_checks_in_nftables(binary: &Path) -> Result<()> {
    health_checks_with(binary, &[IN_NFTABLES])
}

fn health_checks_with(binary: &Path, flags: &[&str]) -> Result<()> {
    const PORT: u16 = 31_700;
    const AWAY_PORT: u16 = 31_701;
    let service = |name: &str, n, endpoint, port: u16| {
        Service::new(name, n, &[endpoint])
            .protocols(&[Protocol::Tcp])
            .exposed()
            .with("externalTrafficPolicy", json!("Local"))
            .with("healthCheckNodePort", json!(port))
    };
    let here = service("here", 1, Host::Web1, PORT);
    let away = service("away", 2, Host::Web3, AWAY_PORT);
    // As it is without that flag.
    let own = format!("--healthz-bind-address=0.0.0.0:{HEALTH_PORT}");
    let flags = [flags, &[own.as_str()]].concat();
    let lab = Lab::new(binary, &[here.clone(), away.clone()], &flags)?;
    let proxy = lab.start()?;
    let client = lab.topology.host(Host::Client);
    for family in Family::ALL {
        let node = |port| SocketAddr::new(Host::Node.address(family), port);
        let vip = At::Vip.address(&here, family, PORT);
        let of_away = At::Vip.address(&away, family, AWAY_PORT);
        for (at, wanted) in [
            (node(PORT), "200 OK"),
            (vip, "200 OK"),
            (node(AWAY_PORT), "503 Service Unavailable"),
            (of_away, "503 Service Unavailable"),
            (node(HEALTH_PORT), "200 OK"),
        ] {
            wait::until("the health check answers", || {
                let answer = get_at(client, at, "/healthz")?;
                ensure!(answer.contains(wanted), "{at}: {answer}\n{}", proxy.log());
                Ok(())
            })?;
        }
        let closed = [
            At::ExternalIp.address(&here, family, PORT),
            At::Vip.address(&away, family, PORT),
            SocketAddr::new(vip.ip(), HEALTH_PORT),
            SocketAddr::new(vip.ip(), 22),
        ];
        for at in closed {
            let outcome = ask(client, None, at, Protocol::Tcp, Patience::Long)?;
            ensure!(outcome == Outcome::Refused, "{at}: {outcome}");
        }
    }
    Ok(())
}
