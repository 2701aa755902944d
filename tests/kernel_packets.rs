// SPDX-License-Identifier: Apache-2.0
//! IPVS mode with real packets, in a kernel that has `ip_vs`: the table of cases, then scenarios.
//! The proxy is the real program; other programs say what the kernel holds.

#![cfg(test)]

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use kpr_testkit::cases;
use kpr_testkit::cases::Dataplane;
use kpr_testkit::cases::run::SharedWorld;
use kpr_testkit::packets::{changes, flows, lifecycle, neighbours, rollout, seen};
use kpr_testkit::requirements::{is_required, lacks_ipvs};
use kpr_testkit::traffic::Protocol;

mod scenarios;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // One world: tests that change it must not meet.
    arguments.test_threads = Some(1);
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    let world = SharedWorld::new(Dataplane::Ipvs);
    let direct = {
        let world = world.clone();
        move || cases::run::direct(&world, &Protocol::ALL).map_err(cases::run::failed)
    };
    let mut trials = Vec::new();
    if scenarios::missing::can_be_made() {
        // First: whatever uses a scheduler keeps its module.
        trials.push(Trial::test(
            "ipvs::missing::schedulers_are_replaced",
            || scenarios::missing::schedulers_are_replaced(binary).map_err(cases::run::failed),
        ));
    } else {
        eprintln!("absent: modules cannot be hidden from this kernel");
    }
    trials.push(Trial::test("cluster::direct", direct));
    let table = cases::run::trials(&world, binary, &Protocol::ALL);
    trials.extend(table);
    trials.extend(flows::trials(&world, binary));
    trials.extend(seen::trials(&world, binary));
    trials.extend(changes::trials(Dataplane::Ipvs, binary));
    if lacks_ipvs().is_none() && !scenarios::nftables::can_be_held() {
        eprintln!("absent: this kernel cannot translate addresses in nftables");
    } else {
        trials.extend(scenarios::trials_in_nftables(binary));
        trials.extend(lifecycle::trials_in_nftables(binary));
        trials.extend(neighbours::trials_in_nftables(binary));
    }
    // These look at iptables and ipsets.
    if std::env::var_os("KPR_IPVS_RULES").is_none_or(|rules| rules != "nftables") {
        trials.extend(scenarios::trials(binary));
        trials.extend(lifecycle::trials(binary, true));
        trials.extend(neighbours::trials(Dataplane::Ipvs, binary));
    }
    trials.push(Trial::test("ipvs::rollout::loses_nothing", || {
        rollout::loses_nothing(binary, "ipvs", &[]).map_err(cases::run::failed)
    }));
    if let Some(reason) = lacks_ipvs() {
        if is_required("REQUIRE_KERNEL") {
            trials = vec![Trial::test("kernel", move || Err(reason.into()))];
        } else {
            eprintln!("ignored: {reason}");
            trials = trials
                .into_iter()
                .map(|trial| trial.with_ignored_flag(true))
                .collect();
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Ends the proxy, which `exit` would leave behind.
    drop(world);
    conclusion.exit_code()
}
