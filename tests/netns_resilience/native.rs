// SPDX-License-Identifier: Apache-2.0
//! Another program has rules of nft's own in the tables of iptables, which iptables then cannot
//! list. Ours are served, written and repaired all the same.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;

use anyhow::{Context as _, Result, ensure};

use super::node::{Node, late};
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

/// A rule that iptables cannot print, in a chain of its own and in one of the kernel's, as
/// Tailscale and Calico have them.
const NATIVE: [&str; 3] = [
    "add chain ip nat ts-postrouting",
    "add rule ip nat ts-postrouting numgen random mod 2 0 counter masquerade",
    "insert rule ip nat POSTROUTING numgen random mod 2 0 counter jump ts-postrouting",
];

/// The cluster IP of the Service that comes later. nft shows no comments of iptables.
const LATE: &str = "ip daddr 10.96.0.3 ";

impl Node {
    fn nft(&self, words: &str) -> Result<String> {
        let words: Vec<&str> = words.split(' ').collect();
        self.namespace.run("nft", &words)
    }

    /// Another program's rules make `nat` of IPv4 a table that iptables cannot list.
    fn hide(&self) -> Result<()> {
        for command in NATIVE {
            self.nft(command)?;
        }
        self.is_hidden(true)
    }

    fn is_hidden(&self, wanted: bool) -> Result<()> {
        let text = self.namespace.run("iptables-nft-save", &["-t", "nat"])?;
        ensure!(text.contains("is incompatible") == wanted, "{text}");
        Ok(())
    }

    /// Those rules go.
    fn reveal(&self) -> Result<()> {
        for handle in self.handles("POSTROUTING", "ts-postrouting")? {
            self.nft(&format!("delete rule ip nat POSTROUTING handle {handle}"))?;
        }
        self.nft("flush chain ip nat ts-postrouting")?;
        self.nft("delete chain ip nat ts-postrouting")?;
        self.is_hidden(false)
    }

    /// The handles of rules of a chain that contain a text.
    fn handles(&self, chain: &str, text: &str) -> Result<Vec<String>> {
        let listed = self.nft(&format!("-a list chain ip nat {chain}"))?;
        // Not the lines of table and chain.
        let rules = listed
            .lines()
            .filter(|line| line.contains(text) && !line.contains("{ # handle "));
        let handle = |line: &str| Some(line.rsplit_once("# handle ")?.1.trim().to_owned());
        Ok(rules.filter_map(handle).collect())
    }

    /// Waits for so many rules with a text in a chain of `nat`.
    fn has(&self, chain: &str, text: &str, count: RangeInclusive<usize>) -> Result<()> {
        wait::until(&format!("{chain} has {text} {count:?} times"), || {
            let found = self.handles(chain, text)?.len();
            ensure!(count.contains(&found), "it has it {found} times");
            Ok(())
        })
    }

    /// What other programs do to chains of ours is repaired, and a new Service is served.
    fn is_cared_for(&self) -> Result<()> {
        self.nft("flush chain ip nat KUBE-MARK-MASQ")?;
        self.has("KUBE-MARK-MASQ", "", 1..=1)?;
        for handle in self.handles("PREROUTING", "jump KUBE-SERVICES")? {
            self.nft(&format!("delete rule ip nat PREROUTING handle {handle}"))?;
        }
        self.has("PREROUTING", "jump KUBE-SERVICES", 1..=1)?;
        self.manifests.apply(&late())?;
        self.has("KUBE-SERVICES", LATE, 1..=9)?;
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
    node.hide()?;
    node.is_cared_for()?;
    let warned = "table has nft rules that iptables cannot list";
    proxy.wait_for_log(&["WARN", "IPv4", "nat", warned])?;
    ensure!(proxy.log().matches(warned).count() == 1, "{}", proxy.log());
    node.reveal()?;
    let found = node.rules(Family::V4)?;
    ensure!(sorted(&found) == sorted(&wanted), "{found:#?}");
    ensure!(found.len() == wanted.len(), "{found:#?}");
    // Something to look at.
    node.nft("flush chain ip nat KUBE-MARK-MASQ")?;
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
    node.hide()?;
    let _proxy = node.start()?;
    node.has("PREROUTING", "jump KUBE-SERVICES", 1..=1)?;
    node.has("KUBE-SERVICES", LATE, 0..=0)?;
    node.is_cared_for()?;
    node.reveal()?;
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
    let ruleset = node.nft("list ruleset")?;
    // What this nft cannot express it would not take back.
    let known = ruleset
        .lines()
        .filter(|line| !line.contains("xt match") && !line.contains("xt target"));
    let text = known.collect::<Vec<_>>().join("\n");
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), format!("flush ruleset\n{text}\n"))?;
    let path = file.path().to_str().context("a path")?;
    node.nft(&format!("-f {path}"))?;
    node.is_hidden(true)?;
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
    node.hide()?;
    let (status, log) =
        kpr_testkit::proxy::Proxy::spawn(&node.namespace, node.command(&["--cleanup"]))?.wait()?;
    ensure!(status.success(), "{log}");
    let left = node.nft("list ruleset")?;
    ensure!(!left.contains("KUBE-"), "{left}");
    ensure!(left.contains("jump ts-postrouting"), "{left}");
    Ok(())
}
