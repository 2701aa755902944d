// SPDX-License-Identifier: Apache-2.0
//! IPVS mode as an unprivileged container, after an init container that was privileged.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::few_rights;
use crate::kernel;
use crate::manifests::{ManifestDirectory, Service};
use crate::namespace::command;
use crate::packets::answers;
use crate::proxy::{Invocation, Proxy};
use crate::topology::{Family, Host, Topology};
use crate::traffic::{Patience, Protocol, Servers};

/// Kernel settings are written by `--init-only`; then the proxy serves, and cleans up, without the
/// right to.
pub(super) fn are_enough_in_ipvs_mode(binary: &Path) -> Result<()> {
    let topology = Topology::new()?;
    let _servers = Servers::new(&topology)?;
    let node = topology.host(Host::Node);
    let before = kernel::read(node)?;
    let web = Service::new("web", 1, &[Host::Web1, Host::Web3]).protocols(&[Protocol::Tcp]);
    let web = web.exposed();
    let manifests = ManifestDirectory::new(std::slice::from_ref(&web))?;
    // Not for a network namespace to change.
    let flags = ["--conntrack-max-per-core=0", "--conntrack-min=0"];
    let mut init = command(binary);
    init.args(["--init-only", "--proxy-mode=ipvs"]).args(flags);
    let output = node.enter(|| init.output())??;
    ensure!(output.status.success(), "{output:?}");

    let ours = Invocation::new(binary, &manifests, "ipvs")
        .in_cluster()
        .with(&flags);
    let mut proxy = Proxy::spawn(node, few_rights::command(&ours.command()))?;
    proxy.wait_until_synced(node)?;
    answers(&topology, &web, &Family::ALL, Patience::Long).with_context(|| proxy.log())?;
    let (_, log) = proxy.terminate()?;
    few_rights::has_no_complaints(&log)?;

    let mut clean = command(binary);
    clean.args(["--cleanup", "--proxy-mode=ipvs"]);
    let mut clean = few_rights::command(&clean);
    let output = node.enter(|| clean.output())??;
    let left = kernel::differences(&before, &kernel::read(node)?);
    ensure!(
        output.status.success() && left.is_empty(),
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        left.join("\n")
    );
    Ok(())
}
