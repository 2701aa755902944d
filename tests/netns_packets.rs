// SPDX-License-Identifier: Apache-2.0
//! The proxy on this machine's kernel, in network namespaces.

#![cfg(test)]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Trial};

use kpr_testkit::cases;
use kpr_testkit::cases::run::{SharedWorld, failed};
use kpr_testkit::cases::{Backend, Dataplane};
use kpr_testkit::manifests::{ManifestDirectory, Service};
use kpr_testkit::namespace::Namespace;
use kpr_testkit::packets::{changes, flows, lifecycle, neighbours, rollout, seen};
use kpr_testkit::proxy::{Invocation, Proxy};
use kpr_testkit::requirements::{is_required, lacks_ipvs};
use kpr_testkit::topology::{Family, Host};
use kpr_testkit::traffic::{Protocol, is_supported};

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They mostly wait for what does not come.
    arguments.test_threads = Some(12);
    let protocols: Vec<Protocol> = Protocol::ALL
        .into_iter()
        .filter(|p| is_supported(*p))
        .collect();
    if protocols.len() < Protocol::ALL.len() {
        eprintln!("absent: this kernel has no SCTP; kernel_packets_iptables has those cases");
    }
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    let mut worlds = Vec::new();
    let mut trials = Vec::new();
    for backend in Backend::ALL {
        let world = SharedWorld::new(Dataplane::Iptables(backend));
        let direct = {
            let (world, protocols) = (world.clone(), protocols.clone());
            move || cases::run::direct(&world, &protocols).map_err(failed)
        };
        trials.push(Trial::test(
            format!("iptables-{}::cluster", backend.name()),
            direct,
        ));
        trials.extend(cases::run::trials(&world, binary, &protocols));
        trials.extend(flows::trials(&world, binary));
        trials.extend(seen::trials(&world, binary));
        trials.extend(changes::trials(Dataplane::Iptables(backend), binary));
        trials.extend(neighbours::trials(Dataplane::Iptables(backend), binary));
        worlds.push(world);
    }
    trials.extend(lifecycle::trials(binary, false));
    trials.push(Trial::test("iptables::rollout::loses_nothing", || {
        rollout::loses_nothing(binary, "iptables", &[]).map_err(failed)
    }));
    // Where the kernel has IPVS there is no way to see how its absence is met.
    if lacks_ipvs().is_some() {
        trials.push(Trial::test("ipvs::kernel_without_it", || {
            kernel_without_ipvs().map_err(failed)
        }));
    }
    if !nix::unistd::geteuid().is_root() {
        if is_required("REQUIRE_NETNS") {
            trials = vec![Trial::test("netns", || Err("needs root".into()))];
        } else {
            trials = trials
                .into_iter()
                .map(|trial| trial.with_ignored_flag(true))
                .collect();
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Ends the proxy, which `exit` would leave behind.
    drop(worlds);
    conclusion.exit_code()
}

/// IPVS mode in a kernel without `ip_vs`: the start is refused with the cause, and nothing is
/// changed.
fn kernel_without_ipvs() -> Result<()> {
    let node = Namespace::new()?;
    node.ip("link set lo up\n")?;
    let manifests = ManifestDirectory::new(&[Service::new("web", 1, &[Host::Web1])])?;
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    let invocation = Invocation::new(binary, &manifests, "ipvs");
    let (status, log) = Proxy::spawn(&node, invocation.command())?.wait()?;
    ensure!(!status.success(), "it ended with {status}:\n{log}");
    ensure!(
        log.contains("ip_vs"),
        "the log does not name the module:\n{log}"
    );
    for family in Family::ALL {
        let rules = kpr_testkit::oracle::rules(&node, family)?;
        ensure!(
            !rules.iter().any(|rule| rule.contains("KUBE-")),
            "there are rules:\n{}",
            rules.join("\n")
        );
    }
    let links = node.run("ip", &["-o", "link"])?;
    ensure!(!links.contains("kube-ipvs0"), "there is a link:\n{links}");
    Ok(())
}
