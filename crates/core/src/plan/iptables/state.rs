// SPDX-License-Identifier: Apache-2.0
//! PURE: the observed state of one family in iptables mode.

use std::collections::BTreeMap;

use crate::plan::iptables::affinity::SetState;
use crate::plan::ipvs::set::SetName;
use crate::plan::ruleset::Ruleset;

/// The kernel's state of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub settings: Settings,
    pub rules: Ruleset,
    pub sets: Sets,
}

/// The sets of clients of one family.
pub type Sets = BTreeMap<SetName, SetState>;

/// What a plan may change besides rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Values by path under `/proc/sys`; unreadable ones are absent.
    pub sysctls: BTreeMap<&'static str, String>,
    /// The table of kube-proxy's nftables mode exists. It translates packets until it is deleted.
    pub has_nftables_table: bool,
}
