// SPDX-License-Identifier: Apache-2.0
//! A kernel without some of the schedulers: Services are served with others, and it is said which
//! modules are missing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Lab;
use kpr_testkit::cases::At;
use kpr_testkit::manifests::Service;
use kpr_testkit::namespace::Namespace;
use kpr_testkit::proxy::series;
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Outcome, Patience, Protocol, ask};
use kpr_testkit::wait;

/// Where modprobe looks; nothing here outlives the machine.
const BLOCKS: &str = "/run/modprobe.d";

/// Whether modules can be hidden from the kernel here: it runs modprobe among the files of the
/// machine's first process.
pub(crate) fn can_be_made() -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/mnt")).ok();
    of("1").is_some_and(|first| of("self") == Some(first))
}

/// Modules that the kernel cannot load until this is dropped.
pub(super) struct Hidden;

impl Hidden {
    pub(super) fn new(modules: &[&str]) -> Result<Self> {
        let here = Namespace::current()?;
        for module in modules {
            // It is an error if it was not loaded.
            drop(here.output("modprobe", &["-r", module]));
            let is_there = Path::new("/sys/module").join(module).exists();
            ensure!(!is_there, "the kernel uses {module}");
        }
        let block = |module: &&str| format!("install {module} /bin/false");
        let blocks: Vec<String> = modules.iter().map(block).collect();
        let text = blocks.join("\n") + "\n";
        fs::create_dir_all(BLOCKS)?;
        fs::write(format!("{BLOCKS}/kpr-test.conf"), text)?;
        Ok(Self)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        drop(fs::remove_file(format!("{BLOCKS}/kpr-test.conf")));
    }
}

pub(crate) fn schedulers_are_replaced(binary: &Path) -> Result<()> {
    let hidden = Hidden::new(&["ip_vs_mh", "ip_vs_nq"])?;
    // Pods and the node have it by a firewall mark, where a hash keeps them.
    let kept = Service::new("kept", 1, &Host::WEB)
        .protocols(&[Protocol::Tcp])
        .exposed()
        .with("sessionAffinity", json!("ClientIP"))
        .with("externalTrafficPolicy", json!("Local"));
    let named = Service::new("named", 2, &[Host::Web1, Host::Web3])
        .protocols(&[Protocol::Tcp])
        .annotated("kube-proxy-rs.io/scheduler", "nq");
    let allowed = "--service-schedulers=nq";
    let lab = Lab::new(binary, &[kept.clone(), named.clone()], &[allowed])?;
    let proxy = lab.start()?;
    has(&lab, &kept, &named, "sh", "rr", 0.0)
        .with_context(|| format!("the log:\n{}", proxy.log()))?;
    proxy.wait_for_log(&["default/kept", "ip_vs_mh", "sh is used"])?;
    proxy.wait_for_log(&["default/named", "ip_vs_nq", "rr is used"])?;
    drop(hidden);
    // An audit would find them too, but audits are rare.
    proxy.kill()?;
    let proxy = lab.start()?;
    has(&lab, &kept, &named, "mh", "nq", 1.0)
        .with_context(|| format!("after the modules came; the log:\n{}", proxy.log()))?;
    lab.nothing_to_do_soon()
}

/// Waits until clients are kept by a scheduler, the named Service has another, and the metric says
/// whether the modules are there. Clients do stay.
fn has(
    lab: &Lab,
    kept: &Service,
    named: &Service,
    hash: &str,
    scheduler: &str,
    is_there: f64,
) -> Result<()> {
    wait::until("the schedulers are as wanted", || {
        let saved = lab.node().run("ipvsadm", &["-S", "-n"])?;
        // Without that of answers to the node's clients.
        let is_mark = |line: &&str| line.starts_with("-A -f ") && !line.starts_with("-A -f 8191 ");
        let marks = saved.lines().filter(is_mark);
        let marks: Vec<&str> = marks.collect();
        ensure!(
            marks.len() == 2 && marks.iter().all(|it| it.contains(&format!(" -s {hash} "))),
            "{marks:?}"
        );
        for family in Family::ALL {
            let to = At::ClusterIp.address(named, family, 80);
            let wanted = format!("-A -t {to} -s {scheduler}");
            ensure!(
                saved.lines().any(|line| line.trim_end() == wanted),
                "{saved}"
            );
        }
        let capabilities = series(lab.node(), "kube_proxy_rs_kernel_capability")?;
        for module in ["ip_vs_mh", "ip_vs_nq"] {
            let name = format!("kube_proxy_rs_kernel_capability{{name=\"{module}\"}}");
            ensure!(
                capabilities.get(&name) == Some(&is_there),
                "{capabilities:?}"
            );
        }
        Ok(())
    })?;
    for family in Family::ALL {
        for from in [Host::Shell, Host::Node] {
            let to = At::Vip.address(kept, family, 80);
            let mut by = BTreeSet::new();
            for _ in 0..6 {
                match ask(
                    lab.topology.host(from),
                    None,
                    to,
                    Protocol::Tcp,
                    Patience::Long,
                )? {
                    Outcome::Answered(answer) => by.insert(answer.by),
                    outcome => anyhow::bail!("{from} at {to} was {outcome}"),
                };
            }
            ensure!(by.len() == 1, "{from} at {to} met {by:?}");
        }
    }
    Ok(())
}
