// SPDX-License-Identifier: Apache-2.0
//! After `--cleanup` the kernel is what it was before the first start, and what others have is
//! untouched.

use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::kernel::{self, Kernel};
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::{Namespace, command};
use crate::proxy::{Invocation, Proxy};
use crate::topology::Host;
use crate::traffic::Protocol;

/// What an administrator and kubelet have.
const FOREIGN_RULES: &str = "*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:MINE - [0:0]
-A POSTROUTING -o eth9 -j MASQUERADE
-A MINE -j RETURN
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
COMMIT
";

/// What kube-proxy in iptables mode left, shortened.
const KUBE_PROXY_RULES: &str = "*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-CFP36WQJPWRYV3QI - [0:0]
:KUBE-SEP-7E5UZQT3HT6ASWD5 - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-CFP36WQJPWRYV3QI
-A KUBE-SVC-CFP36WQJPWRYV3QI -j KUBE-SEP-7E5UZQT3HT6ASWD5
-A KUBE-SEP-7E5UZQT3HT6ASWD5 -s 10.1.0.5/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-7E5UZQT3HT6ASWD5 -p tcp -m tcp -j DNAT --to-destination 10.1.0.5:8080
COMMIT
";

/// A node with an address of its own and one more link.
fn node() -> Result<Namespace> {
    let node = Namespace::new()?;
    let dad = [("net/ipv6/conf/default/accept_dad", "0")];
    node.sysctl(&dad)?;
    node.ip("link set lo up\nlink add eth0 type veth peer name eth1\n\
         link set eth0 addrgenmode none up\nlink set eth1 addrgenmode none up\n\
         address add 172.20.0.10/24 dev eth0\naddress add fd00:20::10/64 dev eth0 nodad\n")?;
    Ok(node)
}

fn restore(node: &Namespace, program: &str, rules: &str) -> Result<()> {
    let mut command = command(program);
    command.arg("--noflush").stdin(Stdio::piped());
    let mut child = node
        .enter(|| command.spawn())?
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    ensure!(child.wait()?.success(), "{program} failed");
    Ok(())
}

/// Rules, a set and, where the kernel has IPVS, virtual servers of somebody else's.
fn add_foreign_objects(node: &Namespace, has_ipvs: bool) -> Result<()> {
    restore(node, "iptables-restore", FOREIGN_RULES)?;
    let of_ipv6 = FOREIGN_RULES
        .lines()
        .filter(|line| !line.contains("127.0.0"));
    let of_ipv6: String = of_ipv6.flat_map(|line| [line, "\n"]).collect();
    restore(node, "ip6tables-restore", &of_ipv6)?;
    node.run("ipset", &["create", "MINE", "hash:ip"])?;
    node.run("ipset", &["add", "MINE", "203.0.113.99"])?;
    if has_ipvs {
        for line in [
            "-A -t 203.0.113.99:99 -s wlc",
            "-a -t 203.0.113.99:99 -r 203.0.113.100:99 -m -w 7",
            // A port of the node's own address that is no node port.
            "-A -t 172.20.0.10:99 -s rr",
            "-A -f 7 -s rr",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            node.run("ipvsadm", &words)?;
        }
    }
    Ok(())
}

fn services() -> [Service; 2] {
    [
        Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed(),
        Service::new("dns", 2, &[Host::Web2]).protocols(&[Protocol::Udp, Protocol::Tcp]),
    ]
}

/// Runs `--cleanup` as an operator of kubeadm's DaemonSet would: with the configuration file.
fn clean(node: &Namespace, binary: &Path) -> Result<Output> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(
        b"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\n\
          clusterCIDR: 10.244.0.0/16\nclientConnection:\n  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n",
    )?;
    let mut command = command(binary);
    command
        .arg("--cleanup")
        .arg(format!("--config={}", file.path().display()))
        .stdin(Stdio::null());
    Ok(node.enter(|| command.output())??)
}

fn cleans_up(node: &Namespace, binary: &Path, before: &Kernel) -> Result<()> {
    let output = clean(node, binary)?;
    let log = String::from_utf8_lossy(&output.stderr);
    let after = kernel::read(node)?;
    let differences = kernel::differences(before, &after);
    ensure!(
        output.status.success() && differences.is_empty(),
        "{}\n{log}\n{}",
        output.status,
        differences.join("\n")
    );
    Ok(())
}

/// One proxy after the other in these modes, then the clean-up, twice.
pub(super) fn after(binary: &Path, modes: &[&str]) -> Result<()> {
    let node = node()?;
    add_foreign_objects(&node, modes.contains(&"ipvs"))?;
    let before = kernel::read(&node)?;
    let manifests = ManifestDirectory::new(&services())?;
    for mode in modes {
        let invocation = Invocation::new(binary, &manifests, mode).in_cluster();
        Proxy::start(&node, &invocation)?.terminate()?;
        ensure!(
            kernel::read(&node)? != before,
            "{mode} mode has done nothing"
        );
    }
    cleans_up(&node, binary, &before).context("first")?;
    cleans_up(&node, binary, &before).context("again")
}

/// Rules of a former kube-proxy go wherever they are.
pub(super) fn of_both_backends(binary: &Path) -> Result<()> {
    let node = node()?;
    let before = kernel::read(&node)?;
    for program in ["iptables-legacy-restore", "iptables-nft-restore"] {
        restore(&node, program, KUBE_PROXY_RULES)?;
    }
    cleans_up(&node, binary, &before)
}

/// What somebody else's rule needs stays, is named, and is no reason to leave anything else.
pub(super) fn says_what_is_left(binary: &Path) -> Result<()> {
    let node = node()?;
    let before = kernel::read(&node)?;
    restore(&node, "iptables-restore", KUBE_PROXY_RULES)?;
    restore(
        &node,
        "iptables-restore",
        "*nat\n:MINE - [0:0]\n-A MINE -j KUBE-MARK-MASQ\nCOMMIT\n",
    )?;
    let output = clean(&node, binary)?;
    let log = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}\n{log}", output.status);
    let said = "chain nat/KUBE-MARK-MASQ is used by a rule of chain nat/MINE";
    ensure!(
        log.contains("encountered an error while tearing down rules") && log.contains(said),
        "{log}"
    );
    let left = kernel::differences(&before, &kernel::read(&node)?);
    ensure!(
        left.iter()
            .all(|line| line.contains("MINE") || line.contains(":KUBE-MARK-MASQ")),
        "{}",
        left.join("\n")
    );
    node.run("iptables", &["-t", "nat", "-F", "MINE"])?;
    node.run("iptables", &["-t", "nat", "-X", "MINE"])?;
    cleans_up(&node, binary, &before)
}
