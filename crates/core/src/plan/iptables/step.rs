// SPDX-License-Identifier: Apache-2.0
//! PURE: the steps of iptables mode, and their order in a plan.

use std::fmt;

use serde::Serialize;

use crate::model::IpFamily;
use crate::plan::iptables::affinity::AffinitySet;
use crate::plan::iptables::prerequisites::Prerequisites;
use crate::plan::ipvs::set::SetName;
use crate::plan::leftovers::NFTABLES_TABLE;
use crate::plan::ruleset::RuleBatch;

/// One change. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// `key` is a path under `/proc/sys`.
    SetSysctl {
        key: &'static str,
        value: &'static str,
    },
    /// An empty set, but for the clients that `xt_recent` remembers. One of that name that no rule
    /// uses is replaced.
    CreateSet {
        #[serde(flatten)]
        set: AffinitySet,
        /// Rules of this plan name it.
        #[serde(skip)]
        is_needed: bool,
    },
    /// Another size or time-out for a set; its clients stay.
    RemakeSet(AffinitySet),
    DestroySet {
        set: SetName,
    },
    /// One run of `iptables-restore --noflush`.
    EditRules(RuleBatch),
    /// The table of kube-proxy's nftables mode for this family.
    DeleteNftablesTable {
        family: IpFamily,
    },
}

/// When in a plan a step happens: make before break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Node,
    /// Sets exist before rules name them.
    Sets,
    /// Chains that no Service port can be blamed for: if the kernel rejects these, it would reject
    /// all others.
    Base,
    /// Chains of Service ports, and in an ordinary plan everything.
    Rules,
    /// Our rules take over from the table of kube-proxy's nftables mode.
    Switch,
    /// Chains that nothing jumps to any more, one by one.
    OldRules,
    /// Sets that no rule names any more.
    OldSets,
}

impl Step {
    /// Whether it makes, remakes or destroys a set.
    pub const fn is_about_set(&self) -> bool {
        matches!(
            self,
            Self::CreateSet { .. } | Self::RemakeSet(_) | Self::DestroySet { .. }
        )
    }
}

impl crate::plan::Step for Step {
    type Phase = Phase;
    type Prerequisites = Prerequisites;

    fn kind(&self) -> &'static str {
        match self {
            Self::SetSysctl { .. } => "set-sysctl",
            Self::CreateSet { .. } => "create-set",
            Self::RemakeSet(_) => "remake-set",
            Self::DestroySet { .. } => "destroy-set",
            Self::EditRules(_) => "edit-rules",
            Self::DeleteNftablesTable { .. } => "delete-nftables-table",
        }
    }

    fn batch(&self) -> Option<&RuleBatch> {
        match self {
            Self::EditRules(batch) => Some(batch),
            _ => None,
        }
    }

    fn is_essential(&self) -> bool {
        // Without the set nothing else is written.
        let is_needed = matches!(self, Self::CreateSet { is_needed, .. } if *is_needed);
        is_needed || self.batch().is_some()
    }

    fn shorten(&mut self, edits: usize) {
        if let Self::EditRules(batch) = self {
            batch.shorten(edits);
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { key, value } => write!(f, "set sysctl {key} = {value}"),
            Self::CreateSet { set, .. } => write!(f, "create set {set}"),
            Self::RemakeSet(set) => write!(f, "remake set {set}"),
            Self::DestroySet { set } => write!(f, "destroy set {set}"),
            Self::EditRules(batch) => batch.fmt(f),
            Self::DeleteNftablesTable { family } => {
                write!(f, "delete nftables table {NFTABLES_TABLE} of {family}")
            }
        }
    }
}
