// SPDX-License-Identifier: Apache-2.0
//! PURE: a plan is data: ordered steps that each change one thing in the kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use crate::model::IpFamily;
use crate::plan::ipvs::object::{
    RealServer, RealServerKey, Timeouts, VirtualServer, VirtualServerKey, flags,
};
use crate::plan::ipvs::set::{SetEntry, SetName, SetSpec};
use crate::plan::ruleset::{Edit, Table};

/// The name of the dummy link that carries the addresses of virtual servers.
pub const LINK: &str = "kube-ipvs0";

/// The name of the tables of kube-proxy's nftables mode, one for each family.
pub const NFTABLES_TABLE: &str = "kube-proxy";

/// One change. Displays in one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// `key` is a path under `/proc/sys`.
    SetSysctl {
        key: &'static str,
        value: &'static str,
    },
    SetTimeouts(Timeouts),
    CreateLink,
    /// Its addresses go with it.
    DeleteLink,
    CreateSet(SetSpec),
    AddEntry {
        set: SetName,
        entry: SetEntry,
    },
    DeleteEntry {
        set: SetName,
        entry: SetEntry,
    },
    /// Exchanges the contents of two sets of the same type, together with all that refers to them.
    SwapSets {
        a: SetName,
        b: SetName,
    },
    DestroySet {
        set: SetName,
    },
    /// One run of `iptables-restore --noflush`.
    EditRules(RuleEdits),
    AddVirtualServer {
        key: VirtualServerKey,
        server: VirtualServer,
    },
    SetVirtualServer {
        key: VirtualServerKey,
        server: VirtualServer,
    },
    /// Its real servers go with it.
    DeleteVirtualServer {
        key: VirtualServerKey,
    },
    AddRealServer {
        vs: VirtualServerKey,
        key: RealServerKey,
        server: RealServer,
    },
    SetRealServer {
        vs: VirtualServerKey,
        key: RealServerKey,
        server: RealServer,
    },
    DeleteRealServer {
        vs: VirtualServerKey,
        key: RealServerKey,
    },
    AddAddress {
        address: IpAddr,
    },
    DeleteAddress {
        address: IpAddr,
    },
    /// All that kube-proxy's nftables mode made for this family.
    DeleteNftablesTable {
        family: IpFamily,
    },
}

/// Changes of one family's iptables rules, made together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleEdits {
    pub family: IpFamily,
    pub edits: Vec<Edit>,
    /// By how much each table grows if nobody else writes to it. Empty where that is not known.
    pub growth: BTreeMap<Table, Growth>,
}

/// How much larger something becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    pub chains: i64,
    pub rules: i64,
}

impl RuleEdits {
    /// Without knowledge of what is there.
    pub const fn new(family: IpFamily, edits: Vec<Edit>) -> Self {
        Self {
            family,
            edits,
            growth: BTreeMap::new(),
        }
    }
}

impl Serialize for RuleEdits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut fields = serializer.serialize_struct("RuleEdits", 2)?;
        fields.serialize_field("family", self.family.as_str())?;
        fields.serialize_field(
            "edits",
            &self
                .edits
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
        )?;
        fields.end()
    }
}

impl Step {
    /// The edits of a step that edits rules.
    pub fn edits(&self) -> &[Edit] {
        match self {
            Self::EditRules(rules) => &rules.edits,
            _ => &[],
        }
    }

    /// The step's name in metrics and JSON.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::SetSysctl { .. } => "set-sysctl",
            Self::SetTimeouts(_) => "set-timeouts",
            Self::CreateLink => "create-link",
            Self::DeleteLink => "delete-link",
            Self::CreateSet(_) => "create-set",
            Self::AddEntry { .. } => "add-entry",
            Self::DeleteEntry { .. } => "delete-entry",
            Self::SwapSets { .. } => "swap-sets",
            Self::DestroySet { .. } => "destroy-set",
            Self::EditRules(_) => "edit-rules",
            Self::AddVirtualServer { .. } => "add-virtual-server",
            Self::SetVirtualServer { .. } => "set-virtual-server",
            Self::DeleteVirtualServer { .. } => "delete-virtual-server",
            Self::AddRealServer { .. } => "add-real-server",
            Self::SetRealServer { .. } => "set-real-server",
            Self::DeleteRealServer { .. } => "delete-real-server",
            Self::AddAddress { .. } => "add-address",
            Self::DeleteAddress { .. } => "delete-address",
            Self::DeleteNftablesTable { .. } => "delete-nftables-table",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl { key, value } => write!(f, "set sysctl {key} = {value}"),
            Self::SetTimeouts(timeouts) => write!(
                f,
                "set IPVS timeouts tcp {} s, tcp-fin {} s, udp {} s",
                timeouts.tcp, timeouts.tcp_fin, timeouts.udp
            ),
            Self::CreateLink => write!(f, "create link {LINK}"),
            Self::DeleteLink => write!(f, "delete link {LINK}"),
            Self::CreateSet(spec) => {
                write!(f, "create set {} {}", spec.name, spec.set_type.as_str())?;
                if spec.set_type.is_hash() {
                    write!(f, " {} maxelem {}", spec.family, spec.max_entries)?;
                }
                Ok(())
            }
            Self::AddEntry { set, entry } => write!(f, "add entry {set} {entry}"),
            Self::DeleteEntry { set, entry } => write!(f, "delete entry {set} {entry}"),
            Self::SwapSets { a, b } => write!(f, "swap sets {a} {b}"),
            Self::DestroySet { set } => write!(f, "destroy set {set}"),
            Self::EditRules(RuleEdits { family, edits, .. }) => match edits.as_slice() {
                [edit] => write!(f, "edit {family} rules: {edit}"),
                edits => write!(f, "edit {family} rules: {} edits", edits.len()),
            },
            Self::AddVirtualServer { key, server } => {
                write!(f, "add virtual server {key} {server}")
            }
            Self::SetVirtualServer { key, server } => {
                write!(f, "set virtual server {key} {server}")
            }
            Self::DeleteVirtualServer { key } => write!(f, "delete virtual server {key}"),
            Self::AddRealServer { vs, key, server } => {
                write!(f, "add real server {vs} -> {key} {server}")
            }
            Self::SetRealServer { vs, key, server } => {
                write!(f, "set real server {vs} -> {key} {server}")
            }
            Self::DeleteRealServer { vs, key } => write!(f, "delete real server {vs} -> {key}"),
            Self::AddAddress { address } => write!(f, "add address {address} to {LINK}"),
            Self::DeleteAddress { address } => write!(f, "delete address {address} from {LINK}"),
            Self::DeleteNftablesTable { family } => {
                write!(f, "delete nftables table {NFTABLES_TABLE} of {family}")
            }
        }
    }
}

impl fmt::Display for VirtualServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scheduler {}", self.scheduler)?;
        if self.flags & flags::PERSISTENT != 0 {
            write!(f, " persistent {} s", self.timeout)?;
        }
        let others = self.flags & !flags::PERSISTENT;
        if others != 0 {
            write!(f, " flags {others:#x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for RealServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weight {} {}", self.weight, self.forwarding)
    }
}

/// When in a plan a step happens: make before break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Sysctls, time-outs, the link.
    Node,
    /// Sets exist, are of the right size, before rules refer to them.
    Sets,
    /// Entries come before what they admit: no early packet leaves unmasqueraded, and the entry
    /// that makes unknown ports of an address refuse is there before the address.
    Entries,
    Rules,
    Servers,
    Addresses,
    /// Virtual servers take over from the rules of iptables mode, or ours from those of nftables mode, where there are any:
    /// until now those served.
    Switch,
    /// From here on things go away, users before what they use. Entries that admit a virtual
    /// server go before it, so that its clients are refused rather than meeting the host's
    /// own services.
    OldEntries,
    OldServers,
    OldAddresses,
    /// The reject entry of an address stays until the address is gone.
    OldAddressEntries,
    /// Sets that no rule uses any more.
    OldSets,
}

/// Ordered steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<(Phase, Step)>,
}

impl Plan {
    /// Adds a step; steps of one phase keep the order in which they were added.
    pub fn push(&mut self, phase: Phase, step: Step) {
        self.steps.push((phase, step));
    }

    /// Puts the phases in order.
    #[must_use]
    pub fn ordered(mut self) -> Self {
        self.steps.sort_by_key(|(phase, _)| *phase);
        self
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Objects that the plan changes: a batch of rules counts by its chains.
    pub fn size(&self) -> usize {
        let size = |step: &Step| match step {
            Step::EditRules(rules) => rules.edits.len(),
            _ => 1,
        };
        self.steps().map(size).sum()
    }

    pub fn steps(&self) -> impl ExactSizeIterator<Item = &Step> {
        self.steps.iter().map(|(_, step)| step)
    }

    /// The steps with their phases.
    pub fn phases(&self) -> &[(Phase, Step)] {
        &self.steps
    }
}

impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.steps())
    }
}

/// One line for each step, and one for each of the edits that a step has.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps().try_for_each(|step| {
            writeln!(f, "{step}")?;
            let edits = step.edits();
            let listed = if edits.len() > 1 { edits } else { &[] };
            listed.iter().try_for_each(|edit| writeln!(f, "  {edit}"))
        })
    }
}
