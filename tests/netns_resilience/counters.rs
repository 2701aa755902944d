// SPDX-License-Identifier: Apache-2.0
//! Packets that rules count by name are in the metrics.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Result, ensure};

use super::node::Node;
use kpr_testkit::topology::{Family, node_port};
use kpr_testkit::wait;

const INVALID: &str = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total";
const LOCALHOST: &str = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total";

pub(crate) fn are_metrics(node: &Node) -> Result<()> {
    let _proxy = node.start()?;
    for family in Family::ALL {
        node.wait_for_rule(
            family,
            "--ctstate INVALID -m nfacct --nfacct-name  ct_state_invalid_dropped_pkts -j DROP",
            true,
        )?;
    }
    ensure!(node.series(INVALID)?.abs() < 0.5, "something was invalid");
    ensure!(
        node.series(LOCALHOST)?.abs() < 0.5,
        "something was accepted"
    );
    let text = kpr_testkit::proxy::metrics(&node.namespace)?;
    ensure!(text.contains(INVALID), "{INVALID} is missing");
    let capability = "kube_proxy_rs_kernel_capability{name=\"xt_nfacct\"} 1";
    ensure!(text.contains(capability), "{capability} is missing");
    // What reaches the node port from the node, without any endpoint that could answer.
    let socket = node
        .namespace
        .enter(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)))??;
    let sent = socket.send_to(b"hello", (Ipv4Addr::LOCALHOST, node_port(1)));
    // The route to the endpoint is missing: that is told after the rules have seen the packet.
    drop(sent);
    wait::until("the packet is counted", || {
        let counted = node.series(LOCALHOST)?;
        ensure!((counted - 1.0).abs() < 0.5, "{counted}");
        Ok(())
    })
}
