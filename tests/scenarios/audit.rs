// SPDX-License-Identifier: Apache-2.0
//! Real servers that somebody else changes are put right by the next audit.

use std::path::Path;

use anyhow::{Result, ensure};

use super::Lab;
use kpr_testkit::manifests::Service;
use kpr_testkit::oracle;
use kpr_testkit::proxy::series;
use kpr_testkit::topology::Host;
use kpr_testkit::wait;

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
            wait::until(&format!("ipvsadm {change}: it is put right"), || {
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
        ensure!(repaired >= 6.0, "{drift:?}");
        Ok(())
    })?;
    let log = proxy.log();
    ensure!(
        !log.contains("cannot use /proc/net/ip_vs"),
        "the kernel shows nothing in passing:\n{log}"
    );
    Ok(())
}
