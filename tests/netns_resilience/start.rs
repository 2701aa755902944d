// SPDX-License-Identifier: Apache-2.0
//! Where iptables cannot work the proxy does not start, says why, and changes nothing.

use anyhow::{Result, ensure};

use super::node::{Backend, Node};
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

pub(crate) fn garbage(node: &Node) -> Result<()> {
    node.trouble("save", "echo 'Segmentation fault, or so'; exit 0\n")?;
    node.refuses_to_start(
        &[],
        &["cannot read the output of", "Segmentation fault, or so"],
    )
}

pub(crate) fn too_old(node: &Node) -> Result<()> {
    for family in Family::ALL {
        for what in ["save", "restore"] {
            let name = format!("{}-{what}", node.program(family));
            node.script(&name, "#!/bin/sh\necho iptables-restore v1.4.21\n")?;
        }
    }
    node.refuses_to_start(&[], &["1.4.21 is too old", "1.6.2 or newer is needed"])
}

/// The configured backend is not there, the other one is.
pub(crate) fn missing_backend(node: &Node) -> Result<()> {
    let missing = format!("{}-restore", node.program(Family::V4));
    let other = match node.backend {
        Backend::Legacy => "nf_tables",
        Backend::Nft => "legacy",
    };
    let plain = format!("#!/bin/sh\necho 'iptables v1.8.9 ({other})'\n");
    node.only(&[("iptables", &plain)])?;
    let error = format!("iptables is not installed (looked for {missing})");
    node.refuses_to_start(&[], &[&error])
}

pub(crate) fn nothing_installed(node: &Node) -> Result<()> {
    node.only(&[])?;
    node.refuses_to_start(
        &["--iptables-backend=auto"],
        &["cannot use iptables", "iptables is not installed"],
    )
}

/// Where the kernel lacks address translation for a backend: `save` fails in that table alone.
const NO_NAT: &str = "case \"$*\" in *nat*) echo 'table nat does not exist' >&2; exit 1;; esac\n";

/// `auto` takes the other backend than the default, and neither if neither works.
pub(crate) fn backend_without_nat(node: &Node) -> Result<()> {
    node.script(
        "iptables",
        "#!/bin/sh\necho 'iptables v1.8.9 (nf_tables)'\n",
    )?;
    node.trouble("save", NO_NAT)?;
    let auto = "--iptables-backend=auto";
    let proxy = node.start_by(node.command(&[auto]))?;
    node.counts("kube_proxy_rs_iptables_backend{backend=\"legacy\",reason=\"only-one\"}")?;
    let rules = |program: &str| node.namespace.run(program, &["-t", "nat"]);
    ensure!(rules("iptables-legacy-save")?.contains("KUBE-SERVICES"));
    ensure!(!rules("iptables-nft-save")?.contains("KUBE-SERVICES"));
    proxy.terminate()?;
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        node.script(program, &format!("#!/bin/sh\n{NO_NAT}"))?;
    }
    node.refuses_to_start(
        &[auto],
        &["nft_chain_nat", "iptable_nat", "kernel-modules-extra"],
    )
}

/// What the node's network does to packets is said with what to do, and not any more when it is
/// over.
pub(crate) fn warns_of_the_network(node: &Node) -> Result<()> {
    node.namespace
        .ip("link add cni0 type bridge\naddress add 10.244.1.1/24 dev cni0\nlink set cni0 up\n")?;
    // Where the module is loaded, each namespace has its own switch.
    let switch = "net/bridge/bridge-nf-call-iptables";
    let (loaded, advice) = match node.namespace.sysctl(&[(switch, "0")]) {
        Ok(()) => (true, "set net.bridge.bridge-nf-call-iptables=1"),
        Err(_) => (false, "load br_netfilter"),
    };
    let flags = ["--cluster-cidr=10.244.0.0/16", "--iptables-sync-period=1s"];
    let proxy = node.start_by(node.command(&flags))?;
    let line = proxy.wait_for_log(&["WARN", "bridge cni0 do not meet iptables"])?;
    ensure!(line.contains(advice), "{line}");
    let warnings = || -> Result<String> { Ok(node.state("?limit=1")?["warnings"].to_string()) };
    ensure!(warnings()?.contains(advice), "{}", warnings()?);
    if loaded {
        node.namespace.sysctl(&[(switch, "1")])?;
    } else {
        node.namespace.ip("link del cni0\n")?;
    }
    wait::until("there is no warning", || {
        let warnings = warnings()?;
        ensure!(!warnings.contains("cni0"), "{warnings}");
        Ok(())
    })
}

/// The links and settings are real ones: the filter of a link is the stricter of its own and that
/// of all, and a link that is down has none.
pub(crate) fn warns_of_reverse_paths(node: &Node) -> Result<()> {
    let link = |name: &str, network: &str| {
        let peer = format!("link add {name} type veth peer name {name}-peer\n");
        let lines = format!("address add {network}.1/24 dev {name}\nlink set {name} up\n");
        node.namespace.ip(&format!("{peer}{lines}"))
    };
    link("up1", "192.0.2")?;
    link("up2", "198.51.100")?;
    let filter = |link: &str, value: &str| {
        let key = format!("net/ipv4/conf/{link}/rp_filter");
        node.namespace.sysctl(&[(key.as_str(), value)])
    };
    for (link, value) in [("all", "0"), ("up1", "2"), ("up2", "1")] {
        filter(link, value)?;
    }
    let proxy = node.start_by(node.command(&["--iptables-sync-period=1s"]))?;
    proxy.wait_for_log(&["WARN", "rp_filter is 1 (strict) on up2:"])?;
    let names = |wanted: Option<&str>| {
        wait::until(&format!("the warning names {wanted:?}"), || {
            let warnings = node.state("?limit=1")?["warnings"].to_string();
            let links = warnings.split_once("(strict) on ").map(|(_, rest)| rest);
            let links = links.and_then(|rest| Some(rest.split_once(':')?.0));
            ensure!(links == wanted, "{warnings}");
            Ok(())
        })
    };
    names(Some("up2"))?;
    // Loose wins, whichever of the two says so.
    filter("all", "2")?;
    names(None)?;
    filter("all", "1")?;
    filter("up1", "0")?;
    names(Some("up1, up2"))?;
    node.namespace.ip("link set up1 down\n")?;
    names(None)
}
