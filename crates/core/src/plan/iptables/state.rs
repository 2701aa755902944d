// SPDX-License-Identifier: Apache-2.0
//! PURE: the observed state of one family in iptables mode.

use std::collections::BTreeMap;

use crate::plan::ruleset::Ruleset;

/// The kernel's state of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Values by path under `/proc/sys`; unreadable ones are absent.
    pub sysctls: BTreeMap<&'static str, String>,
    pub rules: Ruleset,
    /// The table of kube-proxy's nftables mode exists. It translates packets until it is deleted.
    pub has_nftables_table: bool,
}
