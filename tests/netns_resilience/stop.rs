// SPDX-License-Identifier: Apache-2.0
//! The proxy is asked to end, as a kubelet does it, at the worst moment.

use anyhow::{Result, ensure};

use super::node::{Node, late};
use kpr_testkit::proxy::{HEALTH_PORT, get};
use kpr_testkit::topology::Family;
use kpr_testkit::wait;

/// Load balancers are sent away first, the round in flight is finished, and the kernel stays as it
/// is then.
pub(crate) fn finishes_the_round(node: &Node) -> Result<()> {
    let mut proxy = node.start()?;
    let before = node.rules(Family::V4)?;
    node.trouble(
        "restore",
        "here=$(dirname \"$0\"); touch \"$here/begun\"\n\
         until [ -e \"$here/free\" ]; do sleep 0.05; done\n",
    )?;
    node.manifests.apply(&late())?;
    wait::until("a round is in flight", || {
        ensure!(node.has_file("begun"), "no restore has begun");
        Ok(())
    })?;
    proxy.ask_to_end()?;
    wait::until("load balancers are sent away", || {
        let health = get(&node.namespace, HEALTH_PORT, "/healthz")?;
        ensure!(health.starts_with("HTTP/1.0 503"), "it says {health}");
        Ok(())
    })?;
    let alive = get(&node.namespace, HEALTH_PORT, "/livez")?;
    ensure!(alive.starts_with("HTTP/1.0 200"), "it says {alive}");
    ensure!(proxy.is_running()?, "it did not wait for the round");
    ensure!(node.rules(Family::V4)? == before, "the round had ended");
    node.script("free", "")?;
    let (status, log) = proxy.wait()?;
    ensure!(status.success(), "it ended with {status}:\n{log}");
    for family in Family::ALL {
        let rules = node.rules(family)?;
        for name in ["default/web", "default/late"] {
            let has_rules = rules.iter().any(|rule| rule.contains(name));
            ensure!(has_rules, "{name} is not served: {rules:#?}");
        }
    }
    Ok(())
}
