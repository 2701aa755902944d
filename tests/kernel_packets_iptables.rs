// SPDX-License-Identifier: Apache-2.0
//! iptables mode in the guest kernel: the table of cases with the protocol that kernels of hosts
//! often lack.

#![cfg(test)]

use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

use kpr_testkit::cases;
use kpr_testkit::cases::run::{SharedWorld, failed};
use kpr_testkit::cases::{Backend, Dataplane};
use kpr_testkit::requirements::is_required;
use kpr_testkit::traffic::{Protocol, is_supported};

const PROTOCOLS: [Protocol; 1] = [Protocol::Sctp];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They mostly wait for what does not come.
    arguments.test_threads = Some(6);
    let world = SharedWorld::new(Dataplane::Iptables(Backend::Legacy));
    let direct = {
        let world = world.clone();
        move || cases::run::direct(&world, &PROTOCOLS).map_err(failed)
    };
    let mut trials = vec![Trial::test("iptables-legacy::cluster", direct)];
    let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
    trials.extend(cases::run::trials(&world, binary, &PROTOCOLS));
    if !nix::unistd::geteuid().is_root() || !is_supported(Protocol::Sctp) {
        const REASON: &str = "needs root and a kernel with SCTP";
        if is_required("REQUIRE_KERNEL") {
            trials = vec![Trial::test("kernel", || Err(REASON.into()))];
        } else {
            eprintln!("ignored: {REASON}");
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
