// SPDX-License-Identifier: Apache-2.0
//! PURE: the steps of IPVS mode, and their order in a plan.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::model::IpFamily;
use crate::plan::ipvs::nft_rules::TABLE;
use crate::plan::ipvs::object::{
    RealServer, RealServerKey, SyncDaemon, SyncRole, Timeouts, VirtualServer, VirtualServerKey,
};
use crate::plan::ipvs::prerequisites::Prerequisites;
use crate::plan::ipvs::set::{SetEntry, SetName, SetSpec};
use crate::plan::leftovers::NFTABLES_TABLE;
use crate::plan::ruleset::RuleBatch;

/// The name of the dummy link that carries the addresses of virtual servers.
pub const LINK: &str = "kube-ipvs0";

/// One change. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// `key` is a path under `/proc/sys`.
    SetSysctl {
        key: &'static str,
        value: Cow<'static, str>,
    },
    SetTimeouts(Timeouts),
    CreateLink,
    /// Deletes its addresses too.
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
    /// Deletes entries and adds one in one transaction, where both cannot be there together. In
    /// nftables only.
    ReplaceEntries {
        set: SetName,
        old: Vec<SetEntry>,
        new: SetEntry,
    },
    /// Swaps the contents of two sets of the same type; rules that name one then use its new
    /// contents.
    SwapSets {
        a: SetName,
        b: SetName,
    },
    DestroySet {
        set: SetName,
    },
    /// One run of `iptables-restore --noflush`, or a transaction of our table.
    EditRules(RuleBatch),
    AddVirtualServer {
        key: VirtualServerKey,
        server: VirtualServer,
    },
    SetVirtualServer {
        key: VirtualServerKey,
        server: VirtualServer,
    },
    /// Deletes its real servers too.
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
    StartSyncDaemon {
        role: SyncRole,
        daemon: SyncDaemon,
    },
    /// One that does not run is success.
    StopSyncDaemon {
        role: SyncRole,
    },
    /// The table of kube-proxy's nftables mode for this family.
    DeleteNftablesTable {
        family: IpFamily,
    },
    /// An ipset that was left when the rules were iptables', or by iptables mode.
    DestroyOtherSet {
        set: SetName,
    },
    /// Our table of this family, with its sets, that was left when the rules were nftables'.
    DeleteOwnTable {
        family: IpFamily,
    },
}

impl crate::plan::Step for Step {
    type Phase = Phase;
    type Prerequisites = Prerequisites;

    fn kind(&self) -> &'static str {
        match self {
            Self::SetSysctl { .. } => "set-sysctl",
            Self::SetTimeouts(_) => "set-timeouts",
            Self::CreateLink => "create-link",
            Self::DeleteLink => "delete-link",
            Self::CreateSet(_) => "create-set",
            Self::AddEntry { .. } => "add-entry",
            Self::DeleteEntry { .. } => "delete-entry",
            Self::ReplaceEntries { .. } => "replace-entries",
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
            Self::StartSyncDaemon { .. } => "start-sync-daemon",
            Self::StopSyncDaemon { .. } => "stop-sync-daemon",
            Self::DeleteNftablesTable { .. } => "delete-nftables-table",
            Self::DestroyOtherSet { .. } => "destroy-other-set",
            Self::DeleteOwnTable { .. } => "delete-own-table",
        }
    }

    fn batch(&self) -> Option<&RuleBatch> {
        match self {
            Self::EditRules(batch) => Some(batch),
            _ => None,
        }
    }

    fn is_essential(&self) -> bool {
        matches!(
            self,
            Self::CreateLink | Self::CreateSet(_) | Self::SwapSets { .. } | Self::EditRules(_)
        )
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
                    write!(f, " {}", spec.family)?;
                }
                if spec.set_type.is_hash() && spec.max_entries < u32::MAX {
                    write!(f, " maxelem {}", spec.max_entries)?;
                }
                Ok(())
            }
            Self::AddEntry { set, entry } => write!(f, "add entry {set} {entry}"),
            Self::DeleteEntry { set, entry } => write!(f, "delete entry {set} {entry}"),
            Self::ReplaceEntries { set, old, new } => {
                write!(f, "replace entry {set} {new} instead of")?;
                old.iter().try_for_each(|entry| write!(f, " {entry}"))
            }
            Self::SwapSets { a, b } => write!(f, "swap sets {a} {b}"),
            Self::DestroySet { set } => write!(f, "destroy set {set}"),
            Self::EditRules(batch) => batch.fmt(f),
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
            Self::StartSyncDaemon { role, daemon } => {
                write!(f, "start sync daemon {role} {daemon}")
            }
            Self::StopSyncDaemon { role } => write!(f, "stop sync daemon {role}"),
            Self::DeleteNftablesTable { family } => {
                write!(f, "delete nftables table {NFTABLES_TABLE} of {family}")
            }
            Self::DestroyOtherSet { set } => write!(f, "destroy ipset {set}"),
            Self::DeleteOwnTable { family } => {
                write!(f, "delete nftables table {TABLE} of {family}")
            }
        }
    }
}

/// When in a plan a step happens: make before break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Sysctls, timeouts, the link.
    Node,
    /// Sets exist and have the right size before rules reference them.
    Sets,
    /// Entries come before what they admit: no early packet leaves without being masqueraded, and
    /// the entry that rejects unknown ports of an address exists before the address does.
    Entries,
    Rules,
    Servers,
    Addresses,
    /// Virtual servers take over from the rules of iptables mode, or our rules from those of
    /// nftables mode, if there are any: until now those served.
    Switch,
    /// Connections of other nodes are taken in when there are servers for them.
    Daemons,
    /// From here on objects are deleted, users before what they use. Entries that admit a virtual
    /// server are deleted before it, so that its clients are rejected rather than reaching the
    /// host's own services.
    OldEntries,
    OldServers,
    /// By nothing else would a next process know these virtual servers as ours.
    OldServerEntries,
    OldAddresses,
    /// The reject entry of an address stays until the address is deleted.
    OldAddressEntries,
    /// Sets that no rule uses any more.
    OldSets,
}
