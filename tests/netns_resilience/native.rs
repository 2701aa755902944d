// SPDX-License-Identifier: Apache-2.0
//! Another program has rules of nft's own in the tables of iptables, which iptables then cannot
//! list. Ours are served, written and repaired all the same.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::node::{Node, late};
use kpr_testkit::native::NatTable;
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

/// The cluster IP of the Service that comes later. nft shows no comments of iptables.
const LATE: &str = "ip daddr 10.96.0.3 ";

impl Node {
    fn nat(&self) -> NatTable<'_> {
        NatTable(&self.namespace)
    }

    /// What other programs do to chains of ours is repaired, and a new Service is served.
    fn is_cared_for(&self) -> Result<()> {
        self.nat().nft("flush chain ip nat KUBE-MARK-MASQ")?;
        self.nat().has("KUBE-MARK-MASQ", "", 1..=1)?;
        self.nat().delete("PREROUTING", "jump KUBE-SERVICES")?;
        self.nat().has("PREROUTING", "jump KUBE-SERVICES", 1..=1)?;
        self.manifests.apply(&late())?;
        self.nat().has("KUBE-SERVICES", LATE, 1..=9)?;
        wait::until("the state names the table", || {
            let shown = self.state("")?;
            ensure!(
                shown["families"]["IPv4"]["unreadTables"][0] == "nat",
                "{shown}"
            );
            ensure!(
                shown["families"]["IPv6"]["unreadTables"].is_null(),
                "{shown}"
            );
            Ok(())
        })
    }
}

fn sorted(rules: &[String]) -> BTreeSet<String> {
    rules.iter().cloned().collect()
}

/// The rules come while the proxy runs, and go again.
pub(crate) fn while_running(node: &Node) -> Result<()> {
    node.manifests.apply(&late())?;
    let proxy = node.start()?;
    let wanted = node.rules(Family::V4)?;
    node.manifests.delete(&late())?;
    node.wait_for_rule(Family::V4, "default/late", false)?;
    node.nat().hide()?;
    node.is_cared_for()?;
    let warned = "table has nft rules that iptables cannot list";
    proxy.wait_for_log(&["WARN", "IPv4", "nat", warned])?;
    ensure!(proxy.log().matches(warned).count() == 1, "{}", proxy.log());
    node.nat().reveal()?;
    let found = node.rules(Family::V4)?;
    ensure!(sorted(&found) == sorted(&wanted), "{found:#?}");
    ensure!(found.len() == wanted.len(), "{found:#?}");
    // Something to look at.
    node.nat().nft("flush chain ip nat KUBE-MARK-MASQ")?;
    proxy.wait_for_log(&["INFO", "iptables can list this table again"])?;
    node.wait_for_rule(Family::V4, "-A KUBE-MARK-MASQ", true)
}

/// They are there before the proxy is.
pub(crate) fn at_start(node: &Node) -> Result<()> {
    node.manifests.apply(&late())?;
    let proxy = node.start()?;
    let wanted = node.rules(Family::V4)?;
    proxy.terminate()?;
    node.manifests.delete(&late())?;
    node.nat().hide()?;
    let _proxy = node.start()?;
    node.nat().has("PREROUTING", "jump KUBE-SERVICES", 1..=1)?;
    node.nat().has("KUBE-SERVICES", LATE, 0..=0)?;
    node.is_cared_for()?;
    node.nat().reveal()?;
    let found = node.rules(Family::V4)?;
    ensure!(sorted(&found) == sorted(&wanted), "{found:#?}");
    ensure!(found.len() == wanted.len(), "{found:#?}");
    Ok(())
}

/// `nft list ruleset >FILE` and `nft -f FILE`, as the service of Debian does, turn rules of
/// iptables into nft's own.
pub(crate) fn reloaded(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let wanted = node.all_rules()?;
    proxy.terminate()?;
    let ruleset = node.nat().nft("list ruleset")?;
    // What this nft cannot express it would not take back.
    let known = ruleset
        .lines()
        .filter(|line| !line.contains("xt match") && !line.contains("xt target"));
    let text = known.collect::<Vec<_>>().join("\n");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("flush ruleset\n{text}\n"))?;
    let path = file.path().to_str().context("a path")?;
    node.nat().nft(&format!("-f {path}"))?;
    node.nat().is_hidden(true)?;
    let _proxy = node.start()?;
    wait::until("all rules are iptables' again", || {
        let found = node.all_rules()?;
        for (found, wanted) in found.iter().zip(&wanted) {
            ensure!(sorted(found) == sorted(wanted), "{found:#?}");
            ensure!(found.len() == wanted.len(), "{found:#?}");
        }
        Ok(())
    })
}

/// `--cleanup` takes ours away and leaves the others.
pub(crate) fn cleanup(node: &Node) -> Result<()> {
    node.start()?.terminate()?;
    node.nat().hide()?;
    let (status, log) =
        kpr_testkit::proxy::Proxy::spawn(&node.namespace, node.command(&["--cleanup"]))?.wait()?;
    ensure!(status.success(), "{log}");
    let left = node.nat().nft("list ruleset")?;
    ensure!(!left.contains("KUBE-"), "{left}");
    ensure!(left.contains("jump ts-postrouting"), "{left}");
    Ok(())
}
