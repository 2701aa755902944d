// SPDX-License-Identifier: Apache-2.0
//! What a restart cannot help does not make a kubelet restart the proxy.

use anyhow::{Result, ensure};

use super::failure::{sticky, without_sets};
use super::node::{Node, late, services};
use kpr_testkit::kubelet::Kubelet;
use kpr_testkit::topology::{Family, Host};

/// The kernel refuses one Service all the time, while others change.
pub(crate) fn bear_a_refused_service(node: &Node) -> Result<()> {
    let kubelet = Kubelet::new()?;
    node.trouble("restore", &without_sets(node.backend))?;
    node.manifests.apply(&sticky(services().remove(0)))?;
    let proxy = node.start_by(node.command(&[kubelet.sync_period]))?;
    let probed = kubelet.watch(&node.namespace, |number| {
        let mut changing = late();
        if number % 2 == 0 {
            changing.endpoints.truncate(0);
        }
        node.manifests.apply(&changing)
    })?;
    let log = proxy.log();
    ensure!(log.contains("kernel rejected the rules"), "{log}");
    eprintln!("a refused Service: {probed:?}");
    ensure!(
        probed.failures.is_empty() && probed.probes > 30,
        "{probed:?}\n{log}"
    );
    node.manifests.apply(&kpr_testkit::manifests::Service::new(
        "last",
        9,
        &[Host::Web1],
    ))?;
    node.wait_for_rule(Family::V4, "default/last", true)
}
