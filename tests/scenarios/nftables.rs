// SPDX-License-Identifier: Apache-2.0
//! The fixed rules in our nftables table: no program is started, the way there and back loses
//! nothing and leaves nothing, what others change comes back. `nft` says what the kernel holds.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::Lab;
use super::missing::Hidden;
use super::restart::{all_live, open_connections};
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::oracle;
use kpr_testkit::proxy::{Proxy, metric, series};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::wait;

const IN_NFTABLES: &str = "--ipvs-rules=nftables";
const IN_IPTABLES: &str = "--ipvs-rules=iptables";

/// Whether this kernel can translate addresses in nftables.
pub(crate) fn can_be_held() -> bool {
    let try_it = || -> Result<()> {
        let namespace = Namespace::new()?;
        namespace.run("nft", &["add", "table", "ip", "probe"])?;
        let chain = "add chain ip probe nat { type nat hook postrouting priority 100; }";
        namespace.run("nft", &[chain])?;
        namespace.run("nft", &["add rule ip probe nat masquerade"])?;
        Ok(())
    };
    try_it().is_ok()
}

fn tables(node: &Namespace) -> Result<Vec<String>> {
    let listed = node.run("nft", &["list", "tables"])?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// Our tables, without handles and counters.
fn ours(node: &Namespace) -> Result<String> {
    let list = |family| {
        let table = ["--stateless", "list", "table", family, "kube-proxy-rs"];
        node.run("nft", &table)
    };
    // The kernel lists elements in an order of its own.
    let both = format!("{}{}", list("ip")?, list("ip6")?);
    let mut words: Vec<&str> = both.split([',', '\n']).map(str::trim).collect();
    words.sort_unstable();
    Ok(words.join("\n"))
}

fn has_nothing_of_iptables(lab: &Lab) -> Result<()> {
    let sets = oracle::sets(lab.node())?;
    ensure!(sets.is_empty(), "there are ipsets: {sets:?}");
    for family in Family::ALL {
        let rules = oracle::rules(lab.node(), family)?;
        let left: Vec<_> = rules.iter().filter(|rule| rule.contains("KUBE-")).collect();
        ensure!(left.is_empty(), "there are rules: {left:?}");
    }
    Ok(())
}

fn holds_servers(lab: &Lab, services: &[Service]) -> Result<()> {
    let wanted = oracle::wanted_virtual_servers(services, "rr", &oracle::node_addresses());
    wait::until("ipvsadm shows what is wanted", || {
        let found = oracle::virtual_servers(lab.node())?;
        let differences = oracle::differences(&wanted, &found);
        ensure!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    })
}

/// The node has all programs, but rules cannot match ipsets, as on distributions that have moved
/// the module away.
pub(super) fn auto_takes_it_without_xt_set(binary: &Path) -> Result<()> {
    let hidden = Hidden::new(&["xt_set"])?;
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let services = std::slice::from_ref(&service);
    let lab = Lab::new(binary, services, &["--ipvs-rules=auto"])?;
    let chosen = |rules: &str, reason: &str| {
        wait::until(&format!("{rules} is chosen"), || {
            let name = format!("kube_proxy_rs_ipvs_rules{{reason=\"{reason}\",rules=\"{rules}\"}}");
            let found = series(lab.node(), "kube_proxy_rs_ipvs_rules")?;
            ensure!(found.contains_key(&name), "{found:?}");
            Ok(())
        })
    };
    let proxy = lab.start()?;
    chosen("nftables", "no-iptables")?;
    proxy.wait_for_log(&["cannot use iptables and ipset", "xt_set"])?;
    holds_servers(&lab, services)?;
    has_nothing_of_iptables(&lab)?;
    let mut connections = open_connections(&lab, &service)?;
    all_live(&mut connections, "without xt_set")?;
    proxy.terminate()?;
    drop(hidden);
    let _proxy = lab.start()?;
    chosen("iptables", "iptables-works")?;
    all_live(&mut connections, "with xt_set")?;
    lab.settles_at(services, "rr")
}

#[expect(clippy::disallowed_methods, reason = "strace is started")]
pub(super) fn starts_no_program(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(binary, std::slice::from_ref(&service), &[IN_NFTABLES])?;
    let folder = tempfile::tempdir()?;
    let trace = folder.path().join("trace");
    let proxy = lab.invocation.command();
    let mut traced = Command::new("strace");
    traced
        .args(["-f", "-e", "trace=execve,execveat", "-o"])
        .arg(&trace)
        .arg(proxy.get_program())
        .args(proxy.get_args());
    let mut proxy = Proxy::spawn(lab.node(), traced)?;
    let synced = proxy.wait_until_synced(lab.node());
    let started = metric(lab.node(), "kube_proxy_rs_processes_started_total");
    // strace would let it go on.
    let children = format!("/proc/{0}/task/{0}/children", proxy.pid());
    let children = fs::read_to_string(children)?;
    lab.node().run("kill", &[children.trim()])?;
    proxy.wait()?;
    synced?;
    ensure!(started? == 0.0, "the proxy says that it started programs");
    let trace = fs::read_to_string(&trace).context("cannot read what strace wrote")?;
    let executed: Vec<&str> = trace.lines().filter(|line| line.contains("exec")).collect();
    ensure!(executed.len() == 1, "{}", executed.join("\n"));
    holds_servers(&lab, &[service])?;
    has_nothing_of_iptables(&lab)?;
    lab.nothing_to_do()
}

pub(super) fn there_and_back(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let services = std::slice::from_ref(&service);
    let mut lab = Lab::new(binary, services, &[])?;
    let plain = lab.invocation.clone();
    lab.invocation = plain.clone().with(&[IN_IPTABLES]);
    let proxy = lab.start()?;
    lab.settles_at(services, "rr")?;
    let mut connections = open_connections(&lab, &service)?;
    all_live(&mut connections, "with iptables")?;
    proxy.terminate()?;

    lab.invocation = plain.clone().with(&[IN_NFTABLES]);
    let proxy = lab.start()?;
    all_live(&mut connections, "with nftables")?;
    lab.nothing_to_do_soon()?;
    has_nothing_of_iptables(&lab)?;
    holds_servers(&lab, services)?;
    let found = tables(lab.node())?;
    for table in ["table ip kube-proxy-rs", "table ip6 kube-proxy-rs"] {
        ensure!(found.iter().any(|it| it == table), "{found:?}");
    }
    connections.extend(open_connections(&lab, &service)?);
    proxy.terminate()?;

    lab.invocation = plain.with(&[IN_IPTABLES]);
    let proxy = lab.start()?;
    all_live(&mut connections, "with iptables again")?;
    lab.settles_at(services, "rr")?;
    let found = tables(lab.node())?;
    ensure!(
        !found.iter().any(|table| table.ends_with(" kube-proxy-rs")),
        "{found:?}"
    );
    proxy.terminate()?;
    Ok(())
}

pub(super) fn what_others_change_comes_back(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3])
        .exposed()
        .with("externalTrafficPolicy", "Local".into());
    let lab = Lab::new(
        binary,
        std::slice::from_ref(&service),
        &[IN_NFTABLES, "--ipvs-sync-period=1h"],
    )?;
    let _proxy = lab.start()?;
    lab.nothing_to_do_soon()?;
    let wanted = ours(lab.node())?;
    let drift = series(lab.node(), "kube_proxy_rs_drift_total")?;
    ensure!(drift.is_empty(), "our own writes are drift: {drift:?}");
    for change in [
        "flush chain ip kube-proxy-rs services",
        "flush set ip kube-proxy-rs KUBE-CLUSTER-IP",
        "flush map ip6 kube-proxy-rs KUBE-6-LOCAL-POLICY-MARK",
        "add element ip kube-proxy-rs KUBE-CLUSTER-IP { 192.0.2.99 . tcp . 1 }",
        "add chain ip kube-proxy-rs theirs { type filter hook input priority 0; }",
        "insert rule ip6 kube-proxy-rs input-filter accept",
        "delete table ip kube-proxy-rs",
        "flush ruleset",
    ] {
        lab.node().run("nft", &[change])?;
        wait::until(&format!("{change}: the table is back"), || {
            let found = ours(lab.node())?;
            ensure!(found == wanted, "{found}");
            Ok(())
        })?;
    }
    wait::until("the drift is counted", || {
        let drift = series(lab.node(), "kube_proxy_rs_drift_total")?;
        let of = |kind: &str| {
            let name = format!("kube_proxy_rs_drift_total{{kind=\"{kind}\",state=\"repaired\"}}");
            drift.get(&name).copied().unwrap_or_default()
        };
        ensure!(of("changed-chain") >= 2.0, "{drift:?}");
        ensure!(of("extra-chain") >= 1.0, "{drift:?}");
        ensure!(of("add-entry") >= 2.0, "{drift:?}");
        ensure!(of("delete-entry") >= 1.0, "{drift:?}");
        Ok(())
    })
}

pub(super) fn cleanup_leaves_nothing(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1]).exposed();
    let lab = Lab::new(binary, &[service], &[IN_NFTABLES])?;
    let before = tables(lab.node())?;
    lab.start()?.terminate()?;
    let program = binary.to_str().context("the program's path")?;
    let output = lab.node().output(program, &["--cleanup"])?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    let mut after = tables(lab.node())?;
    // Listing makes those of iptables.
    after.retain(|table| {
        !["filter", "nat", "mangle", "security"]
            .iter()
            .any(|of| table.ends_with(of))
    });
    ensure!(after == before, "{after:?}");
    lab.is_untouched()
}
