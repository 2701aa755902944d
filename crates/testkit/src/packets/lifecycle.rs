// SPDX-License-Identifier: Apache-2.0
//! What the proxy leaves behind: clean-up, in each mode and after a switch, and to its successor.

use std::path::Path;

use anyhow::Result;
use libtest_mimic::Trial;

use crate::cases::run::failed;

mod cleanup;
mod few_rights;
mod handover;
mod switch;

/// Those of IPVS mode with its rules in nftables.
pub fn trials_in_nftables(binary: &'static Path) -> Vec<Trial> {
    vec![Trial::test("nftables::handover_loses_nothing", move || {
        let flags = ["--ipvs-rules=nftables"];
        // An emulated machine serves some 25. With more it gets nothing else done.
        handover::loses_nothing(binary, "ipvs", &flags, 10).map_err(failed)
    })]
}

/// All of them as tests, for a kernel that has IPVS or one that does not.
pub fn trials(binary: &'static Path, has_ipvs: bool) -> Vec<Trial> {
    let trial = |name: &str, run: fn(&Path) -> Result<()>| {
        Trial::test(format!("cleanup::{name}"), move || {
            run(binary).map_err(failed)
        })
    };
    let handover = Trial::test("handover::loses_nothing", move || {
        let mode = if has_ipvs { "ipvs" } else { "iptables" };
        handover::loses_nothing(binary, mode, &[], 40).map_err(failed)
    });
    if has_ipvs {
        vec![
            handover,
            Trial::test("switch::there_and_back", move || {
                switch::there_and_back(binary).map_err(failed)
            }),
            Trial::test("switch::without_detector", move || {
                switch::without_detector(binary).map_err(failed)
            }),
            Trial::test("few_rights::are_enough_in_ipvs_mode", move || {
                few_rights::are_enough_in_ipvs_mode(binary).map_err(failed)
            }),
            trial("after_ipvs_mode", |binary| {
                cleanup::after(binary, &["ipvs"])
            }),
            trial("after_both_modes", |binary| {
                cleanup::after(binary, &["ipvs", "iptables"])
            }),
        ]
    } else {
        vec![
            handover,
            trial("after_iptables_mode", |binary| {
                cleanup::after(binary, &["iptables"])
            }),
            trial("of_both_backends", cleanup::of_both_backends),
            trial("says_what_is_left", cleanup::says_what_is_left),
        ]
    }
}
