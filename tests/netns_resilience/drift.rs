// SPDX-License-Identifier: Apache-2.0
//! What somebody else changes is changed back, soon, and nothing else is written.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use super::node::Node;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::proxy::series;
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

/// What is done, and which drift it is.
struct Change {
    what: &'static str,
    batch: String,
    drift: &'static [(&'static str, usize)],
}

fn changes(rules: &[String]) -> Result<Vec<Change>> {
    // A rule as it is written in a batch.
    let rule = |table: &str, chain: &str| {
        let start = format!("{table} -A {chain} ");
        rules
            .iter()
            .find(|rule| rule.starts_with(&start) && rule.contains("KUBE-"))
            .map(|rule| rule[table.len() + " -A ".len()..].to_owned())
            .with_context(|| format!("no rule of ours in {table} {chain}"))
    };
    let jump = rule("nat", "PREROUTING")?;
    let postrouting = rule("nat", "POSTROUTING")?;
    Ok(vec![
        Change {
            what: "a jump is deleted",
            batch: format!("*nat\n-D {jump}\nCOMMIT\n"),
            drift: &[("missing-rule", 1)],
        },
        Change {
            what: "a chain is flushed",
            batch: "*nat\n-F KUBE-SERVICES\nCOMMIT\n".to_owned(),
            drift: &[("changed-chain", 1)],
        },
        Change {
            what: "a rule is replaced by one of the same size",
            batch: "*nat\n-R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x8/0x8\nCOMMIT\n".to_owned(),
            drift: &[("changed-chain", 1)],
        },
        Change {
            what: "a chain is deleted with the jump to it",
            batch: format!(
                "*nat\n-D {postrouting}\n:KUBE-POSTROUTING - [0:0]\n-X KUBE-POSTROUTING\nCOMMIT\n"
            ),
            drift: &[("missing-rule", 1), ("missing-chain", 1)],
        },
        Change {
            what: "a chain of ours that nobody wants appears",
            batch: "*nat\n:KUBE-SVC-0123456789ABCDEF - [0:0]\nCOMMIT\n".to_owned(),
            drift: &[("extra-chain", 1)],
        },
    ])
}

fn drift(node: &Namespace) -> Result<BTreeMap<String, usize>> {
    let found = series(node, "kube_proxy_rs_drift_total")?;
    let repaired = found
        .into_iter()
        .filter(|(name, _)| name.contains("state=\"repaired\""));
    Ok(repaired
        .filter_map(|(name, count)| {
            let kind = name.split("kind=\"").nth(1)?.split('"').next()?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a small count"
            )]
            Some((kind.to_owned(), count as usize))
        })
        .collect())
}

pub(crate) fn is_repaired(node: &Node) -> Result<()> {
    let _proxy = node.start()?;
    let wanted = node.all_rules()?;
    // The loop tells what the start has cost when its first rounds are over.
    let processes = wait::until("the processes of the start are counted", || {
        let count = node.metric("kube_proxy_rs_processes_started_total")?;
        ensure!(count > 0.0, "it is {count}");
        Ok(count)
    })?;
    ensure!(
        drift(&node.namespace)?.is_empty(),
        "our own writes are drift"
    );
    for (family, rules) in Family::ALL.into_iter().zip(&wanted) {
        for change in changes(rules)? {
            let what = format!("{family}: {}", change.what);
            let mut expected = drift(&node.namespace)?;
            for (kind, count) in change.drift {
                *expected.entry((*kind).to_owned()).or_default() += count;
            }
            node.other(family, &change.batch)
                .with_context(|| what.clone())?;
            wait::until(&what, || {
                let found = node.all_rules()?;
                ensure!(sorted(&found) == sorted(&wanted), "{found:#?}");
                let found = drift(&node.namespace)?;
                ensure!(found == expected, "drift is {found:?}, not {expected:?}");
                Ok(())
            })?;
        }
        // All of it at once.
        let missing = "missing-chain".to_owned();
        let chains = rules.iter().filter(|rule| rule.contains(" :KUBE-")).count();
        let mut expected = drift(&node.namespace)?;
        *expected.entry(missing.clone()).or_default() += chains;
        node.other(family, "*nat\n-F\n-X\nCOMMIT\n*filter\n-F\n-X\nCOMMIT\n")?;
        wait::until(&format!("{family}: everything is flushed"), || {
            let found = node.all_rules()?;
            ensure!(sorted(&found) == sorted(&wanted), "{found:#?}");
            // Else it may be counted later, among what comes next.
            let found = drift(&node.namespace)?;
            ensure!(
                found.get(&missing) == expected.get(&missing),
                "drift is {found:?}, not {expected:?}"
            );
            Ok(())
        })?;
    }
    // A save and a restore for each, and no more for being idle. A look may meet a flush of two
    // tables between them, and the flush is two repairs then.
    let repairs = 2.0 * 7.0;
    let now = node.metric("kube_proxy_rs_processes_started_total")?;
    ensure!(
        now - processes <= 2.0 * repairs + 2.0,
        "{} processes for {repairs} repairs",
        now - processes
    );
    Ok(())
}

/// Rules that nobody seems to have changed are not read by each audit.
pub(crate) fn audits_start_no_program(node: &Node) -> Result<()> {
    let _proxy = node.start_by(node.command(&["--iptables-sync-period=1s"]))?;
    let wait_for_audits = |least: f64| {
        wait::until("audits", || {
            let audits = node.metric("kubeproxy_sync_full_proxy_rules_duration_seconds_count")?;
            ensure!(audits >= least, "there were {audits}");
            Ok(audits)
        })
    };
    // Two families, and the first round of each is a full one, too.
    let audits = wait_for_audits(6.0)?;
    let before = node.metric("kube_proxy_rs_processes_started_total")?;
    wait_for_audits(audits + 6.0)?;
    let after = node.metric("kube_proxy_rs_processes_started_total")?;
    ensure!(
        after <= before,
        "audits started {} programs",
        after - before
    );
    Ok(())
}

/// The order of chains is that of their making.
fn sorted(rules: &[Vec<String>]) -> Vec<Vec<String>> {
    let mut sorted = rules.to_vec();
    for rules in &mut sorted {
        rules.sort();
    }
    sorted
}
