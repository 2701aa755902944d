// SPDX-License-Identifier: Apache-2.0
//! iptables mode when things go wrong: others change its rules, programs are missing or fail, a
//! lock is held. On this machine's kernel, in network namespaces, with both backends.

#![cfg(test)]

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Failed, Trial};

use kpr_testkit::requirements::is_required;
use node::{Backend, Node};

mod affinity;
mod counters;
mod drift;
mod failure;
mod large;
mod native;
mod node;
mod probes;
mod servers;
mod start;
mod stop;
mod together;

type Scenario = (&'static str, fn(&Node) -> Result<()>);

/// With each backend.
const SCENARIOS: [Scenario; 16] = [
    (
        "affinity::thousands_of_clients_stay",
        affinity::thousands_of_clients_stay,
    ),
    (
        "affinity::clients_of_recent_are_taken_over",
        affinity::clients_of_recent_are_taken_over,
    ),
    (
        "affinity::without_recent_nobody_is_remembered",
        affinity::without_recent_nobody_is_remembered,
    ),
    (
        "affinity::without_statistic_single_endpoints_are_served",
        affinity::without_statistic_single_endpoints_are_served,
    ),
    ("counters::are_metrics", counters::are_metrics),
    ("drift::is_repaired", drift::is_repaired),
    (
        "drift::audits_start_no_program",
        drift::audits_start_no_program,
    ),
    ("failure::refused_service", failure::refused_service),
    ("failure::chain_of_others", failure::chain_of_others),
    ("failure::restore_recovers", failure::restore_recovers),
    ("failure::garbage", failure::garbage),
    ("start::garbage", start::garbage),
    ("start::missing_backend", start::missing_backend),
    ("start::too_old", start::too_old),
    ("stop::during_the_start", stop::during_the_start),
    ("stop::finishes_the_round", stop::finishes_the_round),
];

/// With one.
const SINGLE: [(Backend, Scenario); 26] = [
    (Backend::Legacy, ("failure::held_lock", failure::held_lock)),
    (
        Backend::Legacy,
        (
            "affinity::a_list_holds_up_no_timeout",
            affinity::a_list_holds_up_no_timeout,
        ),
    ),
    (
        Backend::Nft,
        ("start::nothing_installed", start::nothing_installed),
    ),
    (
        Backend::Nft,
        ("start::backend_without_nat", start::backend_without_nat),
    ),
    (
        Backend::Nft,
        ("large::others_go_between", large::others_go_between),
    ),
    (
        Backend::Nft,
        ("large::kill_between_parts", large::kill_between_parts),
    ),
    (
        Backend::Nft,
        (
            "large::nobody_waits_for_a_tenant",
            large::nobody_waits_for_a_tenant,
        ),
    ),
    (
        Backend::Nft,
        ("native::while_running", native::while_running),
    ),
    (Backend::Nft, ("native::in_filter", native::in_filter)),
    (Backend::Nft, ("native::in_ipv6", native::in_ipv6)),
    (Backend::Nft, ("native::at_start", native::at_start)),
    (
        Backend::Nft,
        ("native::at_start_in_filter", native::at_start_in_filter),
    ),
    (
        Backend::Nft,
        ("native::at_start_in_ipv6", native::at_start_in_ipv6),
    ),
    (Backend::Nft, ("native::reloaded", native::reloaded)),
    (
        Backend::Nft,
        (
            "native::reloaded_while_running",
            native::reloaded_while_running,
        ),
    ),
    (Backend::Nft, ("native::cleanup", native::cleanup)),
    (
        Backend::Nft,
        ("start::warns_of_the_network", start::warns_of_the_network),
    ),
    (
        Backend::Nft,
        (
            "start::warns_of_reverse_paths",
            start::warns_of_reverse_paths,
        ),
    ),
    (
        Backend::Legacy,
        (
            "probes::bear_a_refused_service",
            probes::bear_a_refused_service,
        ),
    ),
    (
        Backend::Nft,
        ("servers::stand_floods", servers::stand_floods),
    ),
    (
        Backend::Nft,
        (
            "servers::see_a_loop_that_hangs",
            servers::see_a_loop_that_hangs,
        ),
    ),
    (Backend::Nft, ("stop::as_process_1", stop::as_process_1)),
    (
        Backend::Nft,
        ("stop::gives_up_a_long_round", stop::gives_up_a_long_round),
    ),
    (
        Backend::Nft,
        (
            "together::the_second_one_waits",
            together::the_second_one_waits,
        ),
    ),
    (
        Backend::Nft,
        (
            "together::a_start_has_the_lock",
            together::a_start_has_the_lock,
        ),
    ),
    (
        Backend::Nft,
        (
            "together::a_lock_goes_with_its_process",
            together::a_lock_goes_with_its_process,
        ),
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each has its own namespace and lock; they mostly wait.
    arguments.test_threads.get_or_insert(4);
    let both = Backend::ALL
        .into_iter()
        .flat_map(|backend| SCENARIOS.map(|scenario| (backend, scenario)));
    let is_root = nix::unistd::geteuid().is_root();
    let required = is_required("REQUIRE_NETNS");
    let trials = both
        .chain(SINGLE)
        .map(|(backend, (name, run))| {
            let name = format!("{}::{name}", backend.as_str());
            let test = move || -> Result<(), Failed> {
                if !is_root {
                    return Err("needs root".into());
                }
                let binary = Path::new(env!("CARGO_BIN_EXE_kube-proxy-rs"));
                Node::new(binary, backend)
                    .and_then(|node| run(&node))
                    .map_err(|error| format!("{error:#}").into())
            };
            Trial::test(name, test).with_ignored_flag(!is_root && !required)
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
