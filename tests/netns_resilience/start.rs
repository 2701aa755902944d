// SPDX-License-Identifier: Apache-2.0
//! Where iptables cannot work the proxy does not start, says why, and changes nothing.

use anyhow::Result;

use super::node::{Backend, Node};
use kpr_testkit::topology::Family;

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
