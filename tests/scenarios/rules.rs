// SPDX-License-Identifier: Apache-2.0
//! Rules that somebody else flushes, deletes or changes come back soon, long before an audit.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use kpr_testkit::manifests::Service;
use kpr_testkit::oracle;
use kpr_testkit::proxy::series;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::wait;

/// All rules, without the order of chains, which is that of their making.
fn rules(lab: &Lab) -> Result<Vec<Vec<String>>> {
    Family::ALL
        .into_iter()
        .map(|family| {
            let mut rules = oracle::rules(lab.node(), family)?;
            rules.sort();
            Ok(rules)
        })
        .collect()
}

pub(super) fn come_back(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]).exposed();
    let lab = Lab::new(
        binary,
        std::slice::from_ref(&service),
        &["--ipvs-sync-period=1h"],
    )?;
    let _proxy = lab.start()?;
    lab.settles_at(std::slice::from_ref(&service), "rr")?;
    let wanted = rules(&lab)?;
    let drift = series(lab.node(), "kube_proxy_rs_drift_total")?;
    ensure!(drift.is_empty(), "our own writes are drift: {drift:?}");
    for (program, change) in [
        (
            "iptables",
            "-t nat -R KUBE-MARK-MASQ 1 -j MARK --set-xmark 0x8/0x8",
        ),
        ("iptables", "-t nat -F"),
        ("ip6tables", "-t filter -F KUBE-IPVS-FILTER"),
    ] {
        let arguments: Vec<&str> = change.split(' ').collect();
        lab.node().run(program, &arguments)?;
        wait::until(&format!("{program} {change}: the rules are back"), || {
            let found = rules(&lab)?;
            ensure!(found == wanted, "{found:#?}");
            Ok(())
        })?;
    }
    wait::until("the drift is counted", || {
        let drift = series(lab.node(), "kube_proxy_rs_drift_total")?;
        let of = |kind: &str| {
            let name = format!("kube_proxy_rs_drift_total{{kind=\"{kind}\",state=\"repaired\"}}");
            drift.get(&name).copied().unwrap_or_default()
        };
        ensure!(of("changed-chain") >= 3.0, "{drift:?}");
        ensure!(of("missing-rule") >= 1.0, "{drift:?}");
        Ok(())
    })
}
