// SPDX-License-Identifier: Apache-2.0
//! PURE: the steps of iptables mode, and their order in a plan.

use std::fmt;

use serde::Serialize;

use crate::model::IpFamily;
use crate::plan::iptables::prerequisites::Prerequisites;
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
    /// One run of `iptables-restore --noflush`.
    EditRules(RuleBatch),
    /// The table of kube-proxy's nftables mode for this family.
    DeleteNftablesTable { family: IpFamily },
}

/// When in a plan a step happens: make before break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Node,
    /// Chains that no Service port can be blamed for: if the kernel rejects these, it would reject
    /// all others.
    Base,
    /// Chains of Service ports, and in an ordinary plan everything.
    Rules,
    /// Our rules take over from the table of kube-proxy's nftables mode.
    Switch,
    /// Chains that nothing jumps to any more, one by one.
    OldRules,
}

impl crate::plan::Step for Step {
    type Phase = Phase;
    type Prerequisites = Prerequisites;

    fn kind(&self) -> &'static str {
        match self {
            Self::SetSysctl { .. } => "set-sysctl",
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
        self.batch().is_some()
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
            Self::EditRules(batch) => batch.fmt(f),
            Self::DeleteNftablesTable { family } => {
                write!(f, "delete nftables table {NFTABLES_TABLE} of {family}")
            }
        }
    }
}
