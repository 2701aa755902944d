// SPDX-License-Identifier: Apache-2.0
//! Clients with session affinity, thousands of them: each keeps its endpoint, also when the proxy
//! is another one. Clients, endpoints and proxy share one namespace; packets go over `lo`.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::node::{Node, late};
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::command;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::Protocol;
use kpr_testkit::wait;

/// As many as wait in a socket at once.
const BURST: usize = 100;

/// The range of the clients.
fn range(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.200.0.0/16",
        Family::V6 => "fd00:200::/64",
    }
}

fn client(family: Family, n: usize) -> IpAddr {
    let n = u16::try_from(n).unwrap_or(u16::MAX);
    let [high, low] = n.to_be_bytes();
    match family {
        Family::V4 => Ipv4Addr::new(10, 200, high, low).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 1, n).into(),
    }
}

fn sticky() -> Service {
    Service::new("sticky", 7, &[Host::Web1, Host::Web2, Host::Web3])
        .protocols(&[Protocol::Udp])
        .with("sessionAffinity", json!("ClientIP"))
        .with(
            "sessionAffinityConfig",
            json!({ "clientIP": { "timeoutSeconds": 3_600 } }),
        )
}

/// The endpoints' sockets; they note who asks.
struct Pods {
    sockets: Vec<(Host, UdpSocket)>,
}

impl Pods {
    fn new(node: &Node, family: Family) -> Result<Self> {
        let local = |to: &str| format!("route add local {to} dev lo\n");
        let mut routes = vec![local(range(family))];
        let pods: Vec<Host> = sticky().endpoints.iter().map(|it| it.host).collect();
        let addresses = pods.iter().map(|pod| pod.address(family).to_string());
        routes.extend(addresses.map(|address| local(&address)));
        // Packets turn to the endpoints on their way, which there must be.
        let to = At::ClusterIp.address(&sticky(), family, 80).ip();
        routes.push(format!("route add {to} dev lo\n"));
        node.namespace.ip(&routes.concat())?;
        node.namespace
            .sysctl(&[("net/ipv6/ip_nonlocal_bind", "1")])?;
        let mut sockets = Vec::new();
        for pod in pods {
            let at = SocketAddr::new(pod.address(family), 8080);
            let socket = node.namespace.enter(|| UdpSocket::bind(at))??;
            socket.set_read_timeout(Some(Duration::from_millis(1)))?;
            sockets.push((pod, socket));
        }
        Ok(Self { sockets })
    }

    /// A new connection of each of these clients; who met each of them.
    fn meet(&self, node: &Node, family: Family, clients: usize) -> Result<BTreeMap<IpAddr, Host>> {
        let to = At::ClusterIp.address(&sticky(), family, 80);
        let mut met = BTreeMap::new();
        for start in (0..clients).step_by(BURST) {
            let wanted = clients.min(start + BURST);
            // Open until all have arrived: a port that is used again is the same connection.
            let mut open = Vec::new();
            for n in start..wanted {
                let from = SocketAddr::new(client(family, n), 0);
                let socket = node.namespace.enter(|| UdpSocket::bind(from))??;
                let sent = socket.send_to(b"hello", to);
                sent.with_context(|| format!("{from} to {to}"))?;
                open.push(socket);
            }
            wait::until("all clients are met", || {
                for (pod, socket) in &self.sockets {
                    let mut buffer = [0; 16];
                    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                        met.insert(from.ip(), *pod);
                    }
                }
                ensure!(met.len() == wanted, "{} of {wanted}", met.len());
                Ok(())
            })?;
        }
        Ok(met)
    }
}

/// How many clients are with another endpoint now.
fn moved(before: &BTreeMap<IpAddr, Host>, now: &BTreeMap<IpAddr, Host>) -> usize {
    let differs = |(client, pod): &(&IpAddr, &Host)| now.get(*client) != Some(*pod);
    before.iter().filter(differs).count()
}

/// Names of the sets that are there.
fn sets(node: &Node) -> Result<Vec<String>> {
    let names = node.namespace.run("ipset", &["list", "-n"])?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// 5,000 clients of one Service, and 1,000 by IPv6.
pub(crate) fn thousands_of_clients_stay(node: &Node) -> Result<()> {
    const CLIENTS: [(Family, usize); 2] = [(Family::V4, 5_000), (Family::V6, 1_000)];
    node.manifests.apply(&sticky())?;
    let proxy = node.start()?;
    let mut before = Vec::new();
    for (family, clients) in CLIENTS {
        let pods = Pods::new(node, family)?;
        let met = pods.meet(node, family, clients)?;
        for pod in sticky().endpoints {
            let share = met.values().filter(|it| **it == pod.host).count();
            ensure!(share > clients / 5, "{family} {}: {share}", pod.host);
        }
        let moved = moved(&met, &pods.meet(node, family, clients)?);
        ensure!(moved == 0, "{family}: {moved} of {clients} have moved");
        before.push((family, clients, pods, met));
    }
    let made = sets(node)?;
    ensure!(made.len() == 6, "{made:?}");

    // A restart.
    let (_, log) = proxy.terminate()?;
    ensure!(!log.contains("changed by another program"), "{log}");
    let proxy = node.start()?;
    for (family, clients, pods, met) in &before {
        let moved = moved(met, &pods.meet(node, *family, *clients)?);
        ensure!(moved == 0, "{family}: {moved} have moved with a restart");
    }
    ensure!(sets(node)? == made, "others after a restart");

    // An endpoint goes, and its clients with it.
    let mut fewer = sticky();
    fewer.endpoints.pop();
    node.manifests.apply(&fewer)?;
    wait::until("its sets are gone", || {
        let left = sets(node)?;
        ensure!(left.len() == 4, "{left:?}");
        Ok(())
    })?;
    for (family, clients, pods, met) in &before {
        let others = |met: &BTreeMap<IpAddr, Host>| -> BTreeMap<IpAddr, Host> {
            let mut met = met.clone();
            met.retain(|_, pod| *pod != Host::Web3);
            met
        };
        // A client whose port is one that it had before is an old flow until that is deleted.
        wait::until("nobody meets the endpoint any more", || {
            let now = pods.meet(node, *family, *clients)?;
            let moved = moved(&others(met), &now);
            ensure!(moved == 0, "{family}: {moved} of others have moved");
            let left = clients - others(&now).len();
            ensure!(left == 0, "{family}: {left} still do");
            Ok(())
        })?;
    }
    node.manifests.delete(&fewer)?;
    wait::until("all sets are gone", || {
        let left = sets(node)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    drop(proxy);
    Ok(())
}

/// The kernel swaps no set that somebody lists. With a pager behind it `ipset list` takes its time.
pub(crate) fn a_list_holds_up_no_timeout(node: &Node) -> Result<()> {
    const CLIENTS: usize = 6_000;
    node.manifests.apply(&sticky())?;
    let proxy = node.start()?;
    let pods = Pods::new(node, Family::V4)?;
    let met = pods.meet(node, Family::V4, CLIENTS)?;
    let mut list = command("ipset");
    list.arg("list").stdout(Stdio::piped());
    // Nobody reads, and the pipe has room for a part.
    let mut list = node.namespace.enter(|| list.spawn())??;
    wait::until("it waits for its reader", || {
        let state = fs::read_to_string(format!("/proc/{}/wchan", list.id()))?;
        ensure!(state.contains("pipe_write"), "{state}");
        Ok(())
    })?;
    let mut longer = sticky();
    longer.spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = json!(7_200);
    node.manifests.apply(&longer)?;
    proxy.wait_for_log(&["EBUSY"])?;
    drop(list.stdout.take());
    list.wait()?;
    wait::until("the sets have the time-out", || {
        let listed = node.namespace.run("ipset", &["list"])?;
        ensure!(listed.matches(" timeout 7200 ").count() == 6, "{listed}");
        Ok(())
    })?;
    let moved = moved(&met, &pods.meet(node, Family::V4, CLIENTS)?);
    ensure!(moved == 0, "{moved} have moved");
    Ok(())
}

/// What `restore` does where these matches are missing.
fn without(matches: &[&str]) -> String {
    let lacks = |name: &&str| {
        format!(
            "if grep -q -e '-m {name} ' $input; then line=$(grep -n -m 1 -e '-m {name} ' $input)\n\
             echo \"Couldn't load match \\`{name}':No such file or directory\" >&2\n\
             echo \"Error occurred at line: ${{line%%:*}}\" >&2; rm $input; exit 2; fi\n"
        )
    };
    let lacking = matches.iter().map(lacks).collect::<String>();
    let run = "PATH=${PATH#*:} ${0##*/} \"$@\" <$input; s=$?; rm $input; exit $s\n";
    format!("input=$(mktemp); cat >$input\n{lacking}{run}")
}

/// Without sets the limit is said; a proxy with sets takes the clients over, as from kube-proxy,
/// whose lists have the same names. `--cleanup` leaves nothing.
pub(crate) fn clients_of_recent_are_taken_over(node: &Node) -> Result<()> {
    const CLIENTS: usize = 90;
    node.manifests.apply(&sticky())?;
    node.trouble("restore", &without(&["set"]))?;
    let proxy = node.start()?;
    proxy.wait_for_log(&[
        "default/sticky",
        "Service setting not supported on this node",
        "remembers its last 100 clients",
    ])?;
    let shown = node.state("?service=default/sticky")?.to_string();
    ensure!(shown.contains("remembers its last 100 clients"), "{shown}");
    let lacks = node.series("kube_proxy_rs_kernel_capability{name=\"xt_set\"}")?;
    ensure!(lacks < 0.5, "xt_set: {lacks}");
    ensure!(sets(node)?.is_empty(), "there are sets");
    let mut before = Vec::new();
    for family in Family::ALL {
        let pods = Pods::new(node, family)?;
        let met = pods.meet(node, family, CLIENTS)?;
        before.push((family, pods, met));
    }
    proxy.terminate()?;
    node.no_trouble("restore")?;
    let proxy = node.start()?;
    proxy.wait_for_log(&["clients of an endpoint taken over from xt_recent"])?;
    node.wait_for_rule(Family::V4, "-m recent", false)?;
    for (family, pods, met) in &before {
        let moved = moved(met, &pods.meet(node, *family, CLIENTS)?);
        ensure!(moved == 0, "{family}: {moved} have moved");
    }
    // Another time-out keeps them too, and is theirs.
    let mut longer = sticky();
    longer.spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"] = json!(7_200);
    node.manifests.apply(&longer)?;
    wait::until("the sets have the time-out", || {
        let listed = node.namespace.run("ipset", &["list"])?;
        ensure!(listed.matches(" timeout 7200 ").count() == 6, "{listed}");
        let left = |line: &str| line.rsplit_once(" timeout ")?.1.parse::<u32>().ok();
        let left: Vec<u32> = listed.lines().filter_map(left).collect();
        ensure!(left.len() == 2 * CLIENTS, "{listed}");
        ensure!(left.iter().all(|left| *left > 3_600), "{left:?}");
        Ok(())
    })?;
    for (family, pods, met) in &before {
        let moved = moved(met, &pods.meet(node, *family, CLIENTS)?);
        ensure!(moved == 0, "{family}: {moved} have moved");
    }
    proxy.terminate()?;
    let mut cleanup = node.command(&["--cleanup"]);
    let status = node.namespace.enter(|| cleanup.output())??;
    if !status.status.success() {
        bail!("{}", String::from_utf8_lossy(&status.stderr));
    }
    let left = sets(node)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

/// Neither sets nor `xt_recent`: the Service is served without affinity, which is said.
pub(crate) fn without_recent_nobody_is_remembered(node: &Node) -> Result<()> {
    const CLIENTS: usize = 90;
    node.manifests.apply(&sticky())?;
    node.trouble("restore", &without(&["set", "recent"]))?;
    let proxy = node.start()?;
    let words = "so clients have no session affinity";
    proxy.wait_for_log(&[
        "default/sticky",
        "Service setting not supported on this node",
        words,
    ])?;
    let shown = node.state("?service=default/sticky")?.to_string();
    ensure!(shown.contains(words), "{shown}");
    for name in ["xt_set", "xt_recent"] {
        let has = node.series(&format!(
            "kube_proxy_rs_kernel_capability{{name=\"{name}\"}}"
        ))?;
        ensure!(has < 0.5, "{name}: {has}");
    }
    let warnings = node.state("?limit=1")?["warnings"].to_string();
    ensure!(
        !warnings.contains("xt_recent"),
        "all are served: {warnings}"
    );
    for family in Family::ALL {
        let pods = Pods::new(node, family)?;
        let met = pods.meet(node, family, CLIENTS)?;
        let moved = moved(&met, &pods.meet(node, family, CLIENTS)?);
        ensure!(moved > 0, "{family}: nobody has moved");
    }
    let aside = node.metric("kube_proxy_rs_refused_service_ports")?;
    ensure!(aside < 0.5, "{aside} are set aside");
    Ok(())
}

/// What chooses among endpoints is missing: that is said at the start, Services of one endpoint are
/// served, and those of several once it is there.
pub(crate) fn without_statistic_single_endpoints_are_served(node: &Node) -> Result<()> {
    node.manifests.apply(&late())?;
    node.trouble("restore", &without(&["statistic"]))?;
    let proxy = node.start()?;
    let words = "iptables or the kernel has no xt_statistic";
    proxy.wait_for_log(&["WARN", words])?;
    let warnings = node.state("?limit=1")?["warnings"].to_string();
    ensure!(warnings.contains(words), "{warnings}");
    let has = node.series("kube_proxy_rs_kernel_capability{name=\"xt_statistic\"}")?;
    ensure!(has < 0.5, "{has}");
    proxy.wait_for_log(&["ERROR", "default/web", "kernel rejected the rules"])?;
    for family in Family::ALL {
        node.wait_for_rule(family, "default/late", true)?;
        let rules = node.rules(family)?;
        let is_of_web = |rule: &&String| rule.contains("default/web");
        let of_web: Vec<&String> = rules.iter().filter(is_of_web).collect();
        ensure!(of_web.is_empty(), "{of_web:#?}");
    }
    node.no_trouble("restore")?;
    proxy.terminate()?;
    let _proxy = node.start()?;
    for family in Family::ALL {
        node.wait_for_rule(family, "-m statistic", true)?;
    }
    let warnings = node.state("?limit=1")?["warnings"].to_string();
    ensure!(!warnings.contains("xt_statistic"), "{warnings}");
    Ok(())
}
