// SPDX-License-Identifier: Apache-2.0
//! PURE: what a kernel holds of one family in iptables mode, as observed.

use std::collections::BTreeMap;

use crate::plan::ruleset::Ruleset;

/// The kernel's content of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Values by path under `/proc/sys`; what cannot be read is absent.
    pub sysctls: BTreeMap<&'static str, String>,
    pub rules: Ruleset,
    /// The table of kube-proxy's nftables mode is there. It translates packets until it goes.
    pub has_nftables_table: bool,
}
