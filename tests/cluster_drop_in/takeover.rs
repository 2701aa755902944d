// SPDX-License-Identifier: Apache-2.0
//! From the real kube-proxy to ours and back under load, in iptables mode: no connection fails,
//! none breaks, kube-proxy can do its work afterwards, and after the clean-up the kernel is as it
//! was before the first start.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::Test;
use crate::ours;
use kpr_testkit::cases::At;
use kpr_testkit::differential::side::{add_sources, source};
use kpr_testkit::kernel;
use kpr_testkit::manifests::{Service, list};
use kpr_testkit::namespace::{Namespace, Uplink, command};
use kpr_testkit::proxy::{self, Proxy};
use kpr_testkit::steady_load::{Load, Plan};
use kpr_testkit::testbed::{Objects, Testbed};
use kpr_testkit::topology::{CLUSTER_CIDRS, Family, Host, Topology, cluster_ip, node_port};
use kpr_testkit::traffic::{Answer, Outcome, Patience, Protocol, Servers, ask};
use kpr_testkit::wait;

pub(crate) const TESTS: &[Test] = &[
    (
        "a_takeover_from_kube_proxy_and_back_costs_no_connection",
        there_and_back,
    ),
    (
        "a_takeover_from_nftables_mode_costs_no_connection",
        from_nftables_mode,
    ),
    ("clients_keep_their_endpoints", clients_keep_their_endpoints),
];

/// Connections between two events, for one load after the other.
const BETWEEN: u64 = 100;

/// With what kube-proxy and ours are both told.
fn with_flags(program: &Path, testbed: &Testbed, mode: &str) -> Command {
    let mut command = command(program);
    command
        .arg(format!(
            "--kubeconfig={}",
            testbed.kubeconfig("proxy").display()
        ))
        .arg(format!("--proxy-mode={mode}"))
        .args(["--hostname-override=node", "--v=2"])
        .arg(format!("--cluster-cidr={CLUSTER_CIDRS}"))
        // Not for a network namespace to change.
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"]);
    command
}

/// `kube-proxy-rs plan` with the same flags.
fn plan_exits_with(node: &Namespace, testbed: &Testbed, code: i32) -> Result<()> {
    let mut plan = command(ours());
    plan.arg("plan")
        .args(with_flags(&ours(), testbed, "iptables").get_args())
        .stdin(Stdio::null());
    let output = node.enter(|| plan.output())??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.code() == Some(code),
        "{}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!((code == 2) == said.contains("KUBE-SERVICES"), "{said}");
    Ok(())
}

/// Starts it and waits until it has written its rules.
fn start(node: &Namespace, testbed: &Testbed, program: &Path) -> Result<Proxy> {
    start_in(node, testbed, program, "iptables")
}

fn start_in(node: &Namespace, testbed: &Testbed, program: &Path, mode: &str) -> Result<Proxy> {
    let mut proxy = Proxy::spawn(node, with_flags(program, testbed, mode))?;
    let synced = wait::until("it has synced", || {
        ensure!(proxy.is_running()?, "it has ended");
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        let synced = proxy::series(node, name)?;
        ensure!(
            synced.values().filter(|time| **time > 0.0).count() == 2,
            "{synced:?}"
        );
        Ok(())
    });
    synced.with_context(|| format!("{}:\n{}", program.display(), proxy.log()))?;
    Ok(proxy)
}

/// 201 new connections per second and 21 long-lived ones, of both families: from a pod, from the
/// node, from outside.
fn loads(topology: &Topology, service: &Service) -> Result<Vec<Load>> {
    let to_cluster_ip = Family::ALL.map(|family| (cluster_ip(family, service.n), 80).into());
    let to_node_port =
        Family::ALL.map(|family| (Host::Node.address(family), node_port(service.n)).into());
    [
        (Host::Shell, to_cluster_ip),
        (Host::Node, to_cluster_ip),
        (Host::Client, to_node_port),
    ]
    .into_iter()
    .map(|(from, targets)| {
        let plan = Plan {
            targets: targets.to_vec(),
            rate: 67,
            held: 7,
        };
        Load::start(topology.host(from), plan).with_context(|| format!("from {from}"))
    })
    .collect()
}

fn go_on(loads: &[Load]) -> Result<()> {
    loads.iter().try_for_each(|load| load.goes_on_for(BETWEEN))
}

/// All rules of one family that have one of these words.
fn rules_with(node: &Namespace, program: &str, words: &[&str]) -> Result<Vec<String>> {
    let rules = node.run(program, &[])?;
    let found = rules
        .lines()
        .filter(|line| words.iter().any(|word| line.contains(word)));
    Ok(found.map(str::to_owned).collect())
}

/// `--cleanup`, after which the kernel must be as it was.
fn clean_up(node: &Namespace, before: &kernel::Kernel) -> Result<()> {
    let mut command = command(ours());
    command.arg("--cleanup").stdin(Stdio::null());
    let output = node.enter(|| command.output())??;
    let differences = kernel::differences(before, &kernel::read(node)?);
    ensure!(
        output.status.success() && differences.is_empty(),
        "{}: {differences:#?}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The node's way to the API server.
fn uplink(testbed: &Testbed, node: &Namespace) -> Result<Uplink> {
    let uplink = Uplink::new(node, "api0", testbed.env("BRIDGE"))?;
    node.ip(&format!(
        "address add {}.254/24 dev api0\n",
        testbed.env("NET4")
    ))?;
    Ok(uplink)
}

fn there_and_back(testbed: &Testbed) -> Result<()> {
    let kube_proxy = Path::new(testbed.env("BIN")).join("kube-proxy");
    ensure!(
        kube_proxy.exists(),
        "build it: hack/testbed/build kube-proxy"
    );
    let topology = Topology::new()?;
    let _servers = Servers::new(&topology)?;
    let node = topology.host(Host::Node);
    let _uplink = uplink(testbed, node)?;
    let before = kernel::read(node)?;
    let service = |name: &str, n, endpoints: &[Host]| {
        // Not every kernel has SCTP, and kube-proxy writes nothing if one rule is refused.
        Service::new(name, n, endpoints).protocols(&[Protocol::Tcp, Protocol::Udp])
    };
    let web = service("takeover-web", 20, &[Host::Web1, Host::Web3]).exposed();
    let gone = service("takeover-gone", 21, &[Host::Web2]);
    let late = service("takeover-late", 22, &[Host::Web2]);
    // Enough for our tree of addresses to have more than one level.
    let more = (30..70).map(|n| service(&format!("takeover-{n}"), n, &[Host::Web2]));
    let first: Vec<Value> = [&web, &gone]
        .into_iter()
        .cloned()
        .chain(more)
        .flat_map(|service| [vec![service.service_manifest()], service.slice_manifests()].concat())
        .chain([json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}})])
        .collect();
    let _objects = Objects::new(testbed, &list(&first).to_string());
    testbed.set_addresses(
        "node",
        &Family::ALL.map(|family| Host::Node.address(family)),
    );

    let proxy = start(node, testbed, &kube_proxy)?;
    let loads = loads(&topology, &web)?;
    go_on(&loads)?;
    // The guide's first steps change nothing.
    let as_it_was = kernel::read(node)?;
    plan_exits_with(node, testbed, 2)?;
    let differences = kernel::differences(&as_it_was, &kernel::read(node)?);
    ensure!(differences.is_empty(), "plan: {differences:#?}");
    proxy.terminate()?;
    let proxy = start(node, testbed, &ours())?;
    go_on(&loads).context("after the takeover")?;
    plan_exits_with(node, testbed, 0)?;
    let left = rules_with(node, "iptables-save", &["KUBE-SEP-", "CANARY"])?;
    ensure!(left.is_empty(), "kube-proxy's are left: {left:#?}");
    proxy.terminate()?;
    let proxy = start(node, testbed, &kube_proxy)?;
    go_on(&loads).context("after the return")?;

    // kube-proxy deletes the chains of a Service only if nothing of ours leads to them.
    testbed.kubectl(&["delete", "service", &gone.name]);
    let _late = Objects::new(testbed, &late.manifest().to_string());
    for (program, family) in [
        ("iptables-save", Family::V4),
        ("ip6tables-save", Family::V6),
    ] {
        wait::until("kube-proxy follows changes after the return", || {
            let late = format!("-d {}/", cluster_ip(family, late.n));
            let gone = format!("-d {}/", cluster_ip(family, gone.n));
            let rules = rules_with(node, program, &[&late, &gone])?;
            ensure!(rules.iter().any(|rule| rule.contains(&late)), "{rules:#?}");
            ensure!(!rules.iter().any(|rule| rule.contains(&gone)), "{rules:#?}");
            Ok(())
        })
        .with_context(|| proxy.log())?;
    }
    go_on(&loads)?;
    let mut results = Vec::new();
    for load in loads {
        let tally = load.finish()?;
        eprintln!("takeover and return: {}", tally.line());
        results.push(tally.is_flawless(4 * BETWEEN));
    }
    results.into_iter().collect::<Result<Vec<()>>>()?;
    proxy.terminate()?;
    clean_up(node, &before)
}

/// kube-proxy's nftables mode leaves tables that would go on to translate.
fn from_nftables_mode(testbed: &Testbed) -> Result<()> {
    let kube_proxy = Path::new(testbed.env("BIN")).join("kube-proxy");
    let topology = Topology::new()?;
    let _servers = Servers::new(&topology)?;
    let node = topology.host(Host::Node);
    let _uplink = uplink(testbed, node)?;
    let before = kernel::read(node)?;
    let web = Service::new("takeover-web", 20, &[Host::Web1, Host::Web3])
        .protocols(&[Protocol::Tcp])
        .exposed();
    let mut objects = vec![web.service_manifest()];
    objects.extend(web.slice_manifests());
    objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}));
    let _objects = Objects::new(testbed, &list(&objects).to_string());
    testbed.set_addresses(
        "node",
        &Family::ALL.map(|family| Host::Node.address(family)),
    );
    let has_tables =
        || -> Result<bool> { Ok(node.run("nft", &["list", "tables"])?.contains("kube-proxy")) };

    let proxy = start_in(node, testbed, &kube_proxy, "nftables")?;
    let loads = loads(&topology, &web)?;
    go_on(&loads)?;
    ensure!(has_tables()?, "kube-proxy has made no tables");
    proxy.terminate()?;
    let proxy = start(node, testbed, &ours())?;
    go_on(&loads)?;
    ensure!(!has_tables()?, "kube-proxy's tables are left");
    let mut results = Vec::new();
    for load in loads {
        let tally = load.finish()?;
        eprintln!("from nftables mode: {}", tally.line());
        results.push(tally.is_flawless(2 * BETWEEN));
    }
    results.into_iter().collect::<Result<Vec<()>>>()?;
    proxy.terminate()?;
    clean_up(node, &before)?;

    start_in(node, testbed, &kube_proxy, "nftables")?.terminate()?;
    ensure!(has_tables()?, "kube-proxy has made no tables");
    clean_up(node, &before)?;
    ensure!(!has_tables()?, "kube-proxy's tables are left");
    Ok(())
}

/// Clients of a Service with session affinity, by addresses of one host.
const CLIENTS: u16 = 30;

/// The endpoint that each of them meets, in two of two connections.
fn met(topology: &Topology, sticky: &Service) -> Result<BTreeMap<IpAddr, String>> {
    let mut met = BTreeMap::new();
    for (from, at) in [(Host::Shell, At::ClusterIp), (Host::Client, At::NodePort)] {
        for family in Family::ALL {
            let to = at.address(sticky, family, 80);
            for own in (0..CLIENTS).map(|index| source(from, family, index)) {
                for _ in 0..2 {
                    let host = topology.host(from);
                    let outcome = ask(host, Some(own), to, Protocol::Tcp, Patience::Long)?;
                    let Outcome::Answered(Answer { by, .. }) = outcome else {
                        bail!("{own} to {to}: {outcome}")
                    };
                    let first = met.entry(own).or_insert_with(|| by.clone());
                    ensure!(*first == by, "{own} to {to}: {first}, then {by}");
                }
            }
        }
    }
    Ok(met)
}

/// What the real kube-proxy's lists of `xt_recent` remember, ours goes on to remember.
fn clients_keep_their_endpoints(testbed: &Testbed) -> Result<()> {
    let kube_proxy = Path::new(testbed.env("BIN")).join("kube-proxy");
    let topology = Topology::new()?;
    add_sources(&topology)?;
    let _servers = Servers::new(&topology)?;
    let node = topology.host(Host::Node);
    let _uplink = uplink(testbed, node)?;
    let before = kernel::read(node)?;
    let sticky = Service::new("takeover-sticky", 23, &[Host::Web1, Host::Web2, Host::Web3])
        .protocols(&[Protocol::Tcp])
        .exposed()
        .with("sessionAffinity", json!("ClientIP"));
    let mut objects = vec![sticky.service_manifest()];
    objects.extend(sticky.slice_manifests());
    objects.push(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node"}}));
    let _objects = Objects::new(testbed, &list(&objects).to_string());
    testbed.set_addresses(
        "node",
        &Family::ALL.map(|family| Host::Node.address(family)),
    );
    let proxy = start(node, testbed, &kube_proxy)?;
    let at_kube_proxy = met(&topology, &sticky)?;
    let by: BTreeSet<&String> = at_kube_proxy.values().collect();
    ensure!(by.len() == 3, "endpoints: {by:?}");
    proxy.terminate()?;
    let proxy = start(node, testbed, &ours())?;
    let mut now = met(&topology, &sticky)?;
    now.retain(|client, by| at_kube_proxy[client] != *by);
    ensure!(now.is_empty(), "have moved: {now:?}\n{}", proxy.log());
    let recent = rules_with(node, "iptables-save", &["-m recent"])?;
    ensure!(recent.is_empty(), "kube-proxy's are left: {recent:#?}");
    proxy.terminate()?;
    clean_up(node, &before)
}
