// SPDX-License-Identifier: Apache-2.0
//! Another program has rules of nft's own in the tables of iptables, which iptables then cannot
//! list. Ours are served, written and repaired all the same.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use anyhow::{Result, ensure};

use super::node::{Node, late};
use kpr_testkit::manifests::Service;
use kpr_testkit::native::{Table, reload};
use kpr_testkit::topology::{Family, cluster_ip};
use kpr_testkit::wait;

const WARNED: &str = "table has nft rules that iptables cannot list";

/// A table that iptables cannot list, and what of it is ours.
#[derive(Clone, Copy, Debug)]
struct Hidden<'a> {
    node: &'a Node,
    table: Table<'a>,
    /// A jump of ours in a chain of the kernel's, which others delete.
    jump: [&'static str; 2],
    /// A chain of ours, which they flush.
    flushed: &'static str,
    /// A Service that comes later has a rule in this table.
    late: fn() -> Service,
}

fn nat(node: &Node, family: Family) -> Hidden<'_> {
    Hidden {
        node,
        table: Table::nat(&node.namespace, family),
        jump: ["PREROUTING", "KUBE-SERVICES"],
        flushed: "KUBE-MARK-MASQ",
        late,
    }
}

fn filter(node: &Node) -> Hidden<'_> {
    Hidden {
        node,
        table: Table::filter(&node.namespace, Family::V4),
        jump: ["FORWARD", "KUBE-FORWARD"],
        flushed: "KUBE-FORWARD",
        late: || Service::new("late", 3, &[]),
    }
}

/// As our log and `/state` name it.
const fn logged(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

impl Hidden<'_> {
    /// The words of the warning about it.
    fn warning(&self) -> [&'static str; 4] {
        ["WARN", logged(self.table.family), self.table.name, WARNED]
    }

    /// So many rules name the cluster IP of the Service that comes later: nft shows no comments of
    /// iptables.
    fn has_late(&self, count: RangeInclusive<usize>) -> Result<()> {
        let address = format!("daddr {} ", cluster_ip(self.table.family, 3));
        self.table.has("KUBE-SERVICES", &address, count)
    }

    /// What other programs do to chains of ours is repaired, and a new Service is served.
    fn is_cared_for(&self) -> Result<()> {
        let whole = self.table.handles(self.flushed, "")?.len();
        ensure!(whole > 0, "{} is empty", self.flushed);
        self.table.nft("flush chain", self.flushed)?;
        self.table.has(self.flushed, "", whole..=whole)?;
        let [from, to] = self.jump;
        let jump = format!("jump {to}");
        self.table.delete(from, &jump)?;
        self.table.has(from, &jump, 1..=1)?;
        self.node.manifests.apply(&(self.late)())?;
        self.has_late(1..=9)?;
        wait::until("the state names the table", || {
            let shown = self.node.state("")?;
            for family in Family::ALL {
                let unread = &shown["families"][logged(family)]["unreadTables"];
                let is_right = if family == self.table.family {
                    unread[0] == self.table.name
                } else {
                    unread.is_null()
                };
                ensure!(is_right, "{shown}");
            }
            Ok(())
        })
    }

    /// Its rules are these, each once.
    fn are_rules(&self, wanted: &[String]) -> Result<()> {
        are_equal(&self.node.rules(self.table.family)?, wanted)
    }
}

fn are_equal(found: &[String], wanted: &[String]) -> Result<()> {
    let sorted = |rules: &[String]| rules.iter().cloned().collect::<BTreeSet<_>>();
    ensure!(sorted(found) == sorted(wanted), "{found:#?}");
    ensure!(found.len() == wanted.len(), "{found:#?}");
    Ok(())
}

fn has_rules(node: &Node, wanted: &[Vec<String>]) -> Result<()> {
    wait::until("all rules are iptables' again", || {
        let found = node.all_rules()?;
        let mut pairs = found.iter().zip(wanted);
        pairs.try_for_each(|(found, wanted)| are_equal(found, wanted))
    })
}

/// The rules come while the proxy runs, and go again.
pub(crate) fn while_running(node: &Node) -> Result<()> {
    comes_and_goes(nat(node, Family::V4))
}

pub(crate) fn in_filter(node: &Node) -> Result<()> {
    comes_and_goes(filter(node))
}

pub(crate) fn in_ipv6(node: &Node) -> Result<()> {
    comes_and_goes(nat(node, Family::V6))
}

fn comes_and_goes(hidden: Hidden<'_>) -> Result<()> {
    let Hidden { node, table, .. } = hidden;
    let late = (hidden.late)();
    node.manifests.apply(&late)?;
    let proxy = node.start()?;
    let wanted = node.rules(table.family)?;
    node.manifests.delete(&late)?;
    node.wait_for_rule(table.family, "default/late", false)?;
    table.hide()?;
    hidden.is_cared_for()?;
    proxy.wait_for_log(&hidden.warning())?;
    ensure!(proxy.log().matches(WARNED).count() == 1, "{}", proxy.log());
    table.reveal()?;
    hidden.are_rules(&wanted)?;
    // Something to look at.
    table.nft("flush chain", hidden.flushed)?;
    proxy.wait_for_log(&["INFO", "iptables can list this table again"])?;
    let rule = format!("-A {}", hidden.flushed);
    node.wait_for_rule(table.family, &rule, true)
}

/// They are there before the proxy is.
pub(crate) fn at_start(node: &Node) -> Result<()> {
    is_there_first(nat(node, Family::V4))
}

pub(crate) fn at_start_in_filter(node: &Node) -> Result<()> {
    is_there_first(filter(node))
}

pub(crate) fn at_start_in_ipv6(node: &Node) -> Result<()> {
    is_there_first(nat(node, Family::V6))
}

fn is_there_first(hidden: Hidden<'_>) -> Result<()> {
    let Hidden { node, table, .. } = hidden;
    let late = (hidden.late)();
    node.manifests.apply(&late)?;
    let proxy = node.start()?;
    let wanted = node.rules(table.family)?;
    proxy.terminate()?;
    node.manifests.delete(&late)?;
    table.hide()?;
    let proxy = node.start()?;
    proxy.wait_for_log(&hidden.warning())?;
    let [from, to] = hidden.jump;
    table.has(from, &format!("jump {to}"), 1..=1)?;
    hidden.has_late(0..=0)?;
    hidden.is_cared_for()?;
    table.reveal()?;
    hidden.are_rules(&wanted)
}

/// All tables are reloaded between two runs of the proxy.
pub(crate) fn reloaded(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let wanted = node.all_rules()?;
    proxy.terminate()?;
    reload(&node.namespace)?;
    let hidden = nat(node, Family::V4);
    hidden.table.is_hidden(true)?;
    let proxy = node.start()?;
    has_rules(node, &wanted)?;
    proxy.wait_for_log(&hidden.warning())?;
    Ok(())
}

/// The same while it runs, with an hour between two audits.
pub(crate) fn reloaded_while_running(node: &Node) -> Result<()> {
    let proxy = node.start()?;
    let wanted = node.all_rules()?;
    reload(&node.namespace)?;
    for family in Family::ALL {
        proxy.wait_for_log(&nat(node, family).warning())?;
    }
    has_rules(node, &wanted)?;
    node.manifests.apply(&late())?;
    for family in Family::ALL {
        node.wait_for_rule(family, "default/late", true)?;
    }
    Ok(())
}

/// `--cleanup` takes ours away and leaves the others.
pub(crate) fn cleanup(node: &Node) -> Result<()> {
    node.start()?.terminate()?;
    nat(node, Family::V4).table.hide()?;
    let (status, log) =
        kpr_testkit::proxy::Proxy::spawn(&node.namespace, node.command(&["--cleanup"]))?.wait()?;
    ensure!(status.success(), "{log}");
    let left = node.namespace.run("nft", &["list", "ruleset"])?;
    ensure!(!left.contains("KUBE-"), "{left}");
    ensure!(left.contains("jump native"), "{left}");
    Ok(())
}
