// SPDX-License-Identifier: Apache-2.0
//! Kernel settings that flags ask for: written where the kernel has them, named where it has not.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Lab;
use kpr_testkit::manifests::Service;
use kpr_testkit::proxy::{ask_proxy, series};
use kpr_testkit::topology::Host;
use kpr_testkit::wait;

/// Name, value, and the version of Linux that has it.
const WANTED: [(&str, &str, (u32, u32)); 6] = [
    ("run_estimation", "0", (5, 15)),
    ("est_cpulist", "0", (6, 2)),
    ("est_nice", "7", (6, 2)),
    ("conn_lfactor", "-5", (7, 1)),
    ("svc_lfactor", "-4", (7, 1)),
    ("conn_max", "100000", (7, 2)),
];

/// Major and minor version of the kernel.
fn version(lab: &Lab) -> Result<(u32, u32)> {
    let release = lab.node().run("uname", &["-r"])?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || numbers.next()?.parse().ok();
    next().zip(next()).context(release.clone())
}

pub(super) fn follow_the_flags(binary: &Path) -> Result<()> {
    let flags = [
        "--ipvs-run-estimation=false",
        "--ipvs-est-cpulist=0,8191",
        "--ipvs-est-nice=7",
        "--ipvs-conn-lfactor=-5",
        "--ipvs-svc-lfactor=-4",
        "--ipvs-conn-max=100000",
        "--ipvs-sync-period=1s",
    ];
    let lab = Lab::new(binary, &[Service::new("web", 1, &[Host::Web1])], &flags)?;
    let (node, version) = (lab.node(), version(&lab)?);
    let proxy = lab.start()?;
    let known = series(node, "kube_proxy_rs_kernel_capability")?;
    let refused = series(node, "kube_proxy_rs_sysctl_unwritable")?;
    for (name, wanted, since) in WANTED {
        let key = format!("net/ipv4/vs/{name}");
        let of = |metric: &str| format!("kube_proxy_rs_{metric}{{name=\"{key}\"}}");
        let capability = known.get(&of("kernel_capability")).copied();
        if version >= since {
            let found = node.run("sysctl", &["-n", &format!("net.ipv4.vs.{name}")])?;
            ensure!(found.trim() == wanted, "{name} is {found}");
            ensure!(capability == Some(1.0), "{known:?}");
            let written = refused.get(&of("sysctl_unwritable"));
            ensure!(written == Some(&0.0), "{refused:?}");
        } else {
            ensure!(capability == Some(0.0), "{known:?}");
            proxy.wait_for_log(&[&format!("{key} cannot be {wanted}")])?;
        }
    }
    lab.nothing_to_do()?;
    let printed = ask_proxy(node, binary, &["top", "--once"])?;
    ensure!(
        printed.errors.contains("run_estimation is 0"),
        "{printed:?}"
    );

    node.sysctl(&[("net/ipv4/vs/run_estimation", "1")])?;
    wait::until("another program's value is replaced", || {
        let found = node.run("sysctl", &["-n", "net.ipv4.vs.run_estimation"])?;
        ensure!(found.trim() == "0", "{found}");
        Ok(())
    })?;
    Ok(())
}
