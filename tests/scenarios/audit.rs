// SPDX-License-Identifier: Apache-2.0
//! Real servers that somebody else changes are put right: by the next audit if it finds more.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Lab;
use kpr_testkit::manifests::Service;
use kpr_testkit::oracle;
use kpr_testkit::proxy::series;
use kpr_testkit::topology::Host;
use kpr_testkit::wait;

/// Audits rest for a hundred times what they took, ten minutes at most: on a machine with much else
/// to do that is what they take.
const AUDIT_LIMIT: Duration = Duration::from_mins(12);

/// While nobody changes anything, an audit reads the virtual servers of both families once, and
/// neither real servers nor addresses.
pub(super) fn reads_little(binary: &Path) -> Result<()> {
    const SERVICES: u8 = 40;
    let services: Vec<Service> = (1..=SERVICES)
        .map(|number| Service::new(&format!("web{number}"), number, &[Host::Web1, Host::Web3]))
        .collect();
    let lab = Lab::new(binary, &services, &["--ipvs-sync-period=1s"])?;
    let proxy = lab.start()?;
    let node = lab.node();
    let counts = || -> Result<(f64, f64)> {
        let received = series(node, "kube_proxy_rs_netlink_messages_total")?;
        let received = received.iter().find(|(name, _)| name.contains("received"));
        let rounds = series(node, "kubeproxy_sync_proxy_rules_duration_seconds_count")?;
        let (_, messages) = received.context("no messages")?;
        Ok((*messages, rounds.values().sum::<f64>() / 2.0))
    };
    let servers = oracle::virtual_servers(node)?.len();
    let addresses = oracle::bound_addresses(node)?.len();
    ensure!(servers > 2 * usize::from(SERVICES) && addresses > usize::from(SERVICES));
    // Each audit is a round of both families. The first ones after the start read everything.
    let mut least = f64::INFINITY;
    wait::until_within(AUDIT_LIMIT, "an audit reads the outline", || {
        let before = counts()?;
        wait::until_within(AUDIT_LIMIT, "an audit", || {
            ensure!(counts()?.1 >= before.1 + 1.0);
            Ok(())
        })?;
        let after = counts()?;
        least = least.min((after.0 - before.0) / (after.1 - before.1));
        // Sets, settings, links and the ends of dumps.
        let rest = 250.0;
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        let most = servers as f64 + rest;
        ensure!(
            least <= most,
            "{least} messages in an audit of {servers} servers"
        );
        Ok(())
    })
    .with_context(|| format!("{addresses} addresses; the log:\n{}", proxy.log()))
}

/// All virtual and real servers with weights and forwarding methods.
fn servers(lab: &Lab) -> Result<Vec<String>> {
    let text = lab.node().run("ipvsadm", &["-S", "-n"])?;
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    Ok(lines)
}

pub(super) fn puts_real_servers_right(binary: &Path) -> Result<()> {
    let service = Service::new("web", 1, &[Host::Web1, Host::Web3]);
    let lab = Lab::new(binary, &[service], &["--ipvs-sync-period=1s"])?;
    let proxy = lab.start()?;
    let wanted = servers(&lab)?;
    let found = oracle::virtual_servers(lab.node())?;
    for is_ipv4 in [true, false] {
        let mut of_family = found
            .iter()
            .filter(|((_, address), server)| {
                address.is_ipv4() == is_ipv4 && !server.real_servers.is_empty()
            })
            .filter_map(|((_, at), server)| Some((*at, *server.real_servers.keys().next()?)));
        let Some((at, real)) = of_family.next() else {
            anyhow::bail!("nothing to change in {found:?}");
        };
        for change in [
            format!("-e -t {at} -r {real} -m -w 7"),
            format!("-d -t {at} -r {real}"),
            if is_ipv4 {
                format!("-a -t {at} -r 192.0.2.9:80 -m -w 1")
            } else {
                format!("-a -t {at} -r [2001:db8::9]:80 -m -w 1")
            },
        ] {
            let arguments: Vec<&str> = change.split(' ').collect();
            lab.node().run("ipvsadm", &arguments)?;
            // Real servers alone are read rarely where that takes long; this is seen by each audit,
            // and after that everything is read.
            let outline = ["-E", "-t", &at.to_string(), "-s", "wrr"];
            lab.node().run("ipvsadm", &outline)?;
            let what = format!("ipvsadm {change}: it is put right");
            wait::until_within(AUDIT_LIMIT, &what, || {
                let found = servers(&lab)?;
                ensure!(found == wanted, "{found:#?}");
                Ok(())
            })?;
        }
    }
    wait::until("the drift is counted", || {
        let drift = series(lab.node(), "kube_proxy_rs_drift_total")?;
        let repaired: f64 = drift
            .iter()
            .filter(|(name, _)| name.contains("state=\"repaired\""))
            .map(|(_, count)| count)
            .sum();
        ensure!(repaired >= 12.0, "{drift:?}");
        Ok(())
    })?;
    let log = proxy.log();
    ensure!(
        !log.contains("cannot use /proc/net/ip_vs"),
        "the kernel shows nothing in passing:\n{log}"
    );
    Ok(())
}
