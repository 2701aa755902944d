// SPDX-License-Identifier: Apache-2.0
//! Which of the matches that our rules use this machine's iptables and kernel have. One that is
//! missing keeps some Services from being served, or all; it is named at the start.

use std::collections::{BTreeMap, BTreeSet};

use tracing::debug;

use crate::dataplane::iptables::Iptables;
use crate::reconcile::observer::Observer;
use crate::telemetry::ErrorChain;
use kpr_core::model::IpFamily;
use kpr_core::plan::ruleset::{Rule, Table};

/// The name of a kernel module, and a match that needs it.
type Match = (&'static str, &'static str);

/// Those of all modes.
pub(super) const COMMON: &[Match] = &[
    ("xt_comment", "-m comment --comment probe"),
    ("xt_addrtype", "-m addrtype --dst-type LOCAL"),
    ("xt_conntrack", "-m conntrack --ctstate NEW"),
    ("xt_mark", "-m mark --mark 0x4000/0x4000"),
];

/// What remembers clients where rules cannot match ipsets.
pub(super) const RECENT: &str = "xt_recent";

/// Those of iptables mode besides.
pub(super) const OF_IPTABLES_MODE: &[Match] = &[
    (
        "xt_statistic",
        "-m statistic --mode random --probability 0.5",
    ),
    (RECENT, "-m recent --rcheck --seconds 1 --name KUBE-PROBE"),
];

/// Those that some family lacks; what is there is usually seen by one program for each family.
pub(super) fn missing(
    iptables: &BTreeMap<IpFamily, Iptables>,
    matches: impl Iterator<Item = &'static Match> + Clone,
    observer: &dyn Observer,
) -> BTreeSet<&'static str> {
    let mut missing = BTreeSet::new();
    for iptables in iptables.values() {
        let all: Vec<&str> = matches.clone().map(|(_, text)| *text).collect();
        if knows(iptables, &all.join(" ")) {
            continue;
        }
        let lacking = matches.clone().filter(|(_, text)| !knows(iptables, text));
        missing.extend(lacking.map(|(name, _)| *name));
    }
    for (name, _) in matches {
        observer.kernel_capability(name, !missing.contains(name));
    }
    missing
}

/// A program that does not run says nothing about the kernel; it fails later, too.
fn knows(iptables: &Iptables, matches: &str) -> bool {
    let rule = Rule::new(format!("{matches} -j RETURN"));
    iptables.knows(Table::Nat, &rule).unwrap_or_else(|error| {
        debug!(error = %ErrorChain(&error), "cannot probe iptables");
        true
    })
}
